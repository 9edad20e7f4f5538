"""The inputs of every dense kernel, caught in the trace of any JAX function.

RegMean and its relatives need, for every matrix W of a model, the activations x that meet it.
Instead of a hook for each kind of layer, the function is traced once and its trace is read: a
parameter that reaches a matrix product (through casts, transpositions, reshapes, concatenations
such as a fused q/k/v) is a dense kernel, and the other operand is its input.  Flax NNX, Linen,
Equinox and plain functions are all the same here, and nothing has to be registered.

    out, inputs = dense_inputs(apply, params, images)
    inputs["vision/block_03/mlp/up/kernel"]   # Input(x [N, in], axis=0)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array, Leaves, Tree


class Input(NamedTuple):
    """What meets one kernel.

    Attributes:
        x: activations, [N, in], every position of every example a row; of a kernel [L, in, out]
            that a scan cuts into its layers [L, N, in].
        axis: where the kernel meets x: 0 for [in, out], 1 for [out, in]. Each may be several axes
            in a row, as in a patch embedding [height, width, 3, out] or a query [in, heads, size].
    """

    x: Array
    axis: int


class View(NamedTuple):
    """An array of the trace that is some kernels seen through reshapes and transpositions.

    Concatenated kernels must have one layout; a fused q/k/v meets one input, so each gets it.

    Attributes:
        kernels: names, in order when they were concatenated.
        axes: for each axis of the array, which axes of the kernel it runs over.
        sizes: the shape of one kernel.
    """

    kernels: tuple[str, ...]
    axes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]


def dense_inputs(
    apply: Callable[..., Tree], params: Leaves, *args: Tree, every: bool = False
) -> tuple[Tree, dict[str, Input]]:
    """Run ``apply(params, *args)`` and catch the input of every dense kernel.

    Args:
        apply: a function of a flat mapping of parameters and of data.
        params: name -> array; the leaves with two axes or more are looked for.
        args: the data, pytrees of arrays.
        every: also kernels [L, in, out] that a ``scan`` cuts into layers, and of convolutions:
            the patches under a kernel are its rows, their entries in the order in which the kernel
            is stored.

    Returns:
        What `apply` returns, and name -> `Input`.  A kernel that meets several inputs (weight
        sharing) has all their rows.  A ``scan`` over kernels that were stacked for it is followed
        step by step.  Kernels inside ``while`` are not seen.

    Example:
        >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
        >>> out, inputs = dense_inputs(lambda p, x: x @ p["w"] + p["b"], params, jnp.ones((4, 3)))
        >>> inputs["w"].x.shape, inputs["w"].axis
        ((4, 3), 0)
    """
    closed, shape = jax.make_jaxpr(apply, return_shape=True)(dict(params), *args)
    names = [path[0].key for path, _ in jax.tree.leaves_with_path(dict(params))]
    leaves = jax.tree.leaves((dict(params), args))
    seen: dict[str, list[Input]] = {}
    views = [
        View((n,), tuple((i,) for i in range(len(shape))), shape) if len(shape) > 1 else None
        for n, shape in ((n, params[n].shape) for n in names)
    ]
    views += [None] * (len(leaves) - len(names))
    flat, _ = _run(closed.jaxpr, closed.consts, leaves, views, seen, every)
    out = jax.tree.unflatten(jax.tree.structure(shape), flat)
    return out, {n: _join(inputs) for n, inputs in seen.items()}


def _join(inputs: list[Input]) -> Input:
    axes = {f.axis for f in inputs}
    if len(axes) > 1:  # a tied embedding used from both sides: keep the side it is stored for
        inputs = [f for f in inputs if f.axis == min(axes)]
    return Input(jnp.concatenate([f.x for f in inputs], axis=-2), inputs[0].axis)


INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def _run(jaxpr, consts, values, views, seen, every) -> tuple[list[Any], list[View | None]]:
    """Evaluate a jaxpr, following which arrays are kernels."""
    from jax.extend.core import Literal  # with all of Pallas, which no merge waits for

    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, values, strict=True))
    known: dict[Any, View | None] = dict(zip(jaxpr.invars, views, strict=True))

    def read(v):
        return v.val if isinstance(v, Literal) else env[v]

    def view(v):
        return None if isinstance(v, Literal) else known.get(v)

    for eqn in jaxpr.eqns:
        ins, seen_as = [read(v) for v in eqn.invars], [view(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in INLINED and INLINED[name] in eqn.params:
            inner = eqn.params[INLINED[name]]
            inner, const = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            outs, out_views = _run(inner, const, ins, seen_as, seen, every)
        elif name == "scan" and any(_stacked(v, eqn.params["length"]) for v in seen_as):
            outs = _unrolled(eqn.params, ins, seen_as, seen, every)
            out_views = [None] * len(outs)
        elif every and name == "scan" and any(seen_as):
            outs = _scan(eqn.params, ins, seen_as, seen)
            out_views = [None] * len(outs)
        else:
            if name == "dot_general" and any(seen_as):
                _catch(eqn.params, ins, seen_as, seen)
            if every and name == "conv_general_dilated" and seen_as[1] and not seen_as[0]:
                _catch_patches(eqn.params, ins, seen_as[1], seen)
            outs = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
            outs = outs if eqn.primitive.multiple_results else [outs]
            moved = _move(name, eqn, seen_as) if any(seen_as) else None
            out_views = [moved] + [None] * (len(outs) - 1)
        env |= dict(zip(eqn.outvars, outs, strict=True))
        known |= dict(zip(eqn.outvars, out_views, strict=True))
    return [read(v) for v in jaxpr.outvars], [view(v) for v in jaxpr.outvars]


def _catch(params, ins, views, seen) -> None:
    """Record the input of a matrix product with a kernel on one side."""
    if all(views):
        return
    side = 0 if views[0] else 1
    contract, batch = params["dimension_numbers"]
    kernel, x, view = ins[side], ins[1 - side], views[side]
    if any(view.axes[k] for k in batch[side]):  # many kernels in one leaf, an input for each
        return
    if len(view.kernels) > 1 and batch[side]:  # stacked kernels, an input for each
        return
    pairs = sorted(zip(contract[side], contract[1 - side], strict=True))
    met = tuple(dict.fromkeys(axis for k, _ in pairs for axis in view.axes[k]))
    size = math.prod(kernel.shape[k] for k, _ in pairs)
    every = tuple(range(len(view.sizes)))
    first, last = every[: len(met)], every[-len(met) :]
    if len(met) == len(every) or size != math.prod(view.sizes[a] for a in met):
        return
    if met not in (first, last):
        return
    rows = jnp.moveaxis(x, [d for _, d in pairs], range(-len(pairs), 0)).reshape(-1, size)
    for name in view.kernels:
        seen.setdefault(name, []).append(Input(rows, int(met != first)))


def _catch_patches(params, ins, view, seen) -> None:
    """Record what lies under the kernel of a convolution, at every place."""
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return
    numbers, whole = params["dimension_numbers"], tuple((i,) for i in range(len(view.sizes)))
    out, into, *space = numbers.rhs_spec
    if len(view.kernels) != 1 or view.axes != whole or out != len(view.sizes) - 1:
        return
    x, sizes = ins[0], [view.sizes[i] for i in space]
    rows = jax.lax.conv_general_dilated_patches(
        x, sizes, params["window_strides"], params["padding"], params["lhs_dilation"],
        params["rhs_dilation"], numbers, precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    rows = jnp.moveaxis(rows, numbers.out_spec[1], -1)  # [.., in x space]
    rows = rows.reshape(-1, view.sizes[into], *sizes)
    place = {axis: k + 1 for k, axis in enumerate([into, *space])}
    rows = rows.transpose(0, *(place[i] for i in range(len(view.sizes) - 1)))
    rows = rows.reshape(len(rows), -1)
    seen.setdefault(view.kernels[0], []).append(Input(rows, 0))


def _counts(params) -> tuple[int, int]:
    """How many operands of a scan are the same in every step, and how many it carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    fixed, carried, _ = params["ft_in"].unpack()  # since jax 0.11
    return len(fixed), len(carried)


