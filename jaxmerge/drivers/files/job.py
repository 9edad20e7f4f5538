"""A `Job` says how leaves of the output come about; it is checked before any value is read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.core import names
from jaxmerge.core.composition import Pipeline, keep_base, resolve
from jaxmerge.core.keys import Piece, leaf_key
from jaxmerge.core.types import Merge
from jaxmerge.core.validation import check_count, check_method, grid_of
from jaxmerge.errors import screen
from jaxmerge.io.architectures import architecture
from jaxmerge.io.header import CODES
from jaxmerge.io.safetensors import Leaves, Like


@dataclasses.dataclass
class Job:
    """How some leaves of the output come about.

    Attributes:
        method: the merge.
        models: what is merged.
        base: theta_0; None stands for zeros, then leaves are those of the first model.
        key: PRNG key, for methods that draw.
        extras: per model, side information such as ``{"fisher": leaves}``.

    >>> import tempfile
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> import jaxmerge as jm
    >>> from jaxmerge.io.safetensors import File
    >>> path = tempfile.mkdtemp() + "/m.safetensors"
    >>> save_file({"w": np.ones(2, np.float32), "n": np.ones(2, np.int32)}, path)
    >>> job = Job(jm.mean(), [File(path), File(path)])
    >>> sorted(job.like), list(job.grid)
    (['n', 'w'], ['w'])
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


SHOWN = 3  # leaves named of each kind and model; a message fits on a screen


def mismatches(job: Job) -> list[str]:
    """Everything that keeps the models of a job from being merged, with a few leaves of each kind.

    Dtypes may differ between models; names and shapes of merged leaves may not.  Leaves that stay
    as in the base need not be in the models, and a model may have more of such.
    """
    wrong, like = [], job.like
    for t, model in enumerate(job.models):
        who = getattr(model, "ref", "") or f"model {t}"
        missing = [n for n in job.grid if n not in model]
        extra = [n for n in model if n not in like and not _stays(job.method, n, model.like[n])]
        prefix = _prefix(model, like) if missing and extra else None
        if prefix is not None:
            wrong.append(f"{who}: {prefix}")
            continue
        fits = lambda a, b: a.shape == b.shape and names.is_float(a) == names.is_float(b)
        other = [n for n in job.grid if n in model and not fits(model.like[n], like[n])]
        kind, base = {n: names.kind(x) for n, x in model.like.items()}, job.like
        lines = (
            [f"missing leaf {n!r} ({names.kind(base[n])} in the base)" for n in missing],
            [f"leaf {n!r} is {kind[n]}, the base has {names.kind(base[n])}" for n in other],
            [f"extra leaf {n!r} ({kind[n]}), which the base lacks{_tied(job, n)}" for n in extra],
        )
        for group in lines:
            more = f", and {len(group) - SHOWN} more such leaves" if len(group) > SHOWN else ""
            shown = group[:SHOWN]
            wrong += [f"{who}: {s}{more if s is shown[-1] else ''}" for s in shown]
    return wrong


def _tied(job: Job, name: str) -> str:
    """That a leaf is tied to another one in the base and has values of its own here."""
    copies = () if job.base is None else architecture(job.base).copies(name)
    stored = next((n for n in copies if n in job.like), None)
    if stored is None:
        return ""
    return (
        f": there it is tied to {stored!r}, here it has values of its own; store the base with "
        "both leaves and tie_word_embeddings false"
    )


def _stays(method: Merge, name: str, like: Like) -> bool:
    """Whether a leaf that the base lacks would stay as in the base if it were there."""
    if not names.is_float(like):
        return False
    try:
        return all(map(_copied, resolve(method, {name: like}).values()))
    except (KeyError, ValueError):  # the method knows the leaves of the base only
        return False


def _prefix(model: Leaves, like: Mapping[str, Like]) -> str | None:
    """What to do where names are equal but for a prefix that all names of one side share."""
    for theirs in _prefixes(model):
        if {n.removeprefix(theirs) for n in model} >= set(like):
            return (
                f"all its names begin with {theirs!r}, and without it they fit; write in the "
                f"recipe rename: {{MODEL: {{{theirs!r}: ''}}}}"
            )
    for ours in _prefixes(like):
        if set(model) >= {n.removeprefix(ours) for n in like}:
            return (
                f"its names lack {ours!r}, with which all names of the base begin, and with it "
                f"they fit; write in the recipe rename: {{MODEL: {{'': {ours!r}}}}}"
            )
    return None


def _prefixes(all_names: Iterable[str]) -> list[str]:
    """The segments with which all names begin: one, two, ..."""
    low, high = min(all_names, default=""), max(all_names, default="")
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), 0)
    return [low[: i + 1] for i, c in enumerate(low[:same]) if c in "./"]


def check_job(job: Job) -> None:
    """Raise one ValueError that names every mismatch; see also `jaxmerge.core.validation`."""
    check_method(job.method, job.key)
    if not job.models:
        raise ValueError(f"{job.method} needs at least 1 model, got none.")
    check_count(job.method, len(job.models), whole=True)
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
            "The models do not fit together:\n  "
            + "\n  ".join(screen(wrong))
            + "\nGive every model the "
            "leaves of the base in its shapes, or merge only those that fit: rules: {only: regex} "
            "leaves the rest as in the base."
        )


def tensors_of(jobs: Sequence[Job], out_dtype: Any = None) -> dict[str, tuple[str, tuple]]:
    """Name -> (dtype code, shape) of the output; floating leaves in `out_dtype` if one is given."""
    out: dict[str, tuple[str, tuple]] = {}
    for job in jobs:
        twice = [n for n in job.like if n in out]
        if twice:
            raise ValueError(f"{len(twice)} leaves come from two jobs, for example {twice[:3]}.")
        for n, like in job.like.items():
            dtype = np.dtype(out_dtype) if out_dtype and names.is_float(like) else like.stored
            out[n] = (CODES[dtype], like.shape)
    return out


def sources_of(jobs: Sequence[Job]) -> list[Leaves]:
    """Everything that jobs read."""
    sides = [v for job in jobs for extra in job.extras for v in extra.values()]
    models = [m for job in jobs for m in (job.base, *job.models)]
    return [m for m in (*models, *sides) if isinstance(m, Leaves)]


def piece_key(job: Job, name: str, start: int) -> Piece:
    """The key of the piece of a leaf that begins at entry `start`, and where that is."""
    return Piece(leaf_key(job.key, name), np.uint32(start % 2**32))
