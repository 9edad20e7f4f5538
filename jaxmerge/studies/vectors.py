"""What the task vectors of a stream look like: sizes, directions, who wins in MagMax.

How far a model moved from theta_0, and how much its task vectors agree, decide what merging can
do: sequential fine-tunes share their early steps, so their vectors point the same way and grow;
independent ones are nearly orthogonal, and their signs agree by chance (1/2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmerge.core.types import Leaves
from jaxmerge.studies.results import Vectors

EDGES = np.linspace(-8, 0, 41)  # of log10 |tau|


def describe(base: Leaves, models: Sequence[Leaves], finetunes: str) -> Vectors:
    """Statistics of the task vectors of `models`, in the order of the stream.

    Args:
        base: theta_0.
        models: after each task.
        finetunes: of the stream.

    >>> base = {"w": np.ones(4, np.float32)}
    >>> models = [{"w": np.float32([2, 2, 1, 0])}, {"w": np.float32([3, 0, 4, 0])}]
    >>> described = describe(base, models, "independent")
    >>> described.sign_agreement[0][1], described.magmax_share
    (0.6666666666666666, [0.0, 1.0])

    Memory: T + 2 x the model.
    """
    names = list(base)
    theta = np.concatenate([np.asarray(base[n], np.float32).ravel() for n in names])
    taus = np.stack(
        [np.concatenate([np.asarray(m[n], np.float32).ravel() for n in names]) for m in models]
    )
    taus -= theta
    norm = np.linalg.norm(taus, axis=1)
    unit = taus / np.maximum(norm, np.finfo(np.float32).tiny)[:, None]
    winner, best = np.zeros(len(theta), np.int16), np.abs(taus[0])
    counts = []
    for t, tau in enumerate(taus):
        size = np.abs(tau)
        later = size >= best  # on an exact tie the later model wins, as in MagMax
        winner[later], best = t, np.maximum(best, size)
        with np.errstate(divide="ignore"):
            counts.append(np.histogram(np.log10(size), EDGES)[0].tolist())
    return Vectors(
        finetunes=finetunes,
        norm=norm.tolist(),
        relative=(norm / np.linalg.norm(theta)).tolist(),
        cosine=(unit @ unit.T).tolist(),
        sign_agreement=_agreement(taus).tolist(),
        magnitude_edges=EDGES.tolist(),
        magnitude_counts=counts,
        magmax_share=(np.bincount(winner, minlength=len(taus)) / len(theta)).tolist(),
    )


def _agreement(taus: np.ndarray) -> np.ndarray:
    """[T, T]: share of entries, non-zero in both, with the same sign."""
    tasks = len(taus)
    agreement = np.eye(tasks)
    for i in range(tasks):
        for j in range(i):
            both = (taus[i] != 0) & (taus[j] != 0)
            same = (taus[i] > 0) == (taus[j] > 0)
            share = np.count_nonzero(both & same) / max(1, np.count_nonzero(both))
            agreement[i, j] = agreement[j, i] = share
    return agreement
