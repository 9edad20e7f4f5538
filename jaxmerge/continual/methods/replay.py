"""Replay of a class-balanced choice of earlier examples, shuffled into each task."""

from __future__ import annotations

import numpy as np

from jaxmerge.continual import columns
from jaxmerge.continual.problems import cross_entropy
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, methods
from jaxmerge.core.draws import draws


@methods.register
def replay(per_class: Count = 10) -> Method:
    """So many examples of every class of earlier tasks join each task's training examples.

    They are shuffled with the task's own, so that a class counts by its number of examples; the
    cross-entropy is over all columns seen so far. The examples of a task are chosen once, by its
    number and the seed, and stay the same for all later tasks.

    Args:
        per_class: examples of a class, 1 or more; fewer where it has fewer.

    Memory: none beside the data; for a buffer that is filled while training see `er`.

    >>> replay(3)
    replay(per_class=3)
    """

    def examples(t, tasks, seed):
        rows = []
        for s, task in enumerate(tasks[:t]):
            rng = draws(seed, s)
            for c in task.columns:
                rows.append((s, rng.permutation(np.flatnonzero(task.labels == c))[:per_class]))
        return rows

    def objective(out, batch, info, task):
        return cross_entropy(out.logits, batch.targets, columns.seen(info, task))

    return Method(examples=examples, objective=objective)
