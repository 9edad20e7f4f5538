"""Proof that a leaf's way through a merge treats every entry, or every row, on its own.

If it does, the leaf may be cut into pieces that are merged one by one, in bounded memory and with
compiled code for a few lengths instead of one for every shape.  Nothing is declared: `elementwise`
reads the program that the compiled leaf functions trace to.  Every operation that touches what has
the leaf's shape must be elementwise, and the program traced for a flat piece must be the same one,
operation by operation and constant by constant (a rule such as "matrices only" shows there).
`by_rows` does the same for pieces of whole rows: operations may then mix the entries of a row.

A few functions may be used besides: an entry may know its number in the leaf (`rng.entry_index`,
from which random numbers are drawn), and what adds up over pieces (`core.leaf_sum`, `leaf_size`,
`leaf_histogram`) may be asked of the leaf (`sums`, `with_sums`).  A sum may build on sums, as the
angle of two vectors builds on their lengths: it is of a later round, and the pieces pass once for
every round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PIECE = 8209  # a prime: no per-model list has this length by accident

CALLS = frozenset(("jit", "pjit", "closed_call", "custom_jvp_call"))
WORDS = """
    abs add add_any and cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erfc exp
    exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not or
    pow reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical
    sign sin sqrt square stop_gradient sub tanh xor atan2
"""
ELEMENTWISE = frozenset(WORDS.split())
REDUCED = frozenset(("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or"))
RUNNING = frozenset(("cumsum", "cummax", "cummin", "cumlogsumexp"))

# Functions that are known by their names, not looked into: what adds up over the pieces of a leaf,
# and the number of an entry.
ADDITIVE = frozenset(("leaf_sum", "leaf_size", "leaf_histogram"))
OPAQUE = ADDITIVE | {"entry_index"}


def elementwise(run: Callable, base: Any, models: tuple, *rest: Any) -> bool:
    """Whether ``run(base, models, *rest)`` treats every entry of the leaves on its own."""
    return sums(run, base, models, *rest) == ()


def sums(run: Callable, base: Any, models: tuple, *rest: Any) -> tuple[int, ...] | None:
    """The round of every sum over the leaf, if nothing else couples entries; None if anything does.

    Args:
        run: a compiled leaf function with its specs bound.
        base, models: what has the leaf's shape (arrays or anything with shape and dtype).
        rest: further arguments; what is of the leaf's shape in them is cut as the leaf is.
    """
    shape = tuple(base.shape)
    if int(np.prod(shape)) < PIECE:
        return None
    return _same(run, base, models, rest, (PIECE,), (_flat, _flat))


def by_rows(run: Callable, base: Any, models: tuple, *rest: Any) -> tuple[int, ...] | None:
    """The same where pieces are whole rows, ``leaf[start:stop]``, whose entries may mix."""
    shape = tuple(base.shape)
    if len(shape) < 2 or shape[0] < 2 or PIECE in shape:
        return None
    return _same(run, base, models, rest, (PIECE, *shape[1:]), (None, _rowwise))


def _same(run, base, models, rest, piece, judges) -> tuple[int, ...] | None:
    shape = tuple(base.shape)
    whole = _signature(run, shape, base, models, rest, judges[0])
    if whole is None or whole != _signature(run, piece, base, models, rest, judges[1]):
        return None
    return tuple(entry[2] for entry in whole if entry[0] in ADDITIVE)


def with_sums(run: Callable, take: Callable[[Callable[[], Any]], Any], *args: Any) -> Any:
    """``run(*args)`` with ``take(of this piece)`` in place of every sum over the leaf, in order.

    Args:
        take: is given a function that computes what these arguments add to the sum.
    """
    closed, shape = jax.make_jaxpr(run, return_shape=True)(*args)
    out = _evaluate(closed, jax.tree.leaves(args), take)
    return jax.tree.unflatten(jax.tree.structure(shape), out)


def _evaluate(closed, args, take) -> list:
    values: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= zip(closed.jaxpr.invars, args, strict=True)
    read = lambda v: v.val if hasattr(v, "val") else values[v]
    for eqn in closed.jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        if eqn.params.get("name") in ADDITIVE:
            kind = eqn.outvars[0].aval.dtype
            part = functools.partial(_evaluate, eqn.params["jaxpr"], inputs, take)
            out = [take(lambda part=part: part()[0]).astype(kind)]
        elif eqn.primitive.name in CALLS and "jaxpr" in eqn.params:
            out = _evaluate(eqn.params["jaxpr"], inputs, take)
        else:
            parameters = eqn.primitive.get_bind_params(eqn.params)
            out = eqn.primitive.bind(*inputs, **parameters)
            out = out if eqn.primitive.multiple_results else [out]
        values |= zip(eqn.outvars, out, strict=True)
    return [read(v) for v in closed.jaxpr.outvars]


def _signature(run, shape, base, models, rest, judge) -> list | None:
    """The traced program without its shapes, or None if an operation mixes what it must not."""
    whole = tuple(base.shape)
    like = lambda x: jax.ShapeDtypeStruct(shape, x.dtype)
    cut = lambda x: like(x) if np.shape(x) == whole and hasattr(x, "dtype") else x
    rest = jax.tree.map(cut, rest, is_leaf=lambda x: hasattr(x, "dtype"))
    try:
        closed = jax.make_jaxpr(run)(like(base), tuple(map(like, models)), *rest)
    except (TypeError, ValueError):  # it reads the shape, or has arrays that fit no piece
        return None
    seen: list = [("constants", [_constant(c) for c in closed.consts])]
    return None if _walk(closed.jaxpr, shape, seen, (), judge) is None else seen


def _constant(value: Any) -> tuple:
    """A constant of a program, entry by entry: one that was computed from the shape shows there."""
    keys = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(value) if keys else value)
    return array.shape, str(array.dtype), array.tobytes()


def _walk(jaxpr, shape, seen: list, summed, judge) -> list | None:
    """Note every operation; None if the judge refuses one.

    Args:
        summed: for each input, how many rounds of sums over the leaf went into it.

    Returns:
        The same for each output.
    """
    number: dict[Any, int] = {}
    after: dict[Any, int] = {v: s for v, s in zip(jaxpr.invars, summed, strict=False) if s}

    def label(v):
        if hasattr(v, "val"):
            return ("literal", *_constant(v.val))
        return number.setdefault(v, len(number))

    for v in (*jaxpr.constvars, *jaxpr.invars):
        label(v)
    for eqn in jaxpr.eqns:
        inner = [p for p in map(_jaxpr_of, eqn.params.values()) if p is not None]
        consts = [c for p in eqn.params.values() for c in getattr(p, "consts", ())]
        rounds = [0 if hasattr(v, "val") else after.get(v, 0) for v in eqn.invars]
        last = max(rounds, default=0)
        named = eqn.params.get("name") if eqn.params.get("name") in OPAQUE else None
        called = inner and eqn.primitive.name in CALLS
        if judge and not named and not called and not judge(eqn, shape):
            return None
        names = [label(v) for v in eqn.invars]
        if named:
            last += named in ADDITIVE
            seen.append((named, names, last))
            out = [last] * len(eqn.outvars)
        else:
            facts = {
                k: str(v)
                for k, v in eqn.params.items()
                if isinstance(v, str | int | float | bool | np.dtype) and "name" not in k
            }
            seen.append((eqn.primitive.name, names, facts, [_constant(c) for c in consts]))
            out = [last] * len(eqn.outvars)
            for p in inner:
                results = _walk(p, shape, seen, rounds, judge)
                if results is None:
                    return None
                out = results if len(inner) == 1 and len(results) == len(out) else out
        for v, s in zip(eqn.outvars, out, strict=True):
            label(v)
            if s:
                after[v] = s
    seen.append(("out", [label(v) for v in jaxpr.outvars]))
    return [0 if hasattr(v, "val") else after.get(v, 0) for v in jaxpr.outvars]


def _shapes(variables) -> list[tuple[int, ...]]:
    return [tuple(v.aval.shape) for v in variables]


def _flat(eqn, shape) -> bool:
    """Whether an operation leaves entries of what has the leaf's shape on their own."""
    shapes, name = _shapes((*eqn.invars, *eqn.outvars)), eqn.primitive.name
    if shape not in shapes:
        return True
    if name == "broadcast_in_dim":
        return shapes[0] in ((), shape)
    if name == "bitcast_convert_type":
        return shapes[0] == shapes[-1]
    return name in ELEMENTWISE and all(s in ((), shape) for s in shapes)


