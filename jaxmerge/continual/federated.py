"""Streams whose examples are dealt out to clients, for `fedavg` and `fot`."""

from __future__ import annotations

import numpy as np

from jaxmerge.continual.hook_calls import kind
from jaxmerge.continual.padding import padded
from jaxmerge.continual.stream_records import Stream
from jaxmerge.core.draws import draws
from jaxmerge.core.ranges import Count, unfit
from jaxmerge.core.specs import Static
from jaxmerge.errors import listed


def federated(
    stream: Stream, clients: int, chosen: int, rounds: int, *, seed: int = 0, by_label: bool = False
) -> Stream:
    """A stream whose examples are dealt out to clients; each of its batches is a round of some.

    A task's rows are dealt out, as many to each client; what is left over is left out, and where
    tasks differ in size a client's part is filled up with weight 0.  A round draws clients without
    replacement and holds all their rows, client after client, for `fedavg` and `fot`.

    Args:
        stream: its batches do not matter.
        clients: of a task.
        chosen: of one round.
        rounds: of a task.
        seed: of all that is drawn.
        by_label: rows are sorted by label and cut into ``2 clients`` shards, two for each client
            (McMahan et al., 2017); otherwise they are dealt out at random.

    Raises:
        ValueError: what is no stream; more are chosen than there are, or a task has fewer examples
            than clients; no round.

    >>> from jaxmerge.continual.streams import split
    >>> x, y = np.zeros((12, 3), np.float32), np.arange(12) % 4
    >>> federated(split((x, y), (x, y), [[0, 1], [2, 3]]), 3, 2, 5).rows.shape
    (2, 5, 4)
    """
    wrong = unfit(Count, clients=clients, chosen=chosen, rounds=rounds)
    if not isinstance(stream, Stream):
        wrong.insert(0, f"federated deals out a `Stream`, of `split` for one, got {kind(stream)}")
    if wrong:
        raise ValueError(listed(wrong))
    if chosen > clients:
        raise ValueError(f"{chosen} clients a round cannot be chosen from {clients}.")
    rng, dealt = draws(seed, 2), []
    parts = (2 if by_label else 1) * clients
    every = (np.asarray(x) for x in (stream.rows, stream.origin, stream.weight))
    many = int(np.max(stream.rows)) + 1  # an example is dealt as row + many x the task it is from
    for at, origin, weight in zip(*every, strict=True):
        own = rng.permutation(np.unique((at + many * origin.astype(np.int64))[weight > 0]))
        if len(own) < parts:
            raise ValueError(f"{len(own)} examples of a task cannot be dealt to {clients} clients.")
        if by_label:
            own = own[np.argsort(np.asarray(stream.targets)[own % many], kind="stable")]
        shards = own[: len(own) // parts * parts].reshape(parts, -1)
        dealt.append(rng.permutation(shards).reshape(clients, -1))
    every = np.swapaxes(padded([d.T for d in dealt]), 1, 2)  # [tasks, clients, examples]
    draw = lambda d: [d[rng.permutation(clients)[:chosen]].reshape(-1) for _ in range(rounds)]
    at = np.array([draw(d) for d in every])
    return stream._replace(
        rows=(np.maximum(at, 0) % many).astype(np.int32),
        origin=np.where(at >= 0, at // many, np.arange(len(at))[:, None, None]).astype(np.int32),
        weight=(at >= 0).astype(np.float32),
        sample=np.where(every >= 0, every % many, -1).reshape(len(every), -1).astype(np.int32),
        promise=Static("nothing"),
    )
