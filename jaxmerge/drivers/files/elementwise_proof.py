"""Proof that a leaf's way through a merge treats every entry on its own.

If it does, the leaf may be cut into pieces that are merged one by one, in bounded memory and with
compiled code for a few lengths instead of one for every shape.  Nothing is declared: `elementwise`
reads the program that the compiled leaf functions trace to.  Every operation that touches what has
the leaf's shape must be elementwise, and the program traced for a flat piece must be the same one,
operation by operation and constant by constant (a rule such as "matrices only" shows there).

Two functions may be used besides: an entry may know its number in the leaf (`rng.entry_index`, from
which random numbers are drawn), and `core.leaf_sum` may sum over the leaf (`sums`, `with_sums`).
A sum may build on sums, as the angle of two vectors builds on their lengths: it is of a later
round, and the pieces pass once for every round.
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


OPAQUE = frozenset(("entry_index", "leaf_sum"))  # known by their names, not looked into


def elementwise(run: Callable, base: Any, models: tuple, *rest: Any) -> bool:
    """Whether ``run(base, models, *rest)`` treats every entry of the leaves on its own."""
    return sums(run, base, models, *rest) == ()


def sums(run: Callable, base: Any, models: tuple, *rest: Any) -> tuple[int, ...] | None:
    """The round of every sum over the leaf, if nothing else couples entries; None if anything does.

    Args:
        run: a compiled leaf function with its specs bound.
        base, models: what has the leaf's shape (arrays or anything with shape and dtype).
        rest: further arguments, none of the leaf's shape.
    """
    shape = tuple(base.shape)
    if int(np.prod(shape)) < PIECE:
        return None
    whole = _signature(run, shape, base, models, rest)
    if whole is None or whole != _signature(run, (PIECE,), base, models, rest):
        return None
    return tuple(entry[2] for entry in whole if entry[0] == "leaf_sum")


def with_sums(run: Callable, take: Callable[[Any], Any], *args: Any) -> Any:
    """``run(*args)`` with ``take(x)`` in place of every ``leaf_sum(x)``, in order."""
    closed, shape = jax.make_jaxpr(run, return_shape=True)(*args)
    out = _evaluate(closed, jax.tree.leaves(args), take)
    return jax.tree.unflatten(jax.tree.structure(shape), out)


def _evaluate(closed, args, take) -> list:
    values: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= zip(closed.jaxpr.invars, args, strict=True)
    read = lambda v: v.val if hasattr(v, "val") else values[v]
    for eqn in closed.jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        if eqn.params.get("name") == "leaf_sum":
            out = [take(*inputs)]
        elif eqn.primitive.name in CALLS and "jaxpr" in eqn.params:
            out = _evaluate(eqn.params["jaxpr"], inputs, take)
        else:
            parameters = eqn.primitive.get_bind_params(eqn.params)
            out = eqn.primitive.bind(*inputs, **parameters)
            out = out if eqn.primitive.multiple_results else [out]
        values |= zip(eqn.outvars, out, strict=True)
    return [read(v) for v in closed.jaxpr.outvars]


def _signature(run, shape, base, models, rest) -> list | None:
    """The traced program without its shapes, or None if an operation mixes entries."""
    like = lambda x: jax.ShapeDtypeStruct(shape, x.dtype)
    try:
        closed = jax.make_jaxpr(run)(like(base), tuple(map(like, models)), *rest)
    except jax.errors.JAXTypeError:
        return None
    seen: list = []
    return None if _walk(closed.jaxpr, shape, seen, ()) is None else seen


def _walk(jaxpr, shape, seen: list, summed) -> list | None:
    """Note every operation; None if one mixes entries.

    Args:
        summed: for each input, how many rounds of sums over the leaf went into it.

    Returns:
        The same for each output.
    """
    number: dict[Any, int] = {}
    after: dict[Any, int] = {v: s for v, s in zip(jaxpr.invars, summed, strict=False) if s}

    def label(v):
        if hasattr(v, "val"):
            return ("literal", str(v.val), str(v.aval.dtype))
        return number.setdefault(v, len(number))

    for v in (*jaxpr.constvars, *jaxpr.invars):
        label(v)
    for eqn in jaxpr.eqns:
        shapes = [tuple(v.aval.shape) for v in (*eqn.invars, *eqn.outvars)]
        inner = [p for p in map(_jaxpr_of, eqn.params.values()) if p is not None]
        rounds = [0 if hasattr(v, "val") else after.get(v, 0) for v in eqn.invars]
        last = max(rounds, default=0)
        named = eqn.params.get("name") if eqn.params.get("name") in OPAQUE else None
        touches = shape in shapes
        if touches and not inner and not _harmless(eqn, shape, shapes):
            return None
        if touches and inner and eqn.primitive.name not in CALLS:
            return None
        names = [label(v) for v in eqn.invars]
        if named:
            last += named == "leaf_sum"
            seen.append((named, names, last))
            out = [last] * len(eqn.outvars)
        else:
            facts = {
                k: str(v)
                for k, v in eqn.params.items()
                if isinstance(v, str | int | float | bool | np.dtype) and "name" not in k
            }
            seen.append((eqn.primitive.name, names, facts))
            out = [last] * len(eqn.outvars)
            for p in inner:
                found = _walk(p, shape, seen, rounds)
                if found is None:
                    return None
                out = found if len(inner) == 1 and len(found) == len(out) else out
        for v, s in zip(eqn.outvars, out, strict=True):
            label(v)
            if s:
                after[v] = s
    seen.append(("out", [label(v) for v in jaxpr.outvars]))
    return [0 if hasattr(v, "val") else after.get(v, 0) for v in jaxpr.outvars]


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
