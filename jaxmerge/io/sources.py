"""Model references: a string that says where a model is, opened as a lazy mapping of leaves.

    folder                    model.safetensors, or shards with an index; a run folder of jaxmerge
    file.safetensors          one file, or an index of shards (.safetensors.index.json)
    diffusers/pipeline        model_index.json and components in sub-folders, as one model
    orbax/checkpoint          a folder written by Orbax (the last step of a manager's folder)
    file.gguf                 a GGUF file, dequantised, under Hugging Face's names (`io.gguf`)
    org/name[@revision]       a repository on the hub, downloaded by huggingface_hub
    folder/with/*.bin, x.pt   pickles: only with allow_pickle, only tensors
    any of these#params       the leaves whose names begin with "params/" or "params.", without it
    any of these+adapter      with a PEFT LoRA adapter (a folder or a repository) on top

A relative path is tried from the working directory, then from the folders in `near`.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError, closest
from jaxmerge.io import gguf
from jaxmerge.io.adapters import Adapter, applied
from jaxmerge.io.architectures import architecture
from jaxmerge.io.fused import in_layout, layout_for
from jaxmerge.io.gguf.tensors import Tensors
from jaxmerge.io.install import old_folder, partial_folder
from jaxmerge.io.orbax import Orbax, checkpoint_folder
from jaxmerge.io.pickles import Pickle
from jaxmerge.io.pipelines import PIPELINE, open_components
from jaxmerge.io.quantised import dequantised, setting_of, without_setting
from jaxmerge.io.safetensors import File, Leaves, Like
from jaxmerge.io.untrusted import check_inside, inside, member, open_regular, read_json
from jaxmerge.io.weight_files import INDEX, weights_file

HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]+)?")
NEEDED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
PICKLED = ["*.bin", "*.bin.index.json", "*.pt", "*.pth"]


class Shards(Leaves):
    """Several files as one model."""

    def __init__(self, files: Mapping[str, Leaves], where: Mapping[str, str]):
        self.files, self.where = dict(files), dict(where)
        self.stamps = {p: s for file in self.files.values() for p, s in file.stamps.items()}
        self.like = {n: self.files[f].like[n] for n, f in self.where.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.files[self.where[name]].read(name, start, stop)

    def into(self, out: np.ndarray, name: str, start: int = 0) -> None:
        self.files[self.where[name]].into(out, name, start)

    def close(self) -> None:
        for file in self.files.values():
            file.close()


class View(Leaves):
    """Another model under other names.

    Attributes:
        names: new name -> the name there.
        ref: what the model is called in messages.
    """

    def __init__(self, source: Leaves, names: Mapping[str, str], ref: str = ""):
        self.source, self.names, self.ref = source, dict(names), ref
        self.stamps = source.stamps
        self.like: dict[str, Like] = {new: source.like[old] for new, old in self.names.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.source.read(self.names[name], start, stop)

    def into(self, out: np.ndarray, name: str, start: int = 0) -> None:
        self.source.into(out, self.names[name], start)


class Source(View):
    """An opened reference.

    Attributes:
        ref: the reference, absolute, so that it means the same anywhere.
        files: the files that hold the weights, for hashing.
        made_of: what `jaxmerge.io.architectures` found, once it was asked.
    """

    made_of: Any = None

    def __init__(
        self, leaves: Leaves, ref: str, folder: Path | Callable[[], Path] | None,
        files: Sequence[Path], config: dict[str, Any] | None = None,
    ):  # fmt: skip
        odd = [n for n in leaves if not n.isprintable()]
        if odd:
            raise UserError(
                f"{ref}: names of {len(odd)} leaves hold control characters: {odd[0][:80]!r}."
            )
        super().__init__(leaves, {n: n for n in leaves}, ref)
        self._folder, self.files, self._config = folder, tuple(files), config

    @property
    def folder(self) -> Path | None:
        """Where config.json and the tokenizer are, or None; made when it is first asked for where
        the files of the model hold them in another form."""
        if callable(self._folder):
            self._folder = self._folder()
        return self._folder

    def close(self) -> None:
        self.source.close()

    def renamed(self, names: Mapping[str, str], ref: str | None = None) -> Source:
        """The same model under other names: new name -> the name here."""
        out = copy.copy(self)
        out.made_of = None
        out.names = {new: self.names[old] for new, old in names.items()}
        out.like = {new: self.like[old] for new, old in names.items()}
        out.ref = self.ref if ref is None else ref
        return out

    @property
    def parts(self) -> dict[str, str]:
        """Component -> the file that holds it, for a pipeline of several models."""
        return getattr(self.source, "parts", {})

    def config(self) -> dict[str, Any]:
        """The config of these leaves: config.json, changed where the leaves are not the stored
        ones (dequantised, an adapter on a tied head); empty if there is none."""
        if self._config is None:
            path = member(self.folder, "config.json")
            self._config = {} if path is None else read_json(path)
        return self._config

    def stamp(self) -> list[list[Any]]:
        """What changes when the files change, read from their headers and the file system."""
        out = []
        for path in self.files:
            with os.fdopen(open_regular(path), "rb") as file:
                stat = os.fstat(file.fileno())
                first = hashlib.sha256(file.read(1 << 16)).hexdigest()
            out.append([str(path), stat.st_size, stat.st_mtime_ns, first])
        return out


def open_source(
    ref: str | os.PathLike,
    *,
    near: Sequence[Path] = (),
    allow_pickle: bool = False,
    stored: bool = False,
) -> Source:
    """Open a reference; see the module's docstring.

    Args:
        near: folders against which a relative path is tried after the working directory.
        allow_pickle: read tensors from pickles too.
        stored: the leaves as they are in the files, quantised ones too; by default they are
            dequantised when they are read (`jaxmerge.io.quantised`).

    Raises:
        UserError: there is no such model, it is pickled, quantised in a way that is not read, or
            its files do not belong together.
        HeaderError: a file is damaged.
    """
    ref = os.fspath(ref)
    path = _path(ref, near)
    if path is not None:
        if path.suffix == ".gguf" and path.is_file():
            return _gguf(path, stored)
        source = _local(path, allow_pickle)
        return source if stored else _logical(source)
    base, plus, adapter = ref.rpartition("+")
    if plus and base and adapter:
        source = open_source(base, near=near, allow_pickle=allow_pickle)
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
        folder = _hub(ref, allow_pickle)
        source = _local(folder, allow_pickle)
        source.ref = ref if "@" in ref else f"{ref}@{folder.name}"
        return source if stored else _logical(source)
    whole, hash_, part = ref.rpartition("#")
    if hash_ and whole and part:
        opened = open_source(whole, near=near, allow_pickle=allow_pickle, stored=stored)
        return _part(opened, part)
    looked = [Path.cwd(), *near]
    raise UserError(
        f"There is no model {ref!r}: no such path in {' or '.join(map(str, dict.fromkeys(looked)))}"
        f", and it is no org/name[@revision] of the hub.{_neighbour(ref)}"
    )


def laid_out(source: Source, names: Collection[str]) -> Source:
    """The model with fused leaves split, or split ones joined, where `names` has them so."""
    leaves = in_layout(source, architecture(source), names)
    if leaves is source:
        return source
    return Source(leaves, source.ref, source._folder, source.files, source.config())


def _gguf(path: Path, stored: bool) -> Source:
    """A GGUF file; as it is stored, its tensors under their own names."""
    if stored:
        return Source(Tensors(path), str(path), None, [path], {})
    model = gguf.Model(path)
    return Source(model.leaves, str(path), model.folder, [path], model.config)


def adapter_folder(ref: str, near: Sequence[Path] = ()) -> Path:
    """The folder of an adapter: a path, or a repository on the hub."""
    where = _path(ref, near) or (_hub(ref, False) if HUB.fullmatch(ref) else None)
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


def _path(ref: str, near: Sequence[Path]) -> Path | None:
    path = Path(ref).expanduser()
    tries = [path] if path.is_absolute() else [Path.cwd() / path, *(Path(d) / path for d in near)]
    return next((Path(os.path.abspath(p)) for p in tries if os.path.exists(p)), None)


def _neighbour(ref: str) -> str:
    parent = Path(ref).expanduser().parent
    if not parent.is_dir():
        return ""
    hint = closest(Path(ref).name, [p.name for p in parent.iterdir()] or ["?"])
    return f" ({hint})" if hint.startswith("did you mean") else ""


def _local(path: Path, allow_pickle: bool) -> Source:
    if path.is_file():
        if path.suffix == ".safetensors":
            return Source(File(path), str(path), path.parent, [path])
        if path.name.endswith(INDEX):
            return _sharded(path.parent, path, File)
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            _refuse_pickle(path, allow_pickle)
            return Source(Pickle(path), str(path), path.parent, [path])
        raise UserError(
            f"{path}: expected a folder, a .safetensors or .gguf file or an Orbax checkpoint."
        )
    if (path / PIPELINE).is_file():
        leaves, files, config = open_components(path, lambda part: _local(part, allow_pickle))
        return Source(leaves, str(path), path, files, config)
    weights = weights_file(path)
    if weights is not None and weights.suffix == ".json":
        return _sharded(path, weights, File)
    if weights is not None:
        return Source(File(weights), str(path), path, [weights])
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
            return _sharded(path, indices[0], Pickle)
        if len(pickled) == 1:
            return Source(Pickle(pickled[0]), str(path), path, pickled)
    raise UserError(f"{path} holds no weights: no .safetensors file and no Orbax checkpoint.")


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


def _hub(ref: str, allow_pickle: bool) -> Path:
    name, _, revision = ref.partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{ref!r} is no local path; to read it from the hub, pip install 'jaxmerge[hub]'."
        ) from None
    patterns = NEEDED + (PICKLED if allow_pickle else [])
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"{ref!r} is no local path and could not be had from the hub "
            f"({type(error).__name__}: {reason}). Check the name and the connection."
        ) from None


def keep_apart(out: str | os.PathLike, inputs: Iterable[str | os.PathLike]) -> None:
    """Raise if an input lies where the output, or what is written and deleted on the way, goes."""
    where = Path(os.path.abspath(out))
    places = [where, partial_folder(where), old_folder(where)]
    for path in inputs:
        for place in places:
            named = Path(os.path.abspath(path)).is_relative_to(place)
            if named or Path(path).resolve().is_relative_to(place.resolve()):
                raise UserError(
                    f"{place} would take the place of an input, {path}; write elsewhere."
                    if place == where
                    else f"an input, {path}, lies in {place}, which writing {where} deletes; move "
                    "it, or write elsewhere."
                )
