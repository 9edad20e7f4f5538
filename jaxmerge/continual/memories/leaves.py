"""Which leaves a method holds: trained, shared by all tasks, and of a chosen name."""

from __future__ import annotations

import re

from jaxmerge.continual.records import Model
from jaxmerge.core.types import Array, Leaves


def shared(
    model: Model, params: Leaves, pattern: str = ".*", none: bool = False
) -> dict[str, Array]:
    """Trained leaves that all tasks share (no slots), whose name matches a regular expression.

    Args:
        model: says what trains and what is a slot.
        params: all leaves of the model.
        pattern: a regular expression, found anywhere in the name.
        none: whether there may be none.

    Raises:
        ValueError: there is none.

    >>> model = Model(lambda key: {}, lambda *_: None, trainable=lambda n: n != "head")
    >>> list(shared(model, {"fc/kernel": 1, "fc/bias": 2, "head": 3}, "kernel"))
    ['fc/kernel']
    """
    train = [n for n in params if model.trainable(n) and not model.slots(n)]
    chosen = {n: params[n] for n in train if re.search(pattern, n)}
    if not chosen and not none:
        known = ", ".join(train[:8]) + (", ..." if len(train) > 8 else "")
        raise ValueError(
            f"No trained leaf that tasks share matches {pattern!r}; there are: {known or 'none'}."
        )
    return chosen
