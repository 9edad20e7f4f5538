"""The file driver: walk the grid of `jaxmerge.core` leaf by leaf, from checkpoints to a checkpoint.

A `Job` says how some leaves of the output come about: a method, a base, models, each a lazy mapping
(`jaxmerge.io`).  `merge_jobs` runs one or more of them into one output folder:

1. facts that couple leaves (a global k-th magnitude, the norm of the merged vector) are gathered in
   as many passes over the files as they need;
2. then every leaf is read, merged and written to its place, several at a time, so that reading,
   computing and writing overlap.  Where `jaxmerge.cutting` proves that entries do not mix, a leaf
   goes through in pieces, so memory depends neither on its size nor on the number of models.

The arithmetic is that of `jaxmerge.leaf`, which the in-memory driver calls too: same bits.  The
writer's journal makes an interrupted merge resumable.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge import names
from jaxmerge.checks import check_choice, check_count, check_method, grid_of
from jaxmerge.combine import Pipeline, keep_base
from jaxmerge.core import Merge
from jaxmerge.errors import UserError
from jaxmerge.io.header import CODES
from jaxmerge.io.safetensors import Leaves, Like, changed
from jaxmerge.io.writer import Group, Writer


@dataclasses.dataclass
class Job:
    """How some leaves of the output come about.

    Attributes:
        method: the merge.
        models: what is merged.
        base: theta_0; None stands for zeros, then leaves are those of the first model.
        key: PRNG key, for methods that draw.
        extras: per model, side information such as ``{"fisher": leaves}``.
    """

    method: Merge
    models: Sequence[Leaves]
    base: Leaves | None = None
    key: Any = None
    extras: Sequence[Mapping[str, Any]] = ()

    @property
    def like(self) -> dict[str, Like]:
        """The leaves of the output, in the order of the base."""
        return (self.models[0] if self.base is None else self.base).like

    @functools.cached_property
    def grid(self) -> dict[str, Pipeline]:
        """A pipeline for every leaf that is merged; the others are copied from the base."""
        grid = grid_of(self.method, self.like)
        return {n: p for n, p in grid.items() if self.like[n].size and not _copied(p)}


def _copied(p: Pipeline) -> bool:
    """Whether the leaf is the base's: kept, and no stage after it."""
    return p.fold.core is not None and p.fold.core == keep_base().core and not p.after


@dataclasses.dataclass
class Report:
    """What a merge from files did.

    Attributes:
        merged, copied, resumed: leaves computed, taken from the base, found done already.
        parameters: entries of the output.
        read, written: bytes.
        seconds: wall time.
        passes: times the models were read for facts about whole rows.
    """

    out: str
    merged: int = 0
    copied: int = 0
    resumed: int = 0
    parameters: int = 0
    read: int = 0
    written: int = 0
    passes: int = 0
    seconds: float = 0.0


def mismatches(job: Job) -> list[str]:
    """Everything that keeps the models of a job from being merged, one line each.

    Dtypes may differ between models; names and shapes of merged leaves may not.
    """
    wrong, like = [], job.like
    for t, model in enumerate(job.models):
        who = getattr(model, "ref", "") or f"model {t}"
        for n in job.grid:
            if n not in model:
                wrong.append(f"{who}: missing leaf {n!r} ({names.kind(like[n])} in the base)")
            elif model.like[n].shape != like[n].shape:
                found, expected = names.kind(model.like[n]), names.kind(like[n])
                wrong.append(f"{who}: leaf {n!r} is {found}, the base has {expected}")
        wrong += [
            f"{who}: extra leaf {n!r} ({names.kind(model.like[n])}), which the base lacks"
            for n in model
            if n not in like
        ]
    return wrong


def check_job(job: Job) -> None:
    """Raise one ValueError that names every mismatch; see also `jaxmerge.checks`."""
    check_method(job.method, job.key)
    if not job.models:
        raise ValueError(f"{job.method} needs at least 1 model, got none.")
    check_count(job.method, len(job.models))
    if job.extras and len(job.extras) != len(job.models):
        raise ValueError(f"extras has {len(job.extras)} entries for {len(job.models)} models.")
    missing = [n for n in job.method.needs if not all(n in e for e in job.extras or [{}])]
    if missing:
        raise ValueError(
            f"{job.method} needs side information {missing} about every model: name its files in "
            f"the recipe (extras: {{{missing[0]}: [...]}}), or call merge_jobs with extras."
        )
    wrong = mismatches(job)
    if wrong:
        raise ValueError(
            "The models do not fit together:\n  " + "\n  ".join(wrong) + "\nGive every model the "
            "leaves of the base in its shapes, or merge only those that fit (rules)."
        )


def tensors_of(jobs: Sequence[Job], out_dtype: Any = None) -> dict[str, tuple[str, tuple]]:
    """Name -> (dtype code, shape) of the output; floating leaves in `out_dtype` if one is given."""
    out: dict[str, tuple[str, tuple]] = {}
    for job in jobs:
        twice = [n for n in job.like if n in out]
        if twice:
            raise ValueError(f"{len(twice)} leaves come from two jobs, for example {twice[:3]}.")
        for n, like in job.like.items():
            dtype = np.dtype(out_dtype) if out_dtype and names.is_float(like) else like.dtype
            out[n] = (CODES[dtype], like.shape)
    return out


def sources_of(jobs: Sequence[Job]) -> list[Leaves]:
    """Everything that jobs read."""
    sides = [v for job in jobs for extra in job.extras for v in extra.values()]
    models = [m for job in jobs for m in (job.base, *job.models)]
    return [m for m in (*models, *sides) if isinstance(m, Leaves)]


