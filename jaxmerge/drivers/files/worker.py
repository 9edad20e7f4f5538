"""Leaf by leaf through the files: what `jaxmerge.drivers.files.api` does once the jobs are checked.

A leaf is read (base and all models), merged by the compiled functions of `jaxmerge.drivers.leaf`,
written to its place and entered into the journal, on a few threads at a time.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxmerge.core import names
from jaxmerge.core.keys import leaf_key
from jaxmerge.drivers.files.chunks import (
    HOT,
    Room,
    all_finite,
    bounds,
    cast,
    convert,
    give_back,
    infinite,
    longest_piece,
    piece_length,
    pieces,
    run_all,
)
from jaxmerge.drivers.files.job import Job, piece_key
from jaxmerge.drivers.files.leaf_program import merge_part, merge_whole, part_sums
from jaxmerge.drivers.files.measuring import Facts, own_need
from jaxmerge.drivers.files.memory_budget import PIECES, ROOM, input_bytes
from jaxmerge.drivers.files.side_information import piece_of_sides, sides_of
from jaxmerge.drivers.files.strategy import Cut, Strategy, entry_bytes
from jaxmerge.drivers.leaf import LeafInputs, finish_leaf, start_leaf, update_donated
from jaxmerge.drivers.measuring import beside_on_host
from jaxmerge.errors import screen
from jaxmerge.io.safetensors import Like, aligned
from jaxmerge.numerics.blas_threads import shared_out


class Overflow(ValueError):
    """Finite inputs gave NaN or Inf in the output."""


class Run:
    """One run of `merge_jobs`: the facts, then the leaves."""

    def __init__(self, jobs, writer, report, zero, devices, progress, out_dtype, overflow="raise"):
        self.jobs, self.writer, self.report, self.zero = jobs, writer, report, zero
        self.strategy, self.overflow = Strategy(zero, out_dtype, overflow), overflow
        self.devices = list(devices) or [None]
        self.lock, self.stop, self.room = threading.Lock(), threading.Event(), Room(ROOM)
        self.refusing, self.refusal = threading.Lock(), ""
        self.progress, self.phase, self.done_bytes, self.total = progress, "merge", 0, 0

    def all(self) -> None:
        self.report.resumed = len(self.writer.done)
        with shared_out(sum(p.decomposes for job in self.jobs for p in job.grid.values())):
            self._all()

    def _all(self) -> None:
        tasks = []
        for job in self.jobs:
            todo = [n for n in job.like if n in self.writer.mine and n not in self.writer.done]
            facts = Facts(self, job) if any(n in job.grid for n in todo) else None
            tasks += [(job, facts, n) for n in todo]
        self.phase, self.done_bytes = "merge", 0
        self.total = sum(input_bytes(job, n) for job, _, n in tasks)
        run_all(self.leaf, tasks, self.stop)

    # ------------------------------------------------------------ one leaf

    def leaf(self, job: Job, facts: Any, name: str) -> None:
        """Merge or copy one leaf; `facts` are the job's `Facts`, None where it only copies."""
        device = (
            self.devices[zlib.crc32(name.encode()) % len(self.devices)]
            if len(self.devices) > 1
            else None
        )
        device = device or self.devices[0]
        with jax.default_device(device):
            if name in job.grid:
                self.merge_one(job, facts, name)
            else:
                self.copy_one(job, name)
        self.writer.finish_leaf(name)
        entry = self.writer.entries[name]
        with self.lock:
            self.report.written += entry.stop - entry.start

    def copy_one(self, job: Job, name: str) -> None:
        source = job.models[0] if job.base is None else job.base
        like, target = job.like[name], self.strategy.target(job.like[name])
        for start, stop in pieces(like.size, (1 << 22) // max(1, like.dtype.itemsize) * 2):
            block = source.read(name, start, stop)
            self.store(name, block, target, block, start)
            self.note(block.nbytes)
        with self.lock:
            self.report.copied += 1

    def merge_one(self, job: Job, facts: Facts, name: str) -> None:
        like, local = job.like[name], facts.local(name)
        whole = input_bytes(job, name)
        keep = local and whole <= ROOM // 2  # read once: for the facts and for the merge
        with self.room.take(own_need(job, name, keep) if local else 0):
            blocks = self.read_blocks(job, name, 0, like.size, like.size, None) if keep else None
            measured, closing = facts.of(name, blocks), facts.closing(name)
            cut = self.strategy.cut(job, name, measured, closing)
            mode, need = self.strategy.of(job, name, cut, measured, closing)
            if mode == "pieces" and cut is not None:
                self.in_pieces(job, name, measured, closing, blocks, cut)
        if mode != "pieces":
            blocks = None
            with self.room.take(need):
                merge = self.at_once if mode == "at once" else self.one_by_one
                merge(job, name, measured, closing)
        with self.lock:
            self.report.merged += 1

    def in_pieces(self, job, name, measured, closing, leaves, cut: Cut) -> None:
        """The leaf in pieces: once for every round of sums over it, to add them up, and once to
        merge."""
        like, specs = job.like[name], job.grid[name].specs
        base_like, target = self.strategy.base_like(job, name), self.strategy.target(like)
        longest = longest_piece(PIECES, entry_bytes(job, name) + base_like.dtype.itemsize)
        longest = max(longest // cut.row, 1) * cut.row if cut.row else longest
        totals: dict[int, np.ndarray] = {}
        for turn in (*range(1, max(cut.rounds, default=0) + 1), 0):
            mine = [i for i, at in enumerate(cut.rounds) if at == turn]
            known = tuple(totals[i] for i in sorted(totals))
            for start, stop in pieces(like.size, longest):
                if self.stop.is_set():
                    raise InterruptedError
                count = stop - start
                pad = count if cut.rounds or cut.row else piece_length(count, longest)
                shape = (count // cut.row, *like.shape[1:]) if cut.row else (pad,)
                blocks = self.read_blocks(job, name, start, stop, pad, leaves)
                base, key = cast(blocks[0], base_like.dtype), piece_key(job, name, start)
                rows = tuple(b.reshape(shape) for b in blocks[1:])
                sides = piece_of_sides(job, name, start, stop, shape)
                inputs = LeafInputs(base.reshape(shape), rows, key, measured=measured, extras=sides)
                inputs = beside_on_host(job.grid[name], inputs, self.zero)
                args = specs, closing, inputs, self.zero
                if turn:
                    for i, part in zip(
                        mine, part_sums(*args, cut.rounds, turn, known), strict=True
                    ):
                        wide = np.float64 if np.issubdtype(part.dtype, np.inexact) else np.int64
                        totals[i] = totals.get(i, 0) + np.asarray(part, wide)
                    continue
                out = merge_part(*args, known) if cut.rounds else merge_whole(*args)
                self.store(name, out, target, base, start, count)
                self.note(sum(b.itemsize for b in blocks) * count)

    def at_once(self, job: Job, name: str, measured: tuple, closing: tuple | None) -> None:
        """The whole leaf with all models in one compiled pass."""
        like, sides = job.like[name], sides_of(job, name)
        base, *models = self.read_blocks(job, name, 0, like.size, like.size, None)
        base = cast(base, self.strategy.base_like(job, name).dtype).reshape(like.shape)
        rows, key = tuple(m.reshape(like.shape) for m in models), leaf_key(job.key, name)
        inputs = LeafInputs(base, rows, key, measured=measured, extras=sides)
        inputs = beside_on_host(job.grid[name], inputs, self.zero)
        out = merge_whole(job.grid[name].specs, closing, inputs, self.zero)
        self.store(name, out, self.strategy.target(like), base)
        self.note(input_bytes(job, name))

    def one_by_one(self, job: Job, name: str, measured: tuple, closing: tuple | None) -> None:
        """The same fold over a large leaf, reading one model at a time."""
        like, pipeline = job.like[name], job.grid[name]
        key = leaf_key(job.key, name)
        (base,) = self.read_blocks(job, name, 0, like.size, like.size, None, (0,))
        base = cast(base, self.strategy.base_like(job, name).dtype).reshape(like.shape)
        cell = start_leaf(pipeline.specs, base)
        for t, model in enumerate(job.models):
            if self.stop.is_set():
                raise InterruptedError
            (row,) = self.read_blocks(job, name, 0, like.size, like.size, None, (t + 1,))
            side_of_it = sides_of(job, name, slice(t, t + 1))
            inputs = LeafInputs(
                base, (row.reshape(like.shape),), key, np.int32(t), (measured[t],), side_of_it
            )
            inputs = beside_on_host(pipeline, inputs, self.zero)
            cell = update_donated(pipeline.specs, cell, inputs, self.zero)
            jax.block_until_ready(cell)
            self.note(model.like[name].nbytes)
            del row, side_of_it, inputs
            give_back()  # the programs that follow find other places for what they need
        none = (None,) * (1 + len(pipeline.after))
        behind = LeafInputs(base, key=key, step=np.int32(len(job.models)), measured=closing or none)
        out = jax.block_until_ready(finish_leaf(pipeline.specs, cell, behind))
        del cell, behind
        give_back()
        self.store(name, out, self.strategy.target(like), base)

    # ------------------------------------------------------------ writing

    def store(self, name, values, target, base, start=0, count=None) -> None:
        """Write entries of a leaf in the output's dtype; finite ones stay finite.

        Args:
            base: the base's entries: where they are NaN or Inf, so may the output be.
            count: how many entries, if there are more.
        """
        limits = bounds(target) if self.overflow == "clip" else None
        if limits is not None:
            values = np.clip(np.asarray(values), *limits)
        host = isinstance(values, np.ndarray)
        out = cast(values, target) if host else np.asarray(convert(values, target))
        out = out.reshape(-1)[:count]
        looked_at = self.overflow != "allow" and names.is_float(Like((), target))
        for i, j in pieces(out.size, HOT):  # looked at and written while it is in the cache
            if looked_at and not all_finite(out[i:j]):
                was = np.asarray(base).reshape(-1)[: out.size]
                wrong = infinite(out) & ~infinite(was)
                if wrong.any():
                    raise Overflow(self._overflowed(name, np.asarray(values), wrong, target))
                looked_at = False
            self.writer.write(name, out[i:j], start + i)

    def _overflowed(self, name: str, values: np.ndarray, wrong: np.ndarray, target) -> str:
        kind, limits = np.dtype(target).name, bounds(target)
        values = np.abs(values.reshape(-1)[: wrong.size][wrong].astype(np.complex128))
        largest = values[np.isfinite(values)].max(initial=0)
        size = f"up to {largest:.6g} in magnitude, " if largest else ""
        reach = f"which reaches from {limits[0]:.6g} to {limits[1]:.6g}" if limits else ""
        return (
            f"leaf {name!r}: {int(wrong.sum())} entries of the merge are not finite in {kind} "
            f"({size}{reach or 'computed as NaN or Inf'}). Store it in a wider dtype (out_dtype: "
            'bfloat16, float32), or say overflow: "clip" (to the greatest finite value) or "allow".'
        )

    # ------------------------------------------------------------ reading

    def read_blocks(self, job, name, start, stop, length, leaves, only=None) -> list[np.ndarray]:
        """The base's and every model's entries start:stop, with zeros behind up to `length`.

        Args:
            leaves: the whole leaves, if they were read already.
            only: numbers of those wanted, the base being 0.
        """
        if leaves is not None and stop - start == length and not start * leaves[0].itemsize % 64:
            return [h[start:stop] for h in leaves]
        blocks = []
        for i, source in enumerate((job.base, *job.models)):
            if only is not None and i not in only:
                continue
            if source is None:
                blocks.append(np.zeros(length, job.like[name].dtype))
                continue
            block = aligned(length, source.like[name].dtype)
            if leaves is None:
                source.into(block[: stop - start], name, start)
                self.check_finite(job, name, i, block[: stop - start])
            else:
                block[: stop - start] = leaves[i][start:stop]
            block[stop - start :] = 0
            blocks.append(block)
        return blocks

    def check_finite(self, job: Job, name: str, i: int, block: np.ndarray) -> None:
        if not self.zero and not all_finite(block):
            with self.refusing:  # one thread looks through all leaves, the others use its list
                self.refusal = self.refusal or "\n  ".join(screen(list(self.nonfinite())))
            raise ValueError(
                f"NaN or Inf in\n  {self.refusal}\nMend the checkpoint, or pass "
                'nonfinite="zero" (of a recipe "nonfinite: zero") to count such entries as no '
                "change."
            )

    def nonfinite(self) -> Iterator[str]:
        """A line for every leaf with NaN or Inf that would be merged."""
        seen = set()
        for job in self.jobs:
            for i, source in enumerate((job.base, *job.models)):
                if source is None:
                    continue
                who = getattr(source, "ref", "") or ("the base" if i == 0 else f"model {i - 1}")
                for n in job.grid:
                    size = source.like[n].size
                    blocks = (source.read(n, *cut) for cut in pieces(size, 1 << 22))
                    count = sum(int(infinite(b).sum()) for b in blocks)
                    line = f"{who}, leaf {n!r}: {count} of {size} entries"
                    if count and line not in seen:  # jobs share models
                        seen.add(line)
                        yield line

    def note(self, count: int) -> None:
        with self.lock:
            self.report.read += count
            self.done_bytes += count
            self.progress(self.phase, self.done_bytes, self.total)
