"""Streams in which earlier examples are shuffled into every task: naive rehearsal."""

from __future__ import annotations

import numpy as np

from jaxmerge.continual.hook_calls import kind
from jaxmerge.continual.padding import batched, padded, rows_and_weights
from jaxmerge.continual.stream_records import Stream
from jaxmerge.core.draws import draws
from jaxmerge.core.ranges import Count, unfit
from jaxmerge.core.specs import Static
from jaxmerge.errors import listed


def rehearsed(stream: Stream, size: int, *, epochs: int | None = None, seed: int = 0) -> Stream:
    """A stream whose tasks are learnt from their own examples and a memory of earlier ones.

    The memory has an equal share of each of the t earlier tasks, ``size // t`` examples, the first
    of a random order of the task's own.  A pass over task t shows each of its n examples once and
    the whole memory ``max(n // size, 1)`` times, so that old and new examples count about alike,
    in random order.

    It is a plan of the data alone: methods, optimisers and merges learn on it as on any stream (of
    clients first this, then `federated`).  Its memory is not part of the model's state, and an
    example keeps the task that it is from (`Stream.origin`); what methods read of a task at its
    borders are its own examples.

    Args:
        stream: its tasks hold examples of their own alone; the order of its batches does not
            matter, their size does, and of their weights whether they are 0.
        size: examples in the memory, one or more for each earlier task.
        epochs: passes over a task; None: as many as the stream has.
        seed: of all that is drawn.

    Raises:
        ValueError: what is no stream, or one with examples of other tasks in a task; numbers out of
            their ranges.

    Source: Hsu et al., Re-evaluating Continual Learning Scenarios, 2018, "naive rehearsal";
    GT-RIPL/Continual-Learning-Benchmark, ``agents/exp_replay.py``.

    >>> from jaxmerge.continual.streams import split
    >>> x, y = np.zeros((12, 3), np.float32), np.arange(12) % 4
    >>> plain = split((x, y), (x, y), [[0, 1], [2, 3]], batch=2)
    >>> plain.rows.shape, rehearsed(plain, 3).rows.shape  # the memory of three is shown twice
    ((2, 3, 2), (2, 6, 2))
    """
    wrong = unfit(Count, size=size, **({} if epochs is None else {"epochs": epochs}))
    if not isinstance(stream, Stream):
        wrong.insert(0, f"rehearsed takes a `Stream`, of `split` for one, got {kind(stream)}")
    elif not wrong and size < stream.tasks - 1:
        wrong.append(f"{size} examples cannot be shared out to {stream.tasks - 1} earlier tasks")
    if wrong:
        raise ValueError(listed(wrong))
    rng, batch = draws(seed, 3), stream.rows.shape[2]
    plans, earlier = [], []
    every = (np.asarray(x) for x in (stream.rows, stream.origin, stream.weight))
    for t, (rows, origin, weight) in enumerate(zip(*every, strict=True)):
        shown = weight > 0
        if (others := origin[shown]).size and (others != t).any():
            raise ValueError(f"Task {t} of the stream holds examples of other tasks already.")
        own = rng.permutation(np.unique(rows[shown]))
        passes = epochs or max(round(shown.sum() / max(len(own), 1)), 1)
        kept = [pairs[: size // t] for pairs in earlier]
        new = np.stack([own, np.full_like(own, t)], 1)
        whole = np.concatenate([new, *kept * max(len(own) // size, 1)])
        each = [batched(rng.permutation(whole), batch) for _ in range(passes)]
        plans.append(np.concatenate(each))
        earlier.append(new)
    at = padded(plans)
    rows, weight = rows_and_weights(at[..., 0])
    return stream._replace(
        rows=rows, origin=np.maximum(at[..., 1], 0).astype(np.int32), weight=weight,
        sample=padded(earlier)[..., 0].astype(np.int32), promise=Static("nothing"),
    )  # fmt: skip