def merge_jobs(
    jobs: Sequence[Job],
    out: str | os.PathLike,
    *,
    out_dtype: Any = None,
    digest: str = "",
    metadata: Mapping[str, str] | None = None,
    shard_size: int = 5_000_000_000,
    resume: bool = False,
    force: bool = False,
    nonfinite: str = "raise",
    devices: Sequence[Any] = (),
    files: Callable[[Report], Mapping[str, bytes | Path]] = lambda report: {},
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    group: Group = Group(),
) -> Report:
    """Run jobs into one checkpoint folder.

    Args:
        out_dtype: of floating leaves; by default each keeps the base's.
        digest: identifies this merge for `resume`.
        nonfinite: "raise" refuses NaN and Inf by leaf, "zero" counts them as no change.
        devices: spread leaves over these; by default jax's default device.
        files: further files of the output, asked for when all leaves are written.
        progress: called with a phase, bytes done and bytes in all.
        group: of processes that write one output, each its own shards; see `process_group`.

    Raises:
        UserError: the output exists, the disk is too small; partial work stays for `resume`.  An
            input changed while it was merged; nothing stays.
        ValueError: models that do not fit together, NaN or Inf.
    """
    began = time.perf_counter()
    zero = check_choice(nonfinite)
    for job in jobs:
        check_job(job)
    tensors = tensors_of(jobs, out_dtype)
    writer = Writer(
        out, tensors, digest=digest, metadata=metadata, shard_size=shard_size,
        resume=resume, force=force, group=group,
    )  # fmt: skip
    report = Report(str(writer.out), parameters=sum(math.prod(s) for _, s in tensors.values()))
    from jaxmerge.walk import Run

    try:
        run = Run(jobs, writer, report, zero, devices, progress, out_dtype)
        run.all()
        report.seconds = time.perf_counter() - began
        further = files(report) if group.index == 0 else {}
        wrong = changed(sources_of(jobs))
        if wrong:
            writer.discard()
            raise UserError(
                f"{len(wrong)} input file{'s' * (len(wrong) > 1)} changed while they were merged: "
                f"{', '.join(wrong[:5])}. Nothing was written; merge again when they are at rest."
            )
        writer.commit(further)
    except BaseException:
        writer.close()
        raise
    report.seconds = time.perf_counter() - began
    return report


def process_group() -> Group:
    """The processes of `jax.distributed`, if it was initialized; else this one alone."""
    import jax

    if jax.process_count() == 1:
        return Group()
    from jax.experimental.multihost_utils import sync_global_devices

    return Group(jax.process_index(), jax.process_count(), sync_global_devices)


def merge_files(
    method: Merge,
    *,
    models: Sequence[Any],
    out: str | os.PathLike,
    base: Any = None,
    dtype: Any = None,
    key: Any = None,
    **options: Any,
) -> Report:
    """Merge checkpoints from files into a folder, leaf by leaf.

    Args:
        method: any registered method, or a chain of stages.
        models: references (see `jaxmerge.io.sources`), or lazy mappings of leaves.
        out: the folder to write; config and tokenizer come from the base or the first model.
        base: theta_0, likewise; None stands for zeros.
        dtype: of floating leaves; by default each keeps the base's.
        key: PRNG key, for methods that draw.
        options: of `merge_jobs`: resume, force, shard_size, nonfinite, devices, progress.

    Returns:
        A `Report`.

    Example:
        >>> import tempfile, jaxmerge as jm
        >>> from safetensors.numpy import load_file, save_file
        >>> folder = tempfile.mkdtemp()
        >>> for name, value in (("base", 0), ("a", 1), ("b", -3)):
        ...     save_file({"w": np.full(2, value, np.float32)}, f"{folder}/{name}.safetensors")
        >>> models = [f"{folder}/a.safetensors", f"{folder}/b.safetensors"]
        >>> report = jm.merge_files(
        ...     jm.magmax(), base=f"{folder}/base.safetensors", models=models, out=f"{folder}/out"
        ... )
        >>> load_file(f"{folder}/out/model.safetensors")["w"]
        array([-1.5, -1.5], dtype=float32)
    """
    from jaxmerge.io.sources import Source, keep_apart, open_source, tokenizer_files

    if isinstance(models, str | os.PathLike):
        raise ValueError(
            f"models must be a list of references, got {models!r}: write [{models!r}]."
        )
    opened = lambda ref: ref if isinstance(ref, Leaves) else open_source(ref)
    theta = None if base is None else opened(base)
    rows = [opened(m) for m in models]
    for source in (theta, *rows):
        keep_apart(out, source.files if isinstance(source, Source) else ())
    first = rows[0] if theta is None else theta
    files = {p.name: p for p in tokenizer_files(getattr(first, "folder", None))}
    job = Job(method, rows, theta, key)
    kind = None if dtype is None else _floating(dtype)
    options.setdefault("metadata", {"format": "pt"})
    options.setdefault("digest", _digest(job, kind))
    return merge_jobs([job], out, out_dtype=kind, files=lambda report: files, **options)


def _digest(job: Job, dtype: Any) -> str:
    from jaxmerge.io.sources import Source

    stamps = [s.stamp() if isinstance(s, Source) else s.like for s in (job.base, *job.models) if s]
    text = repr((job.method, stamps, dtype, job.key))
    return hashlib.sha256(text.encode()).hexdigest()


def _floating(dtype: Any) -> np.dtype:
    import ml_dtypes  # noqa: F401 - makes numpy know bfloat16

    found = np.dtype(dtype)
    if not names.is_float(Like((), found)):
        raise ValueError(f"dtype must be a floating one, got {found}.")
    return found
