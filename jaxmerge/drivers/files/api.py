"""The file driver: walk the grid of `jaxmerge.core.types` leaf by leaf, from file to file.

A `Job` says how some leaves of the output come about: a method, a base, models, each a lazy mapping
(`jaxmerge.io`).  `merge_jobs` runs one or more of them into one output folder:

1. facts that couple leaves (a global k-th magnitude, the norm of the merged vector) are gathered in
   as many passes over the files as they need;
2. then every leaf is read, merged and written to its place, several at a time, so that reading,
   computing and writing overlap.  Where `jaxmerge.drivers.files.elementwise_proof` proves that
   entries do not mix, a leaf goes through in pieces, so memory depends neither on its size nor on
   the number of models.

The arithmetic is that of `jaxmerge.drivers.leaf`, which the in-memory driver calls too: same bits.
The writer's journal makes an interrupted merge resumable.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jax.typing import DTypeLike

from jaxmerge.core.hyperparameters import check_choice
from jaxmerge.core.types import Device
from jaxmerge.core.validation import check_nonfinite
from jaxmerge.drivers.files.job import Job, Report, check_job, sources_of, tensors_of
from jaxmerge.drivers.files.worker import Run
from jaxmerge.errors import UserError
from jaxmerge.io.safetensors import changed
from jaxmerge.io.writer import Group, Writer

OVERFLOW = ("raise", "clip", "allow")


def merge_jobs(
    jobs: Sequence[Job],
    out: str | os.PathLike,
    *,
    out_dtype: DTypeLike | None = None,
    digest: str = "",
    metadata: Mapping[str, str] | None = None,
    shard_size: int = 5_000_000_000,
    resume: bool = False,
    force: bool = False,
    nonfinite: str = "raise",
    overflow: str = "raise",
    devices: Sequence[Device] = (),
    files: Callable[[Report], Mapping[str, bytes | Path]] = lambda report: {},
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    group: Group = Group(),
    parts: Mapping[str, str] | None = None,
    single: str = "model.safetensors",
) -> Report:
    """Run jobs into one checkpoint folder.

    Args:
        jobs: how the leaves come about, at least one; no leaf in two of them.
        out: the folder to write.
        out_dtype: of floating leaves; by default each keeps the base's.
        digest: identifies this merge for `resume`.
        metadata: of the headers of the files.
        shard_size: the most bytes of a file, but for a leaf that is larger.
        resume: go on with what an interrupted merge of the same digest left.
        force: replace an output that exists.
        nonfinite: "raise" refuses NaN and Inf of inputs by leaf, "zero" counts them as no change.
        overflow: "raise" refuses NaN and Inf of the output that no input has, "clip" stores the
            greatest finite value of the dtype, "allow" stores what comes.
        devices: spread leaves over these; by default jax's default device.
        files: further files of the output, asked for when all leaves are written.
        progress: called with a phase, bytes done and bytes in all.
        group: of processes that write one output, each its own shards; see `process_group`.
        parts: component -> name of its file, where the output is a pipeline of several models.
        single: name of the file, where one is enough.

    Raises:
        UserError: the output exists, the disk is too small; partial work stays for `resume`.  An
            input changed while it was merged; nothing stays.
        ValueError: models that do not fit together, NaN or Inf; nothing stays.

    >>> import tempfile
    >>> import jaxmerge as jm, numpy as np
    >>> from jaxmerge.io.sources import open_source
    >>> from safetensors.numpy import load_file, save_file
    >>> folder = tempfile.mkdtemp()
    >>> for name, value in (("base", 0), ("a", 1), ("b", -3)):
    ...     save_file({"w": np.full(2, value, np.float32)}, f"{folder}/{name}.safetensors")
    >>> base, a, b = (open_source(f"{folder}/{n}.safetensors") for n in ("base", "a", "b"))
    >>> report = merge_jobs([Job(jm.magmax(), [a, b], base)], f"{folder}/out")
    >>> load_file(f"{folder}/out/model.safetensors")["w"]
    array([-1.5, -1.5], dtype=float32)
    """
    began = time.perf_counter()
    zero = check_nonfinite(nonfinite)
    check_choice("overflow", overflow, OVERFLOW)
    for job in jobs:
        check_job(job)
    tensors = tensors_of(jobs, out_dtype)
    writer = Writer(
        out, tensors, digest=digest, metadata=metadata, shard_size=shard_size,
        resume=resume, force=force, group=group, single=single, parts=parts,
    )  # fmt: skip
    report = Report(str(writer.out), parameters=sum(math.prod(s) for _, s in tensors.values()))
    try:
        run = Run(jobs, writer, report, zero, devices, progress, out_dtype, overflow)
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
    except BaseException as error:
        if isinstance(error, ValueError) and group.count == 1:
            writer.discard()  # the same merge would fail again
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
