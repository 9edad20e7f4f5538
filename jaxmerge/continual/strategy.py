"""Strategies: how one task is learnt, besides the cross-entropy on its own columns.

A `Strategy` is which leaves train (ordered regular expressions) and a tuple of `Term`: summands of
the loss with a memory that passes from task to task.  A memory is a pytree of fixed shapes, so the
training step is compiled once, and it is part of the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxmerge.core.types import Array, Leaves


class View(NamedTuple):
    """What a term of the loss may look at, inside the compiled step.

    Attributes:
        params: the weights being trained (with the frozen ones).
        inputs, labels: the batch; labels are columns of the head.
        features: [B, D] of the batch.
        logits: [B, columns], all of them.
        own: bool [columns], the columns of this task.
        memory: what the term remembers.
    """

    params: Leaves
    inputs: Array
    labels: Array
    features: Array
    logits: Array
    own: Array
    memory: Any


class Term(NamedTuple):
    """A summand of the loss that remembers earlier tasks.

    Attributes:
        start: ``(learner) -> memory`` before the first task.
        loss: ``(view, learner) -> scalar``; the learner's params are not to be used.
        end: ``(memory, learner, params, task, rows) -> memory`` after a task; `rows` are its
            training inputs and labels as numpy arrays.
    """

    start: Callable[..., Any]
    loss: Callable[..., Array]
    end: Callable[..., Any]


class Strategy(NamedTuple):
    """How one task is learnt.

    Attributes:
        name: for reports.
        terms: summands of the loss beside the cross-entropy.
        trainable: regular expressions; leaves whose name matches one are trained, the others stay.
        replay: so many examples of every class of earlier tasks join each task's training, and
            the cross-entropy is over all columns seen so far.
    """

    name: str = "finetune"
    terms: tuple[Term, ...] = ()
    trainable: tuple[str, ...] = (".*",)
    replay: int = 0

    def split(self, params: Leaves) -> tuple[dict, dict]:
        """(trained, frozen) leaves.

        Raises:
            ValueError: a rule that matches no leaf.
        """
        rules = [re.compile(r) for r in self.trainable]
        idle = [r.pattern for r in rules if not any(r.search(n) for n in params)]
        if idle:
            raise ValueError(
                f"Trainable rules {idle} match none of the {len(params)} leaves, for example "
                f"{list(params)[:3]}."
            )
        trained = {n: p for n, p in params.items() if any(r.search(n) for r in rules)}
        return trained, {n: p for n, p in params.items() if n not in trained}


finetune = Strategy()