def _rowwise(eqn, shape) -> bool:
    """Whether an operation leaves rows, `PIECE` of them on the first axis, on their own."""
    many, name, get = shape[0], eqn.primitive.name, eqn.params.get
    shapes, out = _shapes((*eqn.invars, *eqn.outvars)), _shapes(eqn.outvars)
    if not any(many in s for s in shapes):
        return True
    if any(many in s[1:] for s in shapes) or any(many not in s for s in out):
        return False  # rows on another axis, or all of them in one number
    if name in ELEMENTWISE or name == "bitcast_convert_type":
        spread = lambda s: all(a in (1, b) for a, b in zip(s, out[0], strict=True))
        return all(len(s) == 0 or (len(s) == len(out[0]) and spread(s)) for s in shapes)
    first = shapes[0][:1] == (many,)
    if name == "iota":
        return get("dimension") != 0
    if name == "broadcast_in_dim":
        return not first or next(iter(get("broadcast_dimensions"))) == 0
    if name in REDUCED:
        return 0 not in get("axes")
    if name in RUNNING:
        return get("axis") != 0
    if name in ("sort", "concatenate"):
        return get("dimension") != 0 and all(s[:1] == (many,) for s in shapes)
    if name in ("reshape", "squeeze"):
        return first and out[0][:1] == (many,)
    if name == "transpose":
        return get("permutation")[0] == 0
    if name == "scatter":
        numbers, all_cut = get("dimension_numbers"), all(s[:1] == (many,) for s in shapes)
        both = numbers.operand_batching_dims[:1], numbers.scatter_indices_batching_dims[:1]
        return all_cut and both == ((0,), (0,))
    return False


def _jaxpr_of(value: Any) -> Any:
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") else None
