"""What counts as a kernel, which ones a method chooses, and models whose weights a wrap makes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from jaxmerge.continual.operators import Operator, operated
from jaxmerge.continual.records import Model
from jaxmerge.continual.taps import taps
from jaxmerge.core.types import Array, Leaves
from jaxmerge.errors import listed
from jaxmerge.io.architectures.roles import role_of

KERNELS = ("kernel", "convolution", "experts", "router", "head")  # roles
MATRICES = (2, 4)  # axes of [in, out], and of a convolution [height, width, in, out]


def is_kernel(name: str, leaf: Array) -> bool:
    """Whether a leaf is a kernel, by its role, or a stack of layers that has none.

    Args:
        name: such as "block_00/mlp/up/kernel" or "w1", read as everywhere in this package
            (`jaxmerge.io.architectures.roles`).
        leaf: its shape and whether it is of floats count.

    >>> import numpy as np
    >>> [is_kernel(n, np.ones((2, 3))) for n in ("fc/kernel", "w1", "text/position")]
    [True, True, False]
    """
    axes, floating = len(leaf.shape), jnp.issubdtype(leaf.dtype, jnp.floating)
    role = role_of(name, tuple(leaf.shape), floating=floating)
    return axes > 1 and (role in KERNELS or (role == "vector" and axes > 2))


def matching(model: Model, params: Leaves, pattern: str) -> list[str]:
    """Kernels that train and that tasks share (no slots), whose name matches.

    Args:
        model: says what trains and what is a slot.
        params: of the model; shapes suffice.
        pattern: a regular expression, found anywhere in the name.

    >>> import numpy as np
    >>> model = Model(lambda key: {}, lambda params, x, task: x)
    >>> matching(model, {"w1": np.ones((2, 3)), "w2": np.ones((3, 1))}, "1")
    ['w1']
    """
    return [n for n in shared_kernels(model, params) if re.search(pattern, n)]


def shared_kernels(model: Model, params: Leaves) -> list[str]:
    """All that `matching` chooses of."""
    free = lambda n: model.trainable(n) and not model.slots(n)
    return [n for n, p in params.items() if is_kernel(n, p) and free(n)]


def projected(
    who: str, model: Model, params: Leaves, pattern: str, names: Iterable[str] | None = None
) -> list[str]:
    """Kernels that a method projects as matrices, [in, out] or [height, width, in, out].

    Args:
        who: the method, for messages.
        model, params, pattern: as for `matching`.
        names: of the kernels whose inputs are known, in the order of the network, for methods that
            project off inputs; None: the inputs do not count, the order is that of params.

    Raises:
        ValueError: no kernel matches; one that does is no matrix, such as a stack [layers, in, out]
            for a scan; or its inputs are not known, so that it would be left unprotected.

    >>> import numpy as np
    >>> model = Model(lambda key: {}, lambda params, x, task: x)
    >>> projected("osft", model, {"w1": np.ones((2, 3)), "stack": np.ones((4, 2, 3))}, "w1")
    ['w1']
    """
    found = matching(model, params, pattern)
    if not found:
        raise ValueError(f"{who}: {_none(pattern, shared_kernels(model, params))}")
    others = [f"{n} {list(params[n].shape)}" for n in found if params[n].ndim not in MATRICES]
    if others:
        raise ValueError(
            f"{who}: a kernel is [in, out] or [height, width, in, out]; found {listed(others)} "
            "If that is a stack of layers [layers, in, out], give the model a leaf for each of "
            "them with `jaxmerge.continual.wraps.layers.layers_apart`; if inputs or outputs have "
            "several axes (heads), keep the kernel as a matrix and reshape it where it is read; "
            "or leave it out by the pattern."
        )
    if names is None:
        return found
    order = list(names)
    if unseen := [n for n in found if n not in order]:
        raise ValueError(
            f"{who}: no inputs were found in the model's trace for {listed(unseen)} They are where "
            "a kernel is read as x @ W or by a convolution of one group, outside of `cond` and "
            "`while`. Leave such kernels out by the pattern, or let the model say what they meet: "
            'Outputs(aux={"taps": {kernel: inputs [N, in]}}).'
        )
    return [n for n in order if n in found]


def chosen(
    who: str, model: Model, params: Leaves, target: str, axes: tuple[int, ...] = (2,)
) -> list[str]:
    """Names of kernels, trained or not, that match a regular expression and have so many axes.

    Args:
        who: the method, for the message.
        model, params, target, axes: as for `changeable`.

    Raises:
        ValueError: there is none.

    >>> import numpy as np
    >>> model = Model(lambda key: {}, lambda params, x, task: x)
    >>> chosen("lora", model, {"fc/kernel": np.ones((2, 3)), "fc/bias": np.ones(3)}, "fc")
    ['fc/kernel']
    """
    names = changeable(model, params, target, axes)
    if not names:
        raise ValueError(f"{who}: {_none(target, changeable(model, params, '', axes))}")
    return names


def changeable(
    model: Model, params: Leaves, target: str, axes: tuple[int, ...] = (2,)
) -> list[str]:
    """The same; there may be none.

    Args:
        model: says what is a slot, which no kernel is.
        params: of the model; shapes suffice.
        target: a regular expression, found anywhere in the name.
        axes: how many a kernel may have.

    >>> import numpy as np
    >>> model = Model(lambda key: {}, lambda params, x, task: x)
    >>> changeable(model, {"fc/kernel": np.ones((2, 3))}, "conv")
    []
    """
    own = lambda n, p: p.ndim in axes and is_kernel(n, p) and not model.slots(n)
    return [n for n, p in params.items() if own(n, p) and re.search(target, n)]


def _none(pattern: str, known: list[str]) -> str:
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f"no kernel matches {pattern!r}; the model has: {shown or 'none'}."


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
    /,
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
