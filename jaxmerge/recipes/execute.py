"""A plan run into a folder, with what tells how it was made: hashes, recipe, model card.

`execute` is what the command and `merge_files` share.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmerge import __version__
from jaxmerge.drivers.files.api import merge_jobs, process_group
from jaxmerge.drivers.files.job import Report, tensors_of
from jaxmerge.errors import UserError, about, reason
from jaxmerge.io.hashes import Hashes
from jaxmerge.io.install import partial_folder
from jaxmerge.io.model_folder import output_belongings
from jaxmerge.recipes.card import card
from jaxmerge.recipes.plan import Plan

RESOLVED = "recipe.resolved.yaml"


def execute(
    plan: Plan,
    out: str | os.PathLike,
    *,
    shard_size: int = 5_000_000_000,
    devices: Sequence[Any] = (),
    resume: bool = False,
    force: bool = False,
    stage: bool = False,
    overflow: str = "raise",
    expected: Any = None,
    recipe: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Merge as planned, and write beside the weights what belongs to them and how they were made.

    Args:
        stage: an earlier part of a larger merge: made again without a word where it is outdated.
        expected: reference -> file -> SHA-256 that the inputs must have, from the resolved recipe
            in the file `recipe`.
        shard_size, devices, resume, force, overflow, progress: of `merge_jobs`.

    Returns:
        The fields of `Report`, and `finished_before`: whether there was nothing to do.

    Raises:
        UserError: the output exists, inputs are not the expected ones, the disk is full.
    """
    out = Path(out)
    tensors = tensors_of(plan.jobs, plan.out_dtype)
    size = shard_size if plan.single is None else sys.maxsize
    sources = list(plan.models.opened.values())
    digest = digest_of(plan, sources, tensors, size)
    done = out / RESOLVED
    if done.exists() and (resume or stage) and not force:
        if _noted(done) == digest:
            return {"out": os.path.abspath(out), "finished_before": True, "seconds": 0.0}
        if stage:
            force = True  # its recipe or its inputs have changed
    group = process_group()
    # what is damaged there is refused before the merge
    contents = {**output_belongings(plan.source, plan.out_dtype, plan.config), **plan.files}
    beside = {name: content for name, content in contents.items() if content is not None}
    hashes = Hashes([f for s in sources for f in s.files] if group.index == 0 else [])
    try:
        if group.index == 0:
            with about(recipe) if recipe else contextlib.nullcontext():
                _check_hashes(expected, sources, hashes, force)
            for extra in plan.extras:
                extra.check()

        def files(report: Report) -> dict[str, bytes | Path]:
            note = provenance(sources, hashes.result(), digest, plan)
            return beside | notes(plan, report, note)

        report = merge_jobs(
            plan.jobs, out, out_dtype=plan.out_dtype, digest=digest, metadata={"format": "pt"},
            shard_size=size, resume=resume, force=force, nonfinite=plan.nonfinite,
            overflow=overflow, devices=devices, files=files, progress=progress, group=group,
            single=plan.single or "model.safetensors", parts=getattr(plan.source, "parts", None),
        )  # fmt: skip
    except BaseException as error:
        hashes.stop()
        if isinstance(error, OSError) and partial_folder(out).exists():
            raise UserError(
                f"{reason(error)} What was done is kept beside {out}; --resume goes on with it."
            ) from None
        if isinstance(error, ValueError) and recipe is not None:
            with about(recipe):
                raise
        raise
    return {"finished_before": False, **vars(report)}


def _noted(path: Path) -> str | None:
    """The digest of the merge that left this resolved recipe; None where it says none."""
    from jaxmerge.recipes.plain_yaml import load_yaml

    documents = load_yaml(path)
    note = documents[0].get("resolved") if documents and isinstance(documents[0], dict) else None
    return note.get("digest") if isinstance(note, dict) else None


def digest_of(plan: Plan, sources: list, tensors: Any, size: int) -> str:
    """What identifies a merge: the same digest, the same bytes."""
    stamps = [s.stamp() for s in sources]
    facts = [plan.resolved, stamps, tensors, size, str(plan.out_dtype), plan.seed, jax.__version__]
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_hashes(expected: Any, sources: list, hashes: Hashes, force: bool) -> None:
    """The inputs of a resolved recipe must be those that it was made from."""
    if not expected or force:
        return
    if not isinstance(expected, dict) or not all(isinstance(v, dict) for v in expected.values()):
        raise UserError(
            "resolved: inputs must map every model to its files and their SHA-256; the resolved "
            "recipe is damaged. Take `resolved` out of it, or --force merges what is there."
        )
    actual = _inputs(sources, hashes.result())
    changed = [ref for ref, files in expected.items() if actual.get(ref, files) != files]
    if changed:
        raise UserError(
            f"{len(changed)} inputs are not those that the resolved recipe names: {changed[:5]}. "
            "--force merges what is there."
        )


def _inputs(sources: list, hashes: dict[str, str]) -> dict[str, dict[str, str]]:
    return {s.ref: {f.name: hashes[str(f)] for f in s.files} for s in sources}


def provenance(sources: list, hashes: dict[str, str], digest: str, plan: Plan) -> dict[str, Any]:
    """What a resolved recipe notes besides the recipe."""
    return {
        "versions": {
            "jaxmerge": __version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "backend": jax.default_backend(),
        "seed": plan.seed,
        "digest": digest,
        "inputs": _inputs(sources, hashes),
    }


def notes(plan: Plan, report: Report, note: dict[str, Any]) -> dict[str, bytes | Path]:
    """How the output was made: the resolved recipe and the model card."""
    import yaml

    recipe = yaml.safe_dump(
        {**plan.resolved, "resolved": note}, sort_keys=False, allow_unicode=True, width=100
    )
    return {RESOLVED: recipe.encode(), "README.md": card(plan, report, note).encode()}
