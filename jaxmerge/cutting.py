"""Proof that a leaf's way through a merge treats every entry on its own.

If it does, the leaf may be cut into pieces that are merged one by one, in bounded memory and with
compiled code for a few lengths instead of one for every shape.  Nothing is declared: `elementwise`
reads the program that the compiled leaf functions trace to.  Every operation that touches what has
the leaf's shape must be elementwise, and the program traced for a flat piece must be the same one,
operation by operation and constant by constant (a rule such as "matrices only" shows there).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PIECE = 8209  # a prime: no per-model list has this length by accident

CALLS = frozenset(("jit", "pjit", "closed_call", "custom_jvp_call"))
WORDS = """
    abs add add_any and cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erfc exp
    exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not or
    pow reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical
    sign sin sqrt square stop_gradient sub tanh xor
"""
ELEMENTWISE = frozenset(WORDS.split())


def elementwise(run: Callable, base: Any, models: tuple, *rest: Any) -> bool:
    """Whether ``run(base, models, *rest)`` treats every entry of the leaves on its own.

    Args:
        run: a compiled leaf function with its specs bound.
        base, models: what has the leaf's shape (arrays or anything with shape and dtype).
        rest: further arguments, none of the leaf's shape.
    """
    shape = tuple(base.shape)
    if int(np.prod(shape)) < PIECE:
        return False
    whole = _signature(run, shape, base, models, rest)
    return whole is not None and whole == _signature(run, (PIECE,), base, models, rest)


def _signature(run, shape, base, models, rest) -> list | None:
    """The traced program without its shapes, or None if an operation mixes entries."""
    like = lambda x: jax.ShapeDtypeStruct(shape, x.dtype)
    try:
        closed = jax.make_jaxpr(run)(like(base), tuple(map(like, models)), *rest)
    except jax.errors.JAXTypeError:
        return None
    seen: list = []
    return seen if _walk(closed.jaxpr, shape, seen) else None


def _walk(jaxpr, shape, seen: list) -> bool:
    number: dict[Any, int] = {}

    def label(v):
        if hasattr(v, "val"):
            return ("literal", str(v.val), str(v.aval.dtype))
        return number.setdefault(v, len(number))

    for v in (*jaxpr.constvars, *jaxpr.invars):
        label(v)
    for eqn in jaxpr.eqns:
        shapes = [tuple(v.aval.shape) for v in (*eqn.invars, *eqn.outvars)]
        inner = [p for p in map(_jaxpr_of, eqn.params.values()) if p is not None]
        touches = shape in shapes
        if touches and not inner and not _harmless(eqn, shape, shapes):
            return False
        if touches and inner and eqn.primitive.name not in CALLS:
            return False
        facts = {
            k: str(v)
            for k, v in eqn.params.items()
            if isinstance(v, str | int | float | bool | np.dtype) and "name" not in k
        }
        names = [label(v) for v in eqn.invars]
        seen.append((eqn.primitive.name, names, facts))
        for p in inner:
            if not _walk(p, shape, seen):
                return False
        for v in eqn.outvars:
            label(v)
    seen.append(("out", [label(v) for v in jaxpr.outvars]))
    return True


def _harmless(eqn, shape, shapes) -> bool:
    name = eqn.primitive.name
    if name == "broadcast_in_dim":
        return shapes[0] in ((), shape)
    if name == "bitcast_convert_type":
        return shapes[0] == shapes[-1]
    return name in ELEMENTWISE and all(s in ((), shape) for s in shapes)


def _jaxpr_of(value: Any) -> Any:
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") else None