def _stacked(view: View | None, length: int) -> bool:
    """Whether an array is so many kernels on its first axis, a step of a scan each."""
    return view is not None and not view.axes[0] and len(view.kernels) == length


def _unrolled(params, ins, views, seen, every) -> list[Any]:
    """A scan step by step: the kernels that were stacked for it meet an input each."""
    consts, carries = _counts(params)
    fixed, carry, over = ins[:consts], ins[consts : consts + carries], ins[consts + carries :]
    length, inner = params["length"], params["jaxpr"]
    order = range(length - 1, -1, -1) if params["reverse"] else range(length)

    def step(view, i):
        if not _stacked(view, length):
            return None
        return view._replace(kernels=view.kernels[i : i + 1], axes=view.axes[1:])

    given: dict[int, list[Any]] = {}
    for i in order:
        mine = [step(v, i) for v in views[consts + carries :]]
        known = [*views[:consts], *[None] * carries, *mine]
        values = [*fixed, *carry, *(x[i] for x in over)]
        outs, _ = _run(inner.jaxpr, inner.consts, values, known, seen, every)
        carry, given[i] = outs[:carries], outs[carries:]
    stacked = [jnp.stack([given[i][k] for i in range(length)]) for k in range(len(given[0]))]
    return [*carry, *stacked]


