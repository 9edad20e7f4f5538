"""Kernels as operators: how rows meet a kernel that is a product of several matrices.

``x @ (W + S Q S' W)`` and ``x + ((x S) Q) S'`` times W are the same numbers.  For a kernel
[in, out] and N rows the first costs about ``out / N`` times the second: a batch of ten rows meets
a kernel of a hundred columns ten times cheaper through its factors.  No compiler reassociates a
product, so it is done here, in the trace of any model, as `jaxmerge.statistics.capture` finds
kernels there: nothing is registered and no layer is written twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from jaxmerge.core.types import Array, Leaves, Tree

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}


class Operator(NamedTuple):
    """What stands in the place of a kernel W [in, out].

    Attributes:
        rows: ``(x [.., in], dot) -> [.., out]``, where ``dot(x, W)`` multiplies as the model does.
        array: ``() -> [in, out]``, for every use of the kernel that is no such product, and where
            there are more rows than columns.
    """

    rows: Callable[[Array, Callable[[Array, Array], Array]], Array]
    array: Callable[[], Array]


def operated(
    apply: Callable[..., Tree], params: Leaves, operators: Mapping[str, Operator], *args: Tree
) -> Tree:
    """``apply(params, *args)`` with operators in the place of kernels; to be differentiated too.

    Args:
        apply: a function of a flat mapping of parameters and of data.
        params: name -> array.
        operators: name -> what stands in its place.
        args: the data, pytrees of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> w, a, b = jnp.ones((3, 8)), jnp.ones((3, 1)), jnp.ones((1, 8))
        >>> low_rank = Operator(lambda x, dot: dot(x, w) + (x @ a) @ b, lambda: w + a @ b)
        >>> operated(lambda p, x: x @ p["w"], {"w": w}, {"w": low_rank}, jnp.ones((2, 3))).shape
        (2, 8)
    """
    closed, shape = jax.make_jaxpr(apply, return_shape=True)(dict(params), *args)
    leaves = [operators.get(n, params[n]) for n in sorted(params)] + jax.tree.leaves(args)
    outs = _run(closed.jaxpr, closed.consts, leaves)
    return jax.tree.unflatten(jax.tree.structure(shape), [_array(x) for x in outs])


def _array(value: Any) -> Any:
    return value.array() if isinstance(value, Operator) else value


def _run(jaxpr, consts, values) -> list[Any]:
    """Evaluate a jaxpr; some values are operators, and stay so through calls.

    Calls with a derivative of their own, or computed again in the backward pass, are left whole.
    """
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, values, strict=True))

    def read(v):
        return v.val if isinstance(v, jex.Literal) else env[v]

    for eqn in jaxpr.eqns:
        name, ins = eqn.primitive.name, [read(v) for v in eqn.invars]
        there = [isinstance(x, Operator) for x in ins]
        if any(there) and name in CALLS and CALLS[name] in eqn.params:
            inner = eqn.params[CALLS[name]]
            inner, const = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            outs = _run(inner, const, ins)
        elif there == [False, True] and name == "dot_general" and _few_rows(eqn):
            outs = [ins[1].rows(ins[0], partial(eqn.primitive.bind, **eqn.params))]
        else:
            ins = [_array(x) for x in ins]
            outs = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
            outs = outs if eqn.primitive.multiple_results else [outs]
        env |= dict(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _few_rows(eqn) -> bool:
    """Whether a product is ``[.., in] @ [in, out]`` of at most as many rows as columns."""
    x, w = (v.aval.shape for v in eqn.invars)
    whole = eqn.params["dimension_numbers"] == (((len(x) - 1,), (0,)), ((), ()))
    return whole and len(w) == 2 and math.prod(x[:-1]) <= w[1]
