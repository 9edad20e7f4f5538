"""`jaxmerge merge RECIPE OUT`: recipes from files to a checkpoint folder."""

from __future__ import annotations

import hashlib
import json as jsonlib
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import yaml

import jaxmerge
from jaxmerge.cli.bytesbar import BytesBar
from jaxmerge.cli.card import card
from jaxmerge.cli.cost import cost, show
from jaxmerge.drivers.files.api import OVERFLOW, merge_jobs, process_group
from jaxmerge.drivers.files.chunks import keep_memory
from jaxmerge.drivers.files.job import Report, tensors_of
from jaxmerge.errors import UserError, about, closest, reason
from jaxmerge.io.hashes import Hashes, cache_folder
from jaxmerge.io.model_folder import output_belongings
from jaxmerge.io.sources import keep_apart
from jaxmerge.io.writer import partial_folder
from jaxmerge.recipes.native import Document, load
from jaxmerge.recipes.parse import load_yaml
from jaxmerge.recipes.plan import Models, Plan, dtype_of, seed_of

RESOLVED = "recipe.resolved.yaml"


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
    allow_import: bool = False,
    overflow: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Run a recipe; see ``jaxmerge merge --help``."""
    size = parse_size(shard_size)
    if out is None and not check:
        raise UserError("Name the folder to write: jaxmerge merge RECIPE OUT (or --check).")
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):  # several processes write one output
        distribute()
    used = choose_devices(device, devices)
    compile_cache()
    keep_memory()
    found = load(recipe, allow_import)
    stages: dict[str, Path] = {}
    reports = []
    for i, document in enumerate(found):
        last = i == len(found) - 1
        _override(document, dtype if last else None, seed)
        document.overflow = choose("overflow", overflow or document.overflow, OVERFLOW)
        models = Models([Path(recipe).resolve().parent], allow_pickle, stages)
        try:
            with about(recipe):
                plan = document.plan(models)
            if document.overflow != OVERFLOW[0]:
                plan.resolved["overflow"] = document.overflow
            if check or out is None:
                reports.append(cost(plan, document.name))
                if not last:
                    reports[-1]["note"] = "later stages are checked when this one is there"
                    if not stages_there(out, document, stages):
                        break
                continue
            where = Path(out) if last else stage_folder(Path(out), document.name)
            keep_apart(where, [f for s in models.opened.values() for f in s.files])
            keep_apart(where, [recipe] if Path(recipe).name != RESOLVED else [])
            reports.append(
                _execute(
                    recipe, document, plan, where, size, used,
                    resume or not last, force, quiet, last,
                )
            )  # fmt: skip
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


def distribute() -> None:
    """Join the processes that the environment names, as `jax.distributed` reads it."""
    number = lambda key: int(os.environ[key]) if key in os.environ else None
    jax.distributed.initialize(
        num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID")
    )


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
    tensors = tensors_of(plan.jobs, plan.out_dtype)
    size = size if plan.single is None else sys.maxsize
    sources = [s for s in plan.models.opened.values()]
    digest = digest_of(plan, sources, tensors, size)
    done = out / RESOLVED
    if done.exists() and (resume or not last) and not force:
        if _noted(done) == digest:
            return {"out": os.path.abspath(out), "finished_before": True, "seconds": 0.0}
        if not last:
            force = True  # a stage whose recipe or inputs have changed
    group = process_group()
    # what is damaged there is refused before the merge
    found = {**output_belongings(plan.source, plan.out_dtype, plan.config), **plan.files}
    beside = {name: content for name, content in found.items() if content is not None}
    hashes = Hashes([f for s in sources for f in s.files] if group.index == 0 else [])
    try:
        if group.index == 0:
            with about(recipe):
                _check_hashes(document, sources, hashes, force)
            for extra in plan.extras:
                extra.check()

        def files(report: Report) -> dict[str, bytes | Path]:
            note = provenance(sources, hashes.result(), digest, plan)
            return beside | notes(plan, report, note)

        with BytesBar(quiet) as bar:
            report = merge_jobs(
                plan.jobs, out, out_dtype=plan.out_dtype, digest=digest,
                metadata={"format": "pt"}, shard_size=size, resume=resume, force=force,
                nonfinite=plan.nonfinite, overflow=document.overflow, devices=devices,
                files=files, progress=bar, group=group,
                single=plan.single or "model.safetensors",
            )  # fmt: skip
    except BaseException as error:
        hashes.stop()
        if isinstance(error, OSError) and partial_folder(out).exists():
            raise UserError(
                f"{reason(error)} What was done is kept beside {out}; --resume goes on with it."
            ) from None
        raise
    return {"finished_before": False, **vars(report)}


def _noted(path: Path) -> str | None:
    """The digest of the merge that left this resolved recipe; None where it says none."""
    found = load_yaml(path)
    note = found[0].get("resolved") if found and isinstance(found[0], dict) else None
    return note.get("digest") if isinstance(note, dict) else None


def digest_of(plan: Plan, sources: list, tensors: Any, size: int) -> str:
    """What identifies a merge: the same digest, the same bytes."""
    stamps = [s.stamp() for s in sources]
    facts = [plan.resolved, stamps, tensors, size, str(plan.out_dtype), plan.seed, jax.__version__]
    text = jsonlib.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_hashes(document: Document, sources: list, hashes: Hashes, force: bool) -> None:
    """The inputs of a resolved recipe must be those that it was made from."""
    expected = (document.resolved or {}).get("inputs")
    if not expected or force:
        return
    if not isinstance(expected, dict) or not all(isinstance(v, dict) for v in expected.values()):
        raise UserError(
            "resolved: inputs must map every model to its files and their SHA-256; the resolved "
            "recipe is damaged. Take `resolved` out of it, or --force merges what is there."
        )
    found = _inputs(sources, hashes.result())
    changed = [ref for ref, files in expected.items() if found.get(ref, files) != files]
    if changed:
        raise UserError(
            f"{len(changed)} inputs are not those that the resolved recipe names: {changed[:5]}. "
            "--force merges what is there."
        )


def _inputs(sources: list, hashes: dict[str, str]) -> dict[str, dict[str, str]]:
    return {s.ref: {f.name: hashes[str(f)] for f in s.files} for s in sources}


def provenance(sources: list, hashes: dict[str, str], digest: str, plan: Plan) -> dict[str, Any]:
    """What a resolved recipe notes besides the recipe."""
    import numpy

    return {
        "versions": {
            "jaxmerge": jaxmerge.__version__,
            "jax": jax.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "backend": jax.default_backend(),
        "seed": plan.seed,
        "digest": digest,
        "inputs": _inputs(sources, hashes),
    }


def notes(plan: Plan, report: Report, note: dict[str, Any]) -> dict[str, bytes | Path]:
    """How the output was made: the resolved recipe and the model card."""
    recipe = yaml.safe_dump(
        {**plan.resolved, "resolved": note}, sort_keys=False, allow_unicode=True, width=100
    )
    return {RESOLVED: recipe.encode(), "README.md": card(plan, report, note).encode()}


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
        found = jax.local_devices(backend=kind)
    except RuntimeError as error:
        raise UserError(f"--device {kind}: {str(error).splitlines()[0]}") from None
    if count is not None and count > len(found):
        raise UserError(f"--devices {count}: there are {len(found)} ({found[0].platform}).")
    return found[: count or 1]


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
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
