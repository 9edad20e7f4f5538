"""Model references: a string that says where a model is, opened as a lazy mapping of leaves.

    folder                    model.safetensors, or shards with an index; a run folder of jaxmerge
    file.safetensors          one file, or an index of shards (.safetensors.index.json)
    diffusers/pipeline        model_index.json and components in sub-folders, as one model
    orbax/checkpoint          a folder written by Orbax (the last step of a manager's folder)
    easydel/checkpoint        a folder written by EasyDeL: Zarr arrays and tensorstore_index.json
    file.gguf                 a GGUF file, dequantised, under Hugging Face's names (`io.gguf`)
    x.npz, x.msgpack          NumPy arrays as big_vision saves them; Flax's serialized parameters
    org/name[@revision]       a repository on the hub, downloaded by huggingface_hub; a few models
                              come from a Python package where it is installed (`io.packaged`)
    folder/with/*.bin, x.pt   pickles: only with allow_pickle, only tensors
    gs://bucket/any of these  and s3://, or another URL that fsspec opens (`io.buckets`)
    any of these#params       the leaves whose names begin with "params/" or "params.", without it
    any of these+adapter      with a PEFT LoRA adapter (a folder or a repository) on top

A relative path is tried from the working directory, then from the folders in `near`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from jaxmerge.errors import UserError, closest
from jaxmerge.io.architectures import architecture
from jaxmerge.io.buckets import exists, fetched, ranged, url_of
from jaxmerge.io.fused import in_layout, layout_for
from jaxmerge.io.hub import HUB, PICKLED, download
from jaxmerge.io.msgpack import Msgpack
from jaxmerge.io.npz import Archive
from jaxmerge.io.opened_model import Shards, Source
from jaxmerge.io.orbax import Orbax, checkpoint_folder
from jaxmerge.io.packaged import hint, packaged
from jaxmerge.io.pipelines import PIPELINE, open_components
from jaxmerge.io.quantised import dequantised, setting_of, without_setting
from jaxmerge.io.safetensors import File, Leaves
from jaxmerge.io.tensorstore import INDEX as LISTED
from jaxmerge.io.tensorstore import Arrays
from jaxmerge.io.untrusted import check_inside, check_regular, inside, read_json
from jaxmerge.io.weight_files import INDEX, weights_file

WHOLE: dict[str, Callable[[Path], Leaves]] = {".npz": Archive, ".msgpack": Msgpack}
FLAX = ("flax_model.msgpack",)  # beside a config.json of the hub


def open_source(
    ref: str | os.PathLike,
    *,
    near: Sequence[Path] = (),
    allow_pickle: bool = False,
    stored: bool = False,
    by_range: bool = False,
) -> Source:
    """Open a reference; see the module's docstring.

    Args:
        near: folders (or URLs of folders) against which a relative path is tried after the
            working directory.
        allow_pickle: read tensors from pickles too.
        stored: the leaves as they are in the files, quantised ones too; by default they are
            dequantised when they are read (`jaxmerge.io.quantised`).
        by_range: of a safetensors model in a bucket read the headers, and of the leaves what is
            asked for, in the place of a copy of all of it; such a source has no `files` to hash.

    Raises:
        UserError: there is no such model, it is pickled, quantised in a way that is not read, or
            its files do not belong together.
        HeaderError: a file is damaged.
    """
    ref = os.fspath(ref)
    path, url = _path(ref, near, by_range), _url(ref, near)
    if path is None and (path := packaged(ref)) is not None:
        _say_quantised(ref, path)
    if path is not None:
        if path.suffix == ".gguf" and path.is_file():
            return _gguf(path, stored)
        source = _local(path, allow_pickle, ranged(url, path) if by_range and url else File)
        source.ref = url or source.ref
        source.files = () if by_range and url else source.files
        return source if stored else _logical(source)
    base, plus, adapter = ref.rpartition("+")
    if plus and base and adapter:
        source = open_source(base, near=near, allow_pickle=allow_pickle, by_range=by_range)
        from jaxmerge.io.adapters import Adapter, applied

        where = adapter_folder(adapter, near)
        lora = Adapter(where)
        names = {f"{m.path}.weight" for m in lora.modules.values()}
        laid = laid_out(source, layout_for(source, names))  # as the adapter's model had it
        leaves, config = applied(laid, lora)
        if laid is not source:
            leaves = in_layout(leaves, architecture(source), set(source))
        files = [*source.files, *lora.files]
        return Source(leaves, f"{source.ref}+{where}", source._folder, files, config)
    if HUB.fullmatch(ref):
        try:
            folder = download(ref, allow_pickle)
        except UserError as error:
            raise UserError(f"{error}{hint(ref)}") from None
        source = _local(folder, allow_pickle)
        source.ref = ref if "@" in ref else f"{ref}@{folder.name}"
        return source if stored else _logical(source)
    whole, hash_, part = ref.rpartition("#")
    if hash_ and whole and part:
        opened = open_source(
            whole, near=near, allow_pickle=allow_pickle, stored=stored, by_range=by_range
        )
        return _part(opened, part)
    if url:
        raise UserError(f"There is no model {url}: nothing is there, or it may not be listed.")
    looked = [Path.cwd(), *near]
    raise UserError(
        f"There is no model {ref!r}: no such path in {' or '.join(map(str, dict.fromkeys(looked)))}"
        f", and it is no org/name[@revision] of the hub.{_neighbour(ref)}"
    )


def _say_quantised(ref: str, path: Path) -> None:
    """Warns where a packaged file is not the model that the reference names, but its 4 bits."""
    if path.suffix != ".gguf":
        return
    from jaxmerge.io.gguf.tensors import Tensors

    kinds = Tensors(path).quantised()
    if kinds:
        text = f"{ref}: quantised weights ({', '.join(kinds)}) from {path.name}"
        warnings.warn(text, stacklevel=3)


def laid_out(source: Source, names: Collection[str]) -> Source:
    """The model with fused leaves split, or split ones joined, where `names` has them so."""
    leaves = in_layout(source, architecture(source), names)
    if leaves is source:
        return source
    return Source(leaves, source.ref, source._folder, source.files, source.config())


def _gguf(path: Path, stored: bool) -> Source:
    """A GGUF file; as it is stored, its tensors under their own names."""
    from jaxmerge.io.gguf import Model
    from jaxmerge.io.gguf.tensors import Tensors

    if stored:
        return Source(Tensors(path), str(path), None, [path], {})
    model = Model(path)
    return Source(model.leaves, str(path), model.folder, [path], model.config)


def adapter_folder(ref: str, near: Sequence[Path] = ()) -> Path:
    """The folder of an adapter: a path, or a repository on the hub."""
    where = _path(ref, near) or (download(ref, False) if HUB.fullmatch(ref) else None)
    if where is None:
        raise UserError(f"There is no adapter {ref!r}.{_neighbour(ref)}")
    return where


def _logical(source: Source) -> Source:
    """The model that the stored leaves stand for."""
    config = source.config()
    leaves = dequantised(source.source, config, source.ref)
    if leaves is source.source and not setting_of(config):
        return source
    return Source(leaves, source.ref, source._folder, source.files, without_setting(config))


def _part(source: Source, part: str) -> Source:
    """The leaves below a name, without it."""
    below = {n[len(part) + 1 :]: n for n in source if n.startswith((f"{part}/", f"{part}."))}
    if not below:
        tops = dict.fromkeys(re.split(r"[./]", n)[0] for n in source)
        raise UserError(f"{source.ref} has no leaves below {part!r}: {closest(part, tops)}.")
    return source.renamed(below, f"{source.ref}#{part}")


def _path(ref: str, near: Sequence[Path], by_range: bool = False) -> Path | None:
    path, url = Path(ref).expanduser(), _url(ref, near)
    if url is not None:
        return fetched(url, by_range)
    tries = [path] if path.is_absolute() else [Path.cwd() / path, *(Path(d) / path for d in near)]
    return next((Path(os.path.abspath(p)) for p in tries if os.path.exists(p)), None)


def _url(ref: str, near: Sequence[Path]) -> str | None:
    """Where a reference is in a bucket: it is a URL, or near one."""
    url = url_of(ref)
    if url is not None or os.path.lexists(ref) or os.path.isabs(ref):
        return url
    tries = [f"{at}/{ref}" for d in near if (at := url_of(d)) is not None]
    return next((t for t in tries if exists(t)), None)


def _neighbour(ref: str) -> str:
    parent = Path(ref).expanduser().parent
    if not parent.is_dir():
        return ""
    hint = closest(Path(ref).name, [p.name for p in parent.iterdir()] or ["?"])
    return f" ({hint})" if hint.startswith("did you mean") else ""


def _local(path: Path, allow_pickle: bool, file: Callable[[Path], Leaves] = File) -> Source:
    if path.is_file():
        if path.suffix == ".safetensors":
            return Source(file(path), str(path), path.parent, [path])
        if path.name.endswith(INDEX):
            return _sharded(path.parent, path, file)
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            _refuse_pickle(path, allow_pickle)
            return Source(_pickle(path), str(path), path.parent, [path])
        if path.suffix in WHOLE:
            return Source(WHOLE[path.suffix](path), str(path), path.parent, [path])
        raise UserError(
            f"{path}: expected a folder, a .safetensors, .gguf, .npz or .msgpack file or an Orbax "
            "checkpoint."
        )
    if not path.is_dir():
        check_regular(path, "a model is a folder or a file")
    if (path / PIPELINE).is_file():
        leaves, files, config = open_components(path, lambda part: _local(part, allow_pickle, file))
        return Source(leaves, str(path), path, files, config)
    weights = weights_file(path)
    if weights is not None and weights.suffix == ".json":
        return _sharded(path, weights, file)
    if weights is not None:
        return Source(file(weights), str(path), path, [weights])
    whole = [path / n for n in FLAX if (path / n).is_file()]
    if whole:
        return Source(Msgpack(whole[0]), str(path), path, whole)
    if (path / LISTED).is_file():
        listed = Arrays(path)
        return Source(listed, str(path), path, listed.files)
    orbax = checkpoint_folder(path)
    if orbax is not None:
        files = sorted(p for p in orbax.rglob("*") if p.is_file())
        outside = [p for p in files if not p.resolve().is_relative_to(path.resolve())]
        if outside:
            raise UserError(f"{outside[0]} is a link out of {path}; copy what it leads to.")
        return Source(Orbax(orbax), str(path), path, files)
    if (path / "adapter_config.json").exists():
        raise UserError(f"{path} is an adapter; write BASE+{path} to put it on its base.")
    pickled = sorted(p for g in PICKLED for p in path.glob(g) if not p.name.endswith(".json"))
    if pickled:
        _refuse_pickle(pickled[0], allow_pickle)
        check_inside(path, [p.name for p in pickled])
        indices = sorted(path.glob("*.bin.index.json"))
        if indices:
            return _sharded(path, indices[0], _pickle)
        if len(pickled) == 1:
            return Source(_pickle(pickled[0]), str(path), path, pickled)
    raise UserError(f"{path} holds no weights: no .safetensors file and no Orbax checkpoint.")


def _pickle(path: Path) -> Leaves:
    from jaxmerge.io.pickles import Pickle

    return Pickle(path)


def _refuse_pickle(path: Path, allow_pickle: bool) -> None:
    if not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is loaded. Save it as safetensors, or "
            "pass --allow-pickle to read its tensors through a restricted unpickler."
        )


def _sharded(folder: Path, index: Path, kind: Callable[[Path], Leaves]) -> Source:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise UserError(f"{index} is no index of shards: weight_map must map names to file names.")
    wanted = sorted(set(table.values()))
    outside = [f for f in wanted if not inside(folder, f)]
    if outside:
        raise UserError(
            f"{index} names files outside of its folder: {[f[:80] for f in outside[:5]]}."
        )
    missing = [f for f in wanted if not (folder / f).is_file()]
    if missing:
        shown = [f[:80] for f in missing[:5]]
        raise UserError(f"{folder}: {len(missing)} of {len(wanted)} shards missing: {shown}.")
    files = {f: kind(folder / f) for f in wanted}
    wrong = [f"{n!r} is not in {f}" for n, f in table.items() if n not in files[f]]
    wrong += [
        f"{n!r} is in {f}, not in the index"
        for f, leaves in files.items()
        for n in leaves
        if table.get(n) != f
    ]
    if wrong:
        raise UserError(f"{index} and its shards disagree: {'; '.join(wrong[:5])}.")
    return Source(Shards(files, table), str(folder), folder, [folder / f for f in wanted])
