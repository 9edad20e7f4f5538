"""Which kernels of a model a wrap changes, and the model whose weights it makes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxmerge.continual.operators import Operator, operated
from jaxmerge.continual.records import Model
from jaxmerge.continual.taps import taps
from jaxmerge.core.types import Array, Leaves


def chosen(params: Leaves, target: str, axes: tuple[int, ...] = (2,)) -> list[str]:
    """Names of kernels that match a regular expression and have so many axes.

    Args:
        params: of the model.
        target: a regular expression, found anywhere in the name.
        axes: how many a kernel may have.

    Raises:
        ValueError: there is none.

    >>> import numpy as np
    >>> chosen({"fc/kernel": np.ones((2, 3)), "fc/bias": np.ones(3)}, "fc")
    ['fc/kernel']
    """
    known = [n for n, p in params.items() if p.ndim in axes and n.endswith("kernel")]
    names = [n for n in known if re.search(target, n)]
    if not names:
        shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise ValueError(f"No kernel matches {target!r}; the model has: {shown or 'none'}.")
    return names


def fan_in(kernel: Array) -> int:
    """Inputs of a kernel [in, out] or [height, width, in, out].

    Args:
        kernel: [in, out] or [height, width, in, out].

    >>> import numpy as np
    >>> fan_in(np.ones((3, 3, 2, 8)))
    18
    """
    return math.prod(kernel.shape[:-1])


def reading(
    model: Model,
    weights: Callable[[Leaves, Array], Leaves],
    operators: Callable[[Leaves, Array], Mapping[str, Operator]] = lambda params, task: {},
    **fields: Any,
) -> Model:
    """The model whose own weights are made of params, in all that it says and in what merges fold.

    Args:
        model: the one below.
        weights: ``(params, task) -> leaves`` of the model below.
        operators: ``(params, task) -> {kernel: Operator}`` of those that few rows meet cheaper
            through their factors; the others are as in `weights`.
        fields: what else the wrap changes: `init`, `trainable`, `slots`, `put`, or one of those
            that are made here.

    >>> model = Model(lambda key: {"w": 2.0}, lambda params, x, task: params["w"] * x)
    >>> reading(model, lambda params, task: {"w": 10 * params["w"]}).apply({"w": 2.0}, 3.0, 0)
    60.0
    """

    def below(call: Callable | None) -> Callable | None:
        if call is None:
            return None

        def called(params, x, task, *key):
            own, there = weights(params, task), operators(params, task)
            known = lambda p, x: call(p, x, task, *key)
            return operated(known, own, there, x) if there else known(own, x)

        return called

    methods = {
        "apply": below(model.apply),
        "predict": below(model.predict),
        "train": below(model.train),
        "from_features": below(model.from_features),
        "taps": lambda params, x, task: taps(model, weights(params, task), x, task),
        "weights": lambda params, task: model.weights(weights(params, task), task),
    }
    return model._replace(**methods | fields)
