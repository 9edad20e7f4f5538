"""Streams in which earlier examples are shuffled into every task: naive rehearsal."""

from __future__ import annotations

import numpy as np

from jaxmerge.continual.hook_calls import kind
from jaxmerge.continual.stream_records import Stream
from jaxmerge.core.ranges import Count, unfit
from jaxmerge.core.specs import Static
from jaxmerge.errors import listed


def rehearsed(stream: Stream, size: int, *, epochs: int = 1, seed: int = 0) -> Stream:
    """A stream whose tasks are learnt from their own examples and a memory of earlier ones.

    The memory has an equal share of each of the t earlier tasks, ``size // t`` examples, the first
    of a random order of the task's own.  A pass over task t shows each of its n examples once and
    the whole memory ``max(n // size, 1)`` times, so that old and new examples count alike, in
    random order.

    It is a plan of the data alone: any method, optimiser or merge learns on it.  Its memory is not
    part of the model's state, and an example keeps the task that it is from (`Stream.origin`).

    Args:
        stream: of any tasks; the order of its batches does not matter, their size does.
        size: examples in the memory, 1 or more.
        epochs: passes over a task.
        seed: of all that is drawn.

    Raises:
        ValueError: what is no stream; numbers out of their ranges.

    Source: Hsu et al., Re-evaluating Continual Learning Scenarios, 2018, "naive rehearsal";
    GT-RIPL/Continual-Learning-Benchmark, ``agents/exp_replay.py``.

    >>> from jaxmerge.continual.streams import split
    >>> x, y = np.zeros((12, 3), np.float32), np.arange(12) % 4
    >>> plain = split((x, y), (x, y), [[0, 1], [2, 3]], batch=2)
    >>> plain.rows.shape, rehearsed(plain, 3).rows.shape  # the memory of three is shown twice
    ((2, 3, 2), (2, 6, 2))
    """
    wrong = unfit(Count, size=size, epochs=epochs)
    if not isinstance(stream, Stream):
        wrong.insert(0, f"rehearsed takes a `Stream`, of `split` for one, got {kind(stream)}")
    if wrong:
        raise ValueError(listed(wrong))
    rng, batch = np.random.default_rng((seed, 3)), stream.rows.shape[2]
    plans, earlier = [], []
    every = (np.asarray(x) for x in (stream.rows, stream.origin, stream.weight))
    for t, (rows, origin, weight) in enumerate(zip(*every, strict=True)):
        shown = weight > 0
        own = rng.permutation(np.unique(np.stack([rows[shown], origin[shown]], 1), axis=0))
        kept = [pairs[: size // t] for pairs in earlier]
        whole = np.concatenate([own, *kept * max(len(own) // size, 1)])
        short = np.full((-len(whole) % batch, 2), -1)
        passes = [np.concatenate([rng.permutation(whole), short]) for _ in range(epochs)]
        plans.append(np.concatenate(passes).reshape(-1, batch, 2))
        earlier.append(own)
    at = np.full((len(plans), max(map(len, plans)), batch, 2), -1, np.int32)
    for t, plan in enumerate(plans):
        at[t, : len(plan)] = plan
    return stream._replace(
        rows=np.maximum(at[..., 0], 0), origin=np.maximum(at[..., 1], 0),
        weight=(at[..., 0] >= 0).astype(np.float32), promise=Static("nothing"),
    )  # fmt: skip
