"""Facts that couple leaves, gathered from files: `jaxmerge.drivers.measuring` fed leaf by leaf.

Facts about single leaves are gathered when the leaf is merged anyway; facts about whole rows cost
passes over the models, facts about the folded cells one more.  Large leaves are cut where that
gives the same facts: where they are counts over entries that do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxmerge.core.composition import Pipeline
from jaxmerge.core.keys import leaf_key
from jaxmerge.drivers.files.chunks import cast, pieces, run_all
from jaxmerge.drivers.files.job import Job, piece_key
from jaxmerge.drivers.files.measuring_cuts import cuts_cells, cuts_row
from jaxmerge.drivers.files.memory_budget import SLICES, WALK, facts_like, input_bytes, row_bytes
from jaxmerge.drivers.leaf import LeafInputs, fold_leaf
from jaxmerge.drivers.measuring import measure_cells, measure_opening, measure_row, side
from jaxmerge.io.safetensors import aligned
from jaxmerge.numerics.host_rows import Sliced


def _bytes(job: Job, name: str) -> int:
    return sum(s.like[name].nbytes for s in (job.base, *job.models) if s is not None)


def _needs_closing(p: Pipeline) -> bool:
    return p.fold.closing is not None or any(t.measure for t in p.after)


def own_need(job: Job, name: str, keep: bool) -> int:
    """Bytes that gathering the facts about a leaf of its own takes; `keep`: all of it is held."""
    p, whole = job.grid[name], input_bytes(job, name)
    if keep:
        return whole + SLICES
    first, *others = [*(t.measure for t in p.before), p.fold.measure]
    sliced = first is not None and first.host is not None and not any(others)
    return SLICES if sliced else row_bytes(job, name)


class Facts:
    """What couples leaves or entries, for one job: the `measured` of every stage, by leaf."""

    def __init__(self, run: Any, job: Job):
        self.run, self.job = run, job
        opening = any(p.fold.opening for p in job.grid.values())
        self.leafwise = not opening and not any(
            m is not None and m.scope == "row"
            for p in job.grid.values()
            for m in (*(t.measure for t in p.before), p.fold.measure)
        )
        self.known: dict[str, tuple] = {}
        self.rows: list[dict[str, tuple]] = []
        if not self.leafwise:
            self.rows = self._rows()
        if opening:
            self._openings()
        self.closed: dict[str, tuple] = {}
        if any(_needs_closing(p) for p in job.grid.values()):
            self.known = {n: self.of(n, None) for n in job.grid}
            self.closed = self._cells()

    def local(self, name: str) -> bool:
        """Whether the leaf must be read whole for facts of its own."""
        if not self.leafwise or name in self.known:
            return False
        p = self.job.grid[name]
        return p.fold.measure is not None or any(t.measure is not None for t in p.before)

    def closing(self, name: str) -> tuple | None:
        return self.closed.get(name)

    def of(self, name: str, blocks: list[np.ndarray] | None) -> tuple:
        """Per model, the summaries that the stages of this leaf receive."""
        if name in self.known:
            return self.known[name]
        if not self.leafwise:
            return tuple(row[name] for row in self.rows)
        p, job = self.job.grid[name], self.job
        if not self.local(name):
            return ((None,) * (len(p.before) + 1),) * len(job.models)
        shape = job.like[name].shape

        def block(i: int) -> Any:
            return Unread(self.run, job, i, name) if blocks is None else blocks[i].reshape(shape)

        base = block(0)

        def measure(t: int) -> tuple:  # nothing but the base is held from one model to the next
            return measure_row(
                {name: p}, {name: base}, {name: block(t + 1)}, job.key, np.int32(t),
                self._extra(t), self.run.zero,
            )[name]  # fmt: skip

        return tuple(measure(t) for t in range(len(job.models)))

    def _extra(self, t: int) -> Mapping[str, Any]:
        return self.job.extras[t] if self.job.extras else {}

    def _rows(self) -> list[dict[str, tuple]]:
        """Walk every model's leaves as often as its row measures ask."""
        job, run = self.job, self.run
        run.phase, run.done_bytes = "measure", 0
        run.total = 2 * sum(_bytes(job, n) for n in job.grid)
        grid, base, models = cut_grid(job, run, lambda n: cuts_row(job, n))
        rows: list[Any] = [None] * len(models)

        def one(t: int) -> None:
            def walk(names):
                for n in names:
                    if run.stop.is_set():
                        raise InterruptedError
                    with run.room.take(row_bytes(job, n) if SEPARATOR not in n else WALK):
                        b, m = base[n], models[t][n]
                        yield n, b, m
                    run.note(m.nbytes)
                    del b, m

            rows[t] = measure_row(
                grid, base, models[t], job.key, np.int32(t), self._extra(t), run.zero, walk
            )

        run_all(one, [(t,) for t in range(len(models))], run.stop)
        run.report.passes += 1
        return [{_uncut(n): v for n, v in row.items()} for row in rows]

    def _openings(self) -> None:
        """Before every model, fold those before it once more for the facts about the cells."""
        job, run = self.job, self.run
        for t, row in enumerate(self.rows):

            def cuts(n, rows=tuple(self.rows[:t])):
                return cuts_cells(
                    job, run.strategy, n, job.grid[n].fold.opening, tuple(r[n] for r in rows)
                )

            grid, base, models = cut_grid(job, run, cuts)
            cells = Cells(self, grid, base, models[:t])
            openings = measure_opening(grid, cells, {n: row[_uncut(n)] for n in grid})
            self.rows[t] = {_uncut(n): v for n, v in openings.items()}
            run.report.passes += 1

    def _cells(self) -> dict[str, tuple]:
        """Fold every leaf once more for the facts about the folded cells."""
        job, run = self.job, self.run
        run.phase, run.done_bytes = "close", 0
        run.total = sum(_bytes(job, n) for n in job.grid)
        closing = lambda n: job.grid[n].fold.closing
        cuts = lambda n: cuts_cells(job, run.strategy, n, closing(n), self.known[n])
        grid, base, models = cut_grid(job, run, cuts)
        cells = Cells(self, grid, base, models)
        facts = measure_cells(grid, base, cells, job.key, np.int32(len(models)))
        run.report.passes += 1
        return {_uncut(n): v for n, v in facts.items()}