def _scan(params, ins, views, seen) -> list[Any]:
    """Run a scan; kernels that it closes over or cuts into layers are looked for in its body."""
    consts, carry = _counts(params)
    inner, first = params["jaxpr"], consts + carry
    axes: dict[str, int] = {}

    def layer(view):
        whole = view and view.axes == tuple((i,) for i in range(len(view.sizes)))
        if not whole or len(view.sizes) < 3:
            return None
        sizes = view.sizes[1:]
        return View(view.kernels, tuple((i,) for i in range(len(sizes))), sizes)

    cut = [layer(v) for v in views[first:]]
    stacked = {n for v in cut if v for n in v.kernels}

    def body(state, xs):
        captured: dict[str, list[Input]] = {}
        values = [*ins[:consts], *state, *xs]
        known = [*views[:consts], *[None] * carry, *cut]
        outs, _ = _run(inner.jaxpr, inner.consts, values, known, captured, True)
        joined = {n: _join(x) for n, x in captured.items()}
        axes.update({n: x.axis for n, x in joined.items()})
        return outs[:carry], (outs[carry:], {n: x.x for n, x in joined.items()})

    state, (outs, caught) = jax.lax.scan(
        body, ins[consts:first], ins[first:], params["length"], params["reverse"],
        unroll=params["unroll"],
    )  # fmt: skip
    for n, x in caught.items():
        rows = x if n in stacked else x.reshape(-1, x.shape[-1])
        seen.setdefault(n, []).append(Input(rows, axes[n]))
    return [*state, *outs]


SAME = {"convert_element_type", "copy", "stop_gradient", "sharding_constraint", "mul", "div", "neg"}


def _move(name, eqn, views) -> View | None:
    """The view that an operation on a view gives, or None where it is one no longer."""
    first = next(v for v in views if v)
    shape_in = eqn.invars[views.index(first)].aval.shape
    shape = eqn.outvars[0].aval.shape
    if name in SAME:
        others = [v.aval.size for v, w in zip(eqn.invars, views, strict=True) if w is None]
        return first if all(size == 1 for size in others) and shape == shape_in else None
    if name == "transpose":
        return first._replace(axes=tuple(first.axes[i] for i in eqn.params["permutation"]))
    if name in ("concatenate", "stack"):
        if not all(views) or len({v.axes for v in views}) > 1:
            return None
        axes = first.axes
        if name == "stack":
            axes = (*axes[: eqn.params["axis"]], (), *axes[eqn.params["axis"] :])
        return first._replace(kernels=tuple(k for v in views for k in v.kernels), axes=axes)
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
        if math.prod(shape) != math.prod(shape_in):
            return None
        return _reshape(first, shape_in, shape)
    return None


def _reshape(view: View, old: tuple[int, ...], new: tuple[int, ...]) -> View | None:
    """Follow axes through a reshape: equal runs of sizes on both sides belong together."""
    axes: list[tuple[int, ...]] = []
    i = 0
    rest = 1
    for size in new:
        if size == 1 and not (rest == 1 and i < len(old) and old[i] == 1):
            axes.append(())
            continue
        covers: list[int] = []
        if rest > 1:
            covers += view.axes[i - 1]
        while rest < size and i < len(old):
            covers += view.axes[i]
            rest *= old[i]
            i += 1
        if size == 1 and i < len(old) and old[i] == 1:
            covers, i = list(view.axes[i]), i + 1
        if rest % size:
            return None
        rest //= size
        axes.append(tuple(dict.fromkeys(covers)))
    return view._replace(axes=tuple(axes))
