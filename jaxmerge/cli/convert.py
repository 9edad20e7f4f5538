"""`jaxmerge convert REF OUT`: a model in another form: shards, a dtype, Orbax, GGUF.

Whatever a reference names (shards, an Orbax checkpoint, a GGUF file, a base with its adapter,
pickles where they are allowed) is written as safetensors, leaf by leaf; ``--to orbax`` writes an
Orbax checkpoint, an output that ends in .gguf a GGUF file.
"""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path

import numpy as np

from jaxmerge.cli.bytesbar import BytesBar
from jaxmerge.cli.cost import names_of
from jaxmerge.cli.merge import choose, parse_size
from jaxmerge.core.composition import keep_base
from jaxmerge.drivers.files.api import merge_jobs
from jaxmerge.drivers.files.job import Job, tensors_of
from jaxmerge.errors import UserError, bounded
from jaxmerge.io.buckets import into_bucket
from jaxmerge.io.free_memory import memory_free
from jaxmerge.io.install import install, keep_apart, partial_folder
from jaxmerge.io.model_folder import output_belongings
from jaxmerge.io.opened_model import Source
from jaxmerge.io.places import Place, delete, delete_busy, working
from jaxmerge.io.relaid import LAYOUTS, laid_out
from jaxmerge.io.untrusted import member
from jaxmerge.recipes.execute import digest_of
from jaxmerge.recipes.plan import Models, Plan, dtype_of

FORMS = ("safetensors", "orbax", "gguf")


@into_bucket(last="config.json")
def run(
    ref: str,
    out: Path,
    *,
    to: str = "safetensors",
    names: str | None = None,
    like: Path | None = None,
    dtype: str | None = None,
    shard_size: str = "5GB",
    allow_pickle: bool = False,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Write the model in another form.

    Args:
        names: "hf", or a JAX library: under its names, and in its shapes
            (`jaxmerge.io.jax_names`).
        like: a folder whose config.json and tokenizer belong to the output, where the model has
            none; to "orbax", an Orbax checkpoint in whose form the output is nested.
    """
    out = Path(out)
    if to not in FORMS:
        raise UserError(f"--to must be {', '.join(FORMS[:-1])} or {FORMS[-1]}, got {to!r}.")
    to = "gguf" if out.suffix == ".gguf" else to
    models = Models(allow_pickle=allow_pickle)
    source, form = models.open(ref), None
    if like is not None and to == "orbax":
        from jaxmerge.io.orbax import Orbax, checkpoint_folder

        form = Orbax(like) if checkpoint_folder(Path(like)) is not None else None
    if like is not None and form is None:
        if member(Path(like), "config.json") is None:
            nor = " and no Orbax checkpoint" if to == "orbax" else ""
            raise UserError(f"--like {like}: there is no config.json{nor}.")
        source = Source(source.source, source.ref, Path(like), source.files)
    if names is not None:
        source = laid_out(source, choose("--names", names, LAYOUTS))
    if form is not None and (wrong := sorted(set(form.like) ^ set(source))):
        raise UserError(
            f"--like {like}: an Orbax checkpoint gives its form to a model of the same leaves; in "
            f"one of the two only: {bounded(wrong)}."
        )
    keep_apart(out, source.files)
    if to == "gguf":
        report = {"out": str(out), "leaves": _gguf(source, out, dtype, force, quiet or json)}
        _say(report, quiet, json)
        models.close()
        return
    kind, size = dtype_of(dtype, "--dtype"), parse_size(shard_size)
    if to == "orbax":
        _orbax(source, Path(out), kind, force, form or source.source)
        report = {"out": str(out), "leaves": len(source)}
    else:
        job = Job(keep_base(), [source], source)
        plan = Plan([job], models, source, kind, 0, {"ref": source.ref, "names": names}, "convert")
        digest = digest_of(plan, [source], tensors_of([job], kind), size)
        files = output_belongings(source, kind)
        with BytesBar(quiet or json) as bar:
            done = merge_jobs(
                [job], out, out_dtype=kind, digest=digest, metadata={"format": "pt"},
                shard_size=size, resume=resume, force=force, files=lambda r: files, progress=bar,
            )  # fmt: skip
        report = {"out": done.out, "leaves": len(source), "seconds": done.seconds}
    models.close()
    _say(report, quiet, json)


def _say(report: dict, quiet: bool, json: bool) -> None:
    if json:
        print(jsonlib.dumps(report, indent=2))
    elif not quiet:
        print(f"{report['out']}: {report['leaves']} leaves")


def _gguf(source, out: Path, dtype: str | None, force: bool, quiet: bool) -> int:
    """A GGUF file, leaf by leaf; float16 unless another dtype is asked for."""
    from jaxmerge.io.gguf.writer import write

    if not source.config():
        raise UserError(f"{source.ref} has no config.json, which a GGUF file needs.")
    kind = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(dtype or "f16", dtype)
    with BytesBar(quiet) as bar:
        return write(
            source, source.config(), source.folder, out, kind or "f16", force=force, progress=bar
        )


def _fits(source, kind) -> None:
    """Raise if the model, which Orbax writes from memory, is larger than the memory there is."""
    most = lambda like: max(like.dtype.itemsize, np.dtype(kind).itemsize if kind else 0)
    need, free = sum(x.size * most(x) for x in source.like.values()), memory_free()
    if free is not None and need > free:
        raise UserError(
            f"--to orbax holds the model in memory: {source.ref} takes {names_of(need)}, "
            f"{names_of(free)} are free. Write safetensors instead."
        )


def _orbax(source, out: Path, kind, force: bool, form) -> None:
    """An Orbax checkpoint, nested as `form` where that is one of the same leaves, and what belongs
    to the model beside it; needs the model in memory."""
    import orbax.checkpoint as ocp

    from jaxmerge.io.orbax import nested, one_error

    if out.exists() and not force:
        raise UserError(f"{out} exists; choose another output, or --force replaces it.")
    _fits(source, kind)
    tree = {n: source[n] if kind is None else source[n].astype(kind) for n in source}
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_folder(out)
    with working(out):
        delete(partial)
        try:
            whole = partial / "whole"  # Orbax writes beside it first
            with one_error(out), ocp.StandardCheckpointer() as writer:
                writer.save(whole, nested(form, tree))
            place = Place(whole)
            for name, content in output_belongings(source, kind).items():
                place.write(name, content)
            place.close()
            install(whole, out, force)
        except BaseException:
            delete_busy(partial)
            raise
        delete(partial)