class Cells(Mapping):
    """The folded cell of every leaf, computed when asked for."""

    def __init__(self, facts: Facts, grid, base, models):
        self.facts, self.grid, self.base, self.models = facts, grid, base, models

    def __getitem__(self, n: str) -> Any:
        run, job = self.facts.run, self.facts.job
        name, start, *_ = _span(n, job)
        key = leaf_key(job.key, name) if n == name else piece_key(job, name, start)
        sides = tuple(side(e, name) for e in job.extras or ({},) * len(job.models))
        measured = self.facts.of(name, None)
        whole = n == name and len(self.models) == len(job.models)
        like = facts_like(job, name, run.zero) if whole else ((), None)
        need = run.strategy.needs_of(job, name, *like)[0] if whole else 0
        with run.room.take(need):
            models = tuple(m[n] for m in self.models)
            run.note(sum(m.nbytes for m in models))
            inputs = LeafInputs(self.base[n], models, key, measured=measured, extras=sides)
            return jax.block_until_ready(fold_leaf(self.grid[n].specs, inputs, run.zero))

    def __iter__(self):
        return iter(self.grid)

    def __len__(self):
        return len(self.grid)


class Unread(Sliced):
    """A leaf of the base (0) or a model (1 ...), read in slices, cast and checked for NaN."""

    def __init__(self, run: Any, job: Job, i: int, name: str):
        self.run, self.job, self.i, self.name = run, job, i, name
        self.source, self.like = (job.base, *job.models)[i], run.strategy.base_like(job, name)
        own = self.like if self.source is None or i == 0 else self.source.like[name]
        self.shape, self.dtype, self.size = self.like.shape, own.dtype, self.like.size

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, step = part.indices(self.size)
        if self.source is None:
            return np.zeros(len(range(start, stop, step)), self.dtype)
        block = aligned(stop - start, self.source.like[self.name].dtype)
        self.source.into(block, self.name, start)
        self.run.check_finite(self.job, self.name, self.i, block)
        return cast(block[::step], self.dtype)

    def load(self) -> np.ndarray:
        return self[:].reshape(self.shape)


class Checked(Mapping):
    """The base (0) or a model (1 ...) of a job as whole leaves, cast and checked for NaN."""

    def __init__(self, run: Any, job: Job, i: int):
        self.run, self.job, self.i = run, job, i

    def __getitem__(self, n: str) -> np.ndarray:
        name, start, stop, row = _span(n, self.job)
        leaf = Unread(self.run, self.job, self.i, name)
        shape = leaf.shape if row == 0 else (-1, *leaf.shape[1:]) if row > 1 else (-1,)
        return leaf[start:stop].reshape(shape)

    def __iter__(self):
        return iter(self.job.like)

    def __len__(self):
        return len(self.job.like)


SEPARATOR, PIECE_ENTRIES = "\0", 1 << 20  # entries of a piece


def cut_grid(job: Job, run: Any, cuts: Callable[[str], int]):
    """The grid with those large leaves cut into pieces of which `cuts` says that this gives the
    same facts: 1 for any pieces, more for whole rows of so many entries, 0 for none.  Returns it
    with the base and the models under the same names."""
    grid: dict[str, Pipeline] = {}
    for n, p in job.grid.items():
        size = job.like[n].size
        row = cuts(n) if size > PIECE_ENTRIES else 0
        if row:
            for start, stop in pieces(size, max(1, PIECE_ENTRIES // row) * row):
                grid[SEPARATOR.join((n, str(start), str(stop), str(row)))] = p
        else:
            grid[n] = p
    return grid, Checked(run, job, 0), [Checked(run, job, t + 1) for t in range(len(job.models))]


def _uncut(n: str) -> str:
    return n.partition(SEPARATOR)[0]


def _span(n: str, job: Job) -> tuple[str, int, int, int]:
    name, *span = n.split(SEPARATOR)
    start, stop, row = map(int, span) if span else (0, job.like[name].size, 0)
    return name, start, stop, row
