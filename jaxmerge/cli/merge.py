"""`jaxmerge merge RECIPE OUT`: recipes from files to a checkpoint folder."""

from __future__ import annotations

import json as jsonlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxmerge.cli.bytesbar import BytesBar
from jaxmerge.cli.cost import cost, show, too_large
from jaxmerge.drivers.files.api import OVERFLOW
from jaxmerge.drivers.files.chunks import keep_memory
from jaxmerge.drivers.processes import together
from jaxmerge.errors import UserError, about, closest
from jaxmerge.io.architectures import architecture
from jaxmerge.io.architectures.description import in_words
from jaxmerge.io.buckets import fetched, into_bucket, url_of
from jaxmerge.io.hashes import cache_folder
from jaxmerge.io.install import keep_apart
from jaxmerge.io.model_folder import lacking
from jaxmerge.recipes.execute import RESOLVED, execute
from jaxmerge.recipes.native import Document, load
from jaxmerge.recipes.plan import Models, Plan, dtype_of, seed_of


@together()  # several processes write one output
@into_bucket(last=RESOLVED)
def run(
    recipe: Path,
    out: Path | None = None,
    *,
    check: bool = False,
    resume: bool = False,
    force: bool = False,
    dtype: str | None = None,
    seed: int | None = None,
    shard_size: str = "5GB",
    device: str | None = None,
    devices: int | None = None,
    allow_pickle: bool = False,
    strict: bool = False,
    tensor_union: bool = False,
    tensor_intersection: bool = False,
    allow_import: bool = False,
    overflow: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Run a recipe; see ``jaxmerge merge --help``."""
    if tensor_union and tensor_intersection:
        raise UserError("Choose one of --tensor-union and --tensor-intersection.")
    leaves = "union" if tensor_union else "intersection" if tensor_intersection else "same"
    size = parse_size(shard_size)
    if out is None and not check:
        raise UserError("Name the folder to write: jaxmerge merge RECIPE OUT (or --check).")
    used = choose_devices(device, devices)
    compile_cache()
    keep_memory()
    near, recipe = local_recipe(recipe)
    documents = load(recipe, allow_import)
    ignored = [line for document in documents for line in document.ignored]
    if strict and ignored:
        raise UserError(f"{recipe}:\n  " + "\n  ".join(ignored))
    warn(ignored)
    stages: dict[str, Path] = {}
    reports = []
    for i, document in enumerate(documents):
        last = i == len(documents) - 1
        _override(document, dtype if last else None, seed)
        with about(recipe):
            document.overflow = choose("overflow", overflow or document.overflow, OVERFLOW)
        models = Models([near], allow_pickle, stages, leaves, by_range=check)
        try:
            with about(recipe):
                plan = document.plan(models)
            warn(plan.warnings)
            if document.overflow != OVERFLOW[0]:
                plan.resolved["overflow"] = document.overflow
            if out is not None:
                where = Path(out) if last else stage_folder(Path(out), document.name)
                keep_apart(where, [f for s in models.opened.values() for f in s.files])
                keep_apart(where, [recipe] if Path(recipe).name != RESOLVED else [])
            if check or out is None:
                reports.append(cost(plan, document.name))
                if not last:
                    reports[-1]["note"] = "later stages are checked when this one is there"
                    if not stages_there(out, document, stages):
                        break
                continue
            warn([*too_large(plan), *lacking(getattr(plan.source, "folder", None))])
            reports.append(
                _execute(
                    recipe, document, plan, where, size, used,
                    resume or not last, force, quiet, last,
                )
            )  # fmt: skip
            if not (quiet or json) and jax.process_index() == 0:
                say_what_is_guessed(plan)
            if document.name:
                stages[document.name] = where
        finally:
            models.close()
    if check:
        show(reports, json)
        if any(r["mismatches"] for r in reports):
            raise UserError("the models do not fit together, see above.")
    elif jax.process_index() == 0:
        _print_done(reports, json, quiet)


def warn(lines: Sequence[str]) -> None:
    """Say what the user should know, not more than a screen of it."""
    for line in lines[:20]:
        print(f"warning: {line}", file=sys.stderr)
    if len(lines) > 20:
        print(f"warning: and {len(lines) - 20} more of the kind", file=sys.stderr)


def say_what_is_guessed(plan: Plan) -> None:
    """Where the family is not known: what was taken for what, on the error stream."""
    made_of = architecture(plan.source) if plan.source else None
    if made_of is not None and made_of.known is None and made_of.stacks:
        print("\n  ".join(in_words(made_of)), file=sys.stderr)


def local_recipe(recipe: str | os.PathLike) -> tuple[Any, Path]:
    """Where the references of a recipe are looked for, and the file: its copy, if it is a URL."""
    url = url_of(recipe)
    if url is None:
        return Path(recipe).resolve().parent, Path(recipe)
    copy = fetched(url)
    if copy is None:
        raise UserError(f"There is no recipe {url}.")
    return url.rpartition("/")[0], copy


def stage_folder(out: Path, name: str | None) -> Path:
    """Where a stage that is not the last writes: beside the output, and kept."""
    if name is None or not re.fullmatch(r"[\w.-]+", name) or name in (".", ".."):
        raise UserError(f"the name of a stage must be a plain word, got {name!r}.")
    return out.parent / f"{out.name}.stages" / name


def stages_there(out: Path | None, document: Document, stages: dict[str, Path]) -> bool:
    """For --check: whether an earlier run left this stage's output."""
    name = document.name
    if out is None or name is None:
        return False
    folder = stage_folder(Path(out), name)
    if not (folder / RESOLVED).exists():
        return False
    stages[name] = folder
    return True


def choose(what: str, value: str | None, choices: tuple[str, ...]) -> str:
    """One of a few words, the first by default."""
    if value is not None and value not in choices:
        raise UserError(f"{what} must be one of {', '.join(choices)}, got {value!r}.")
    return choices[0] if value is None else value


def _override(document: Document, dtype: str | None, seed: int | None) -> None:
    if dtype is not None:
        dtype_of(dtype, "--dtype")
        document.out_dtype = dtype
    if seed is not None:
        document.seed = seed_of(seed)
        if document.resolved:
            document.resolved = {k: v for k, v in document.resolved.items() if k != "seed"}


def _execute(
    recipe: Path, document: Document, plan: Plan, out, size, devices, resume, force, quiet, last
) -> dict:
    with BytesBar(quiet) as bar:
        return execute(
            plan, out, shard_size=size, devices=devices, resume=resume, force=force,
            stage=not last, overflow=document.overflow or OVERFLOW[0],
            expected=(document.resolved or {}).get("inputs"), recipe=recipe, progress=bar,
        )  # fmt: skip


def _print_done(reports: list[dict[str, Any]], json: bool, quiet: bool) -> None:
    if json:
        print(jsonlib.dumps(reports if len(reports) > 1 else reports[0], indent=2))
    elif not quiet:
        for r in reports:
            if r["finished_before"]:
                print(f"{r['out']}: finished before, nothing to do")
                continue
            more = f", {r['resumed']} were done before" if r["resumed"] else ""
            print(
                f"{r['out']}: {r['merged']} leaves merged, {r['copied']} copied{more}; "
                f"{r['parameters']:,} parameters, {r['seconds']:.1f} s"
            )


# ---------------------------------------------------------------- options


def parse_size(text: str) -> int:
    """
    >>> parse_size("5GB"), parse_size("1.5 GiB"), parse_size("1000")
    (5000000000, 1610612736, 1000)
    """
    units = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
             "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
    m = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if not m or m[2].lower() not in units or float(m[1]) <= 0:
        raise UserError(f"a size is written like 5GB or 500MiB, got {text!r}.")
    return int(float(m[1]) * units[m[2].lower()])


def choose_devices(kind: str | None, count: int | None) -> list:
    """The devices over which leaves are spread: none stands for jax's default."""
    if kind is None and count is None:
        return []
    kinds = ("cpu", "gpu", "tpu", "cuda", "rocm")
    if kind is not None and kind not in kinds:
        raise UserError(f"--device {kind!r}: {closest(kind, kinds)}")
    try:
        devices = jax.local_devices(backend=kind)
    except RuntimeError as error:
        raise UserError(f"--device {kind}: {str(error).splitlines()[0]}") from None
    if count is not None and count > len(devices):
        raise UserError(f"--devices {count}: there are {len(devices)} ({devices[0].platform}).")
    return devices[: count or 1]


def compile_cache() -> None:
    """Keep compiled code across runs.

    JAX writes an entry in place: one that another run is writing, or was killed writing, is
    compiled anew without a word.
    """
    there = jax.config.values["jax_compilation_cache_dir"]
    if there or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
