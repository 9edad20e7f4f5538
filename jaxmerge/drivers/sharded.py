"""Merging on many devices: models spread over one axis of a mesh, leaves cut over the others.

    grid = mesh(models=4, params=2)
    base = shard(base, grid, [("kernel$", P(None, "params")), (".*", P())])
    out = pmerge(jm.ties(0.2), base, models, grid)

`pmerge` folds models in parallel.  Device d folds a block of consecutive models, counted from the
block's own place in the sequence, so random masks are those of the sequential fold.  The states
then meet by the method's `combine` in a butterfly: in round k neighbours at distance 2^k swap
states, and both put the earlier models first.  After log2(D) rounds all hold the result.
`jaxmerge.drivers.placement` makes the mesh and cuts the leaves.

A method without `combine` (OPCM must see its models in turn) is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.core import names
from jaxmerge.core.finite import refuse_nonfinite
from jaxmerge.core.specs import frozen
from jaxmerge.core.types import Leaves, Merge, Tree, concrete
from jaxmerge.core.validation import (
    check_count,
    check_joinable,
    check_method,
    check_nonfinite,
    flat_extra,
    grid_of,
)
from jaxmerge.drivers.memory import MergeState, Nonfinite, init, join, merged, update
from jaxmerge.drivers.placement import (
    Row,
    place_leaf,
    place_like,
    replicated_key,
    spec_on,
    stack,
    stack_slice,
    stacked_leaves,
)


def pmerge(
    method: Merge,
    base: Tree,
    models: Sequence[Tree] | Tree,
    mesh: Mesh,
    *,
    axis: str = "models",
    key: jax.Array | None = None,
    extras: Sequence[Mapping[str, Tree]] | None = None,
    nonfinite: Nonfinite = "raise",
) -> Tree:
    """Merge models in parallel over one axis of a mesh; see the module's docstring.

    Args:
        base: theta_0; where its leaves are sharded over the other axes, the result is.  Sharded
            over another mesh, leaves are cut along the same axis over the other axes of this one
            while they are merged, and the result lies as the base does.
        models: a list of trees like the base, or one such tree whose leaves are stacked,
            ``[T, *leaf]``.  T need not be a multiple of the number of devices.
        axis: the axis of the mesh that counts models.
        extras: per model, side information, as in `merge`.
        method: one whose states can be joined.
        mesh: of `mesh`, or any other with the axis.
        key: PRNG key, needed by stochastic methods; masks are those of `merge`.
        nonfinite: "raise" refuses NaN and Inf by name, "zero" counts them as no change.

    Returns:
        The merged model as jax arrays on the mesh, equal to `merge` (bit for bit where the
        method's arithmetic does not depend on the grouping of sums).

    Raises:
        ValueError: as `merge`; the mesh has no such axis; or the method cannot join states of
            disjoint sets of models.

    Memory a device: its share of the models, the base, and two states.  Compiled once for each
    method, mesh and number of models; runs inside jit too.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.float32([4, -1])}, {"w": np.float32([-2, -6])}]
        >>> jm.pmerge(jm.magmax(0.5), {"w": np.zeros(2, np.float32)}, models, jm.mesh(1, 1))["w"]
        Array([ 2., -3.], dtype=float32)
    """
    check_method(method, key)
    zero = check_nonfinite(nonfinite)
    if axis not in mesh.axis_names:
        raise ValueError(
            f"The mesh has the axes {mesh.axis_names}, none is named {axis!r}: name the one that "
            "counts models (axis=...), or make a mesh by jm.mesh(models=..., params=...)."
        )
    mesh = Mesh(mesh.devices, mesh.axis_names)  # explicit axes refuse sort, scatter and svd
    flat, rebuild = names.flatten(base)
    stacked, count = stacked_leaves(models)
    rows = [] if stacked else [names.flatten(m)[0] for m in models]
    check_count(method, count, whole=True)
    names.check_same(flat, *([{n: Row(x) for n, x in stacked.items()}] if stacked else rows))
    grid = grid_of(method, flat)
    check_joinable(method, grid)
    if extras is not None and len(extras) != count:
        raise ValueError(f"extras has {len(extras)} entries for {count} models; one each.")
    sides = [
        flat_extra(method, flat, e, f"model {t}") for t, e in enumerate(extras or [{}] * count)
    ]
    if not zero:
        refuse_nonfinite(grid, flat, [stacked] if stacked else rows)

    placed = {
        n: place_leaf(x, NamedSharding(mesh, spec_on(x, mesh, axis))) for n, x in flat.items()
    }
    specs = {n: spec_on(x, mesh, axis) for n, x in flat.items()}
    key = replicated_key(key, mesh)
    devices = mesh.shape[axis]
    if _grows(method, grid, flat, sides[0], key):  # then no device may idle: see _program
        share = count // devices
    else:
        share = math.ceil(count / devices)
    cut = share * devices

    def part(low: int, high: int, length: int, over: str | None) -> Any:
        place = lambda spec: NamedSharding(mesh, PartitionSpec(over, *spec))
        leaves = {
            n: stack_slice(stacked[n], low, high, length, place(specs[n]))
            if stacked
            else stack([r[n] for r in rows[low:high]], length, place(specs[n]))
            for n in grid
        }
        whole = lambda *xs: stack(list(xs), length, place(PartitionSpec()))
        return leaves, jax.tree.map(whole, *sides[low:high])

    spread = part(0, min(cut, count), cut, axis) if cut else None
    rest = part(cut, count, count - cut, None) if cut < count else None
    plan = (mesh, axis, count, share, nonfinite)
    if concrete(jax.tree.leaves(frozen(method))):
        out = _run(frozen(method), plan, placed, spread, rest, key)
    else:  # a number of the method is being traced
        out = jax.jit(functools.partial(_program, method, plan))(placed, spread, rest, key)
    return rebuild({n: place_like(x, flat[n], mesh) for n, x in out.items()})


def _program(method: Merge, plan: tuple, base: Any, spread: Any, rest: Any, key: Any) -> Any:
    """Fold on every device, meet, fold what is left over, finish.

    When `share` does not come out even, the last places hold no model and leave the state as it
    was; where the cells grow with every model that cannot be, so the last few are folded after the
    states have met, on all devices alike.
    """
    mesh, axis, count, share, nonfinite = plan
    devices = mesh.shape[axis]

    def step(state, base, stacked, i):
        row, extras = jax.tree.map(lambda x: x[i], stacked)
        integers = {n: x for n, x in base.items() if n not in row}
        return update(method, state, base, row | integers, nonfinite=nonfinite, **extras)

    def fold(base, spread, key):
        place = jax.lax.axis_index(axis) * share
        empty = init(method, base, key=key)
        state = MergeState(empty.step + place, key, empty.cells)
        for i in range(share):
            new, wanted = step(state, base, spread, i), place + i < count
            if count < share * devices:
                new = jax.tree.map(lambda a, b, c=wanted: jnp.where(c, a, b), new, state)
            state = MergeState(new.step, key, new.cells)
        state = MergeState(jnp.clip(count - place, 0, share), key, state.cells)
        return _meet(functools.partial(join, method, base=base), state, devices, axis)

    spread_over = functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axis), PartitionSpec()),
        out_specs=PartitionSpec(),
        axis_names={axis},
        check_vma=False,
    )
    state = spread_over(fold)(base, spread, key) if share else init(method, base, key=key)
    for i in range(count - share * devices):
        state = step(state, base, rest, i)
    return merged(method, state, base)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(spec: Any, plan: tuple, base: Any, spread: Any, rest: Any, key: Any) -> Any:
    """`_program`, compiled once for each method: its numbers are static, so that counts of kept
    entries are exact."""
    return _program(spec.build(), plan, base, spread, rest, key)


def _grows(method: Merge, grid: Any, base: Leaves, extras: Any, key: Any) -> bool:
    """Whether cells take another structure with every model (`stacked` ones): one leaf a fold."""
    samples = {repr(p.fold): n for n, p in grid.items()}.values()
    like = {n: jax.ShapeDtypeStruct(base[n].shape, base[n].dtype) for n in samples}
    sides: dict[str, Any] = {k: {n: v[n] for n in samples if n in v} for k, v in extras.items()}
    start = lambda base: init(method, base, key=key)
    more = lambda base: update(method, start(base), base, base, **sides)
    before, after = (jax.eval_shape(f, like).cells for f in (start, more))
    return jax.tree.structure(before) != jax.tree.structure(after)


def _meet(joined: Any, state: MergeState, devices: int, axis: str) -> MergeState:
    """All devices' states as one on every device, in the order of the devices."""
    numbers, key = (state.step, state.cells), state.key
    if devices & (devices - 1):  # no power of two: gather, then join in order
        every = jax.lax.all_gather(numbers, axis)
        parts = [jax.tree.map(lambda x, d=d: x[d], every) for d in range(devices)]
        return functools.reduce(joined, [MergeState(step, key, cells) for step, cells in parts])
    for k in range(devices.bit_length() - 1):
        swap = [(d, d ^ (1 << k)) for d in range(devices)]
        other = jax.lax.ppermute(numbers, axis, swap)
        later = (jax.lax.axis_index(axis) >> k) & 1 == 1
        first = jax.tree.map(lambda a, b, c=later: jnp.where(c, b, a), numbers, other)
        second = jax.tree.map(lambda a, b, c=later: jnp.where(c, a, b), numbers, other)
        state = joined(MergeState(first[0], key, first[1]), MergeState(second[0], key, second[1]))
        numbers = (state.step, state.cells)
    return MergeState(numbers[0], key, numbers[1])


# ------------------------------------------------------------ placing
