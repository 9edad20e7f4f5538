"""Merging on many devices: leaves cut over ``params``, models spread over ``models``.

    grid = mesh(models=4, params=2)
    base = shard(base, grid, [("kernel$", P(None, "params")), (".*", P())])
    out = pmerge(jm.ties(0.2), base, models, grid)

* Sharded leaves need nothing of this page: `merge`, `update` and `merged` keep the sharding of the
  base.  `shard` cuts leaves by ordered regex rules.
* `pmerge` folds models in parallel.  Device d folds a block of consecutive models, counted from
  the block's own place in the sequence, so random masks are those of the sequential fold.  The
  states then meet by the method's `combine` in a butterfly: in round k neighbours at distance 2^k
  swap states, and both put the earlier models first.  After log2(D) rounds all hold the result.

A method without `combine` (OPCM must see its models in turn) is refused.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmerge.core import names
from jaxmerge.core.types import Leaves, Merge
from jaxmerge.core.validation import (
    check_choice,
    check_count,
    check_joinable,
    check_method,
    flat_extra,
    grid_of,
    refuse_nonfinite,
)
from jaxmerge.drivers.memory import MergeState, Nonfinite, init, join, merged, update

__all__ = ["gather", "mesh", "pmerge", "shard"]

Rules = Sequence[tuple[str, PartitionSpec]]


def mesh(models: int = 1, params: int | None = None, devices: Any = None) -> Mesh:
    """Devices as a grid of ``("models", "params")``; `params` defaults to all that are left.

    Raises:
        ValueError: more devices asked for than there are.
    """
    devices = jax.devices() if devices is None else list(devices)
    params = max(1, len(devices) // models) if params is None else params
    if not 0 < models * params <= len(devices):
        raise ValueError(
            f"A mesh of {models} x {params} needs {models * params} devices, found {len(devices)}."
        )
    automatic = (AxisType.Auto, AxisType.Auto)  # explicit axes refuse sort, scatter and svd
    some = devices[: models * params]
    return jax.make_mesh((models, params), ("models", "params"), automatic, devices=some)


def shard(params: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """Place a tree on the mesh, every leaf cut as the first rule says whose regex matches its name.

    Args:
        rules: ``[(regex, PartitionSpec), ...]``; every leaf must match one.  None cuts each leaf
            along its largest axis that the "params" devices divide.

    Raises:
        ValueError: leaves without a rule, or with an axis that does not divide, all of them named.
    """
    flat, rebuild = names.flatten(params)
    specs = _specs(flat, mesh, rules)
    return rebuild({n: _place(x, NamedSharding(mesh, specs[n])) for n, x in flat.items()})


def gather(params: Any) -> Any:
    """A sharded tree as numpy arrays, whole on every process."""
    from jax.experimental import multihost_utils

    def whole(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(whole, params)


def pmerge(
    method: Merge,
    base: Any,
    models: Any,
    mesh: Mesh,
    *,
    key: Any = None,
    extras: Sequence[Any] | None = None,
    nonfinite: Nonfinite = "raise",
) -> Any:
    """Merge models in parallel over the "models" axis of a mesh; see the module's docstring.

    Args:
        base: theta_0; where its leaves are sharded over "params", the result is.
        models: a list of trees like the base, or one such tree whose leaves are stacked,
            ``[T, *leaf]``.  T need not be a multiple of the number of devices.
        extras: per model, side information, as in `merge`.

    Returns:
        The merged model as jax arrays on the mesh, equal to `merge` (bit for bit where the
        method's arithmetic does not depend on the grouping of sums).

    Raises:
        ValueError: as `merge`; or the method cannot join states of disjoint sets of models.

    Memory a device: its share of the models, the base, and two states.
    """
    check_method(method, key)
    zero = check_choice(nonfinite)
    flat, rebuild = names.flatten(base)
    rows = _rows(models)
    check_count(method, len(rows))
    names.check_same(flat, *rows)
    grid = grid_of(method, flat)
    check_joinable(method, grid)
    if extras is not None and len(extras) != len(rows):
        raise ValueError(f"extras has {len(extras)} entries for {len(rows)} models; one each.")
    sides = [
        flat_extra(method, flat, e, f"model {t}") for t, e in enumerate(extras or [{}] * len(rows))
    ]
    if not zero:
        refuse_nonfinite(grid, *_here(grid, flat, rows))

    placed = {n: _on_mesh(x, mesh) for n, x in flat.items()}
    key = None if key is None else jax.device_put(key, NamedSharding(mesh, PartitionSpec()))
    count, devices = len(rows), mesh.shape["models"]
    rows = [{n: row[n] for n in grid} for row in rows]
    if _grows(method, placed, rows[0], sides[0], key):  # then no device may idle: see _program
        share = count // devices
    else:
        share = math.ceil(count / devices)
    cut = share * devices
    spread = _stack(rows[:cut], sides[:cut], placed, mesh, "models", cut) if cut else None
    rest = _stack(rows[cut:], sides[cut:], placed, mesh, None, count - cut) if cut < count else None
    return rebuild(_program(method, mesh, count, share, nonfinite)(placed, spread, rest, key))


def _program(method: Merge, mesh: Mesh, count: int, share: int, nonfinite: Nonfinite) -> Any:
    """One compiled program: fold on every device, meet, fold what is left over, finish.

    When `share` does not come out even, the last places hold no model and leave the state as it
    was; where the cells grow with every model that cannot be, so the last few are folded after the
    states have met, on all devices alike.
    """
    devices = mesh.shape["models"]

    def step(state, base, stacked, i):
        row, extras = jax.tree.map(lambda x: x[i], stacked)
        integers = {n: x for n, x in base.items() if n not in row}
        return update(method, state, base, row | integers, nonfinite=nonfinite, **extras)

    def fold(base, spread, key):
        place = jax.lax.axis_index("models") * share
        empty = init(method, base, key=key)
        state = MergeState(empty.step + place, key, empty.cells)
        for i in range(share):
            new, wanted = step(state, base, spread, i), place + i < count
            if count < share * devices:
                new = jax.tree.map(lambda a, b, c=wanted: jnp.where(c, a, b), new, state)
            state = MergeState(new.step, key, new.cells)
        state = MergeState(jnp.clip(count - place, 0, share), key, state.cells)
        return _meet(functools.partial(join, method, base=base), state, devices)

    spread_over = functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("models"), PartitionSpec()),
        out_specs=PartitionSpec(),
        axis_names={"models"},
        check_vma=False,
    )

    @jax.jit
    def run(base, spread, rest, key):
        state = spread_over(fold)(base, spread, key) if share else init(method, base, key=key)
        for i in range(count - share * devices):
            state = step(state, base, rest, i)
        return merged(method, state, base)

    return run


def _grows(method: Merge, base: Leaves, row: Leaves, extras: Any, key: Any) -> bool:
    """Whether the cells of a method take another structure with every model (`stacked` ones)."""
    whole = {n: row.get(n, x) for n, x in base.items()}
    empty = jax.eval_shape(lambda: init(method, base, key=key).cells)
    after = jax.eval_shape(
        lambda: update(method, init(method, base, key=key), base, whole, **extras).cells
    )
    return jax.tree.structure(empty) != jax.tree.structure(after)


def _meet(joined: Any, state: MergeState, devices: int) -> MergeState:
    """All devices' states as one on every device, in the order of the devices."""
    numbers, key = (state.step, state.cells), state.key
    if devices & (devices - 1):  # no power of two: gather, then join in order
        every = jax.lax.all_gather(numbers, "models")
        parts = [jax.tree.map(lambda x, d=d: x[d], every) for d in range(devices)]
        return functools.reduce(joined, [MergeState(step, key, cells) for step, cells in parts])
    for k in range(devices.bit_length() - 1):
        swap = [(d, d ^ (1 << k)) for d in range(devices)]
        other = jax.lax.ppermute(numbers, "models", swap)
        later = (jax.lax.axis_index("models") >> k) & 1 == 1
        first = jax.tree.map(lambda a, b, c=later: jnp.where(c, b, a), numbers, other)
        second = jax.tree.map(lambda a, b, c=later: jnp.where(c, a, b), numbers, other)
        state = joined(MergeState(first[0], key, first[1]), MergeState(second[0], key, second[1]))
        numbers = (state.step, state.cells)
    return MergeState(numbers[0], key, numbers[1])


# ------------------------------------------------------------ placing


def _rows(models: Any) -> list[Leaves]:
    """The models one by one: views of a list of trees, or of one tree of stacked leaves."""
    if isinstance(models, list | tuple):
        return [names.flatten(m)[0] for m in models]
    flat = names.flatten(models)[0]
    lengths = {n: x.shape[0] if x.ndim else None for n, x in flat.items()}
    length = next(iter(lengths.values()), None)
    if length is None or set(lengths.values()) != {length}:
        raise ValueError(
            f"Stacked models need one leading axis of one length in every leaf, found {lengths}."
        )
    return [{n: x[t] for n, x in flat.items()} for t in range(length)]


def _here(grid: Any, base: Leaves, rows: list[Leaves]) -> tuple[Leaves, list[Leaves]]:
    """What of these trees this process can read (all of it, in a single process)."""
    seen = lambda x: not isinstance(x, jax.Array) or x.is_fully_addressable
    zero = np.zeros((), np.float32)
    look = lambda tree: {n: tree[n] if seen(tree[n]) else zero for n in grid}
    return look(base), [look(row) for row in rows]


def _on_mesh(x: Any, mesh: Mesh) -> Any:
    """A leaf as it is if it lies on this mesh, else a copy on every device."""
    if isinstance(x, jax.Array) and getattr(x.sharding, "mesh", None) == mesh:
        return x
    return _place(x, NamedSharding(mesh, PartitionSpec()))


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda at: host[at])


def _stack(
    rows: Sequence[Leaves],
    sides: Sequence[Any],
    base: Leaves,
    mesh: Mesh,
    over: str | None,
    length: int,
) -> Any:
    """Flat trees as one tree of leaves [length, *leaf], the first axis cut over that mesh axis.

    Each device is sent its own models only; places beyond the last model repeat it.
    """

    def stack(some: list[Any], spec: PartitionSpec) -> jax.Array:
        some = [*some, *[some[-1]] * (length - len(some))]
        sharding = NamedSharding(mesh, PartitionSpec(over, *spec))
        part = lambda at: np.stack([np.asarray(x)[at[1:]] for x in some[at[0]]])
        return jax.make_array_from_callback((length, *some[0].shape), sharding, part)

    stacked = {n: stack([r[n] for r in rows], base[n].sharding.spec) for n in rows[0]}
    return stacked, jax.tree.map(lambda *xs: stack(list(xs), PartitionSpec()), *sides)


def _specs(flat: Leaves, mesh: Mesh, rules: Rules | None) -> dict[str, PartitionSpec]:
    if rules is None:
        return {n: _largest(x, mesh.shape["params"]) for n, x in flat.items()}
    compiled = [(re.compile(pattern), spec) for pattern, spec in rules]
    specs, wrong = {}, []
    for n, x in flat.items():
        spec = next((s for pattern, s in compiled if pattern.search(n)), None)
        if spec is None:
            wrong.append(f"leaf {n!r} ({names.kind(x)}) matches no rule; end with ('.*', P())")
            continue
        if len(spec) > x.ndim:
            wrong.append(f"leaf {n!r} ({names.kind(x)}) has fewer axes than {spec}")
            continue
        for axis, part in enumerate(spec):
            parts = part if isinstance(part, tuple) else (part,) if part else ()
            size = math.prod(mesh.shape[p] for p in parts)
            if x.shape[axis] % size:
                wrong.append(f"leaf {n!r} ({names.kind(x)}): axis {axis} is no multiple of {size}")
        specs[n] = spec
    if wrong:
        raise ValueError("The rules do not fit:\n  " + "\n  ".join(wrong))
    return specs


def _largest(x: Any, size: int) -> PartitionSpec:
    fits = [(width, axis) for axis, width in enumerate(x.shape) if width % size == 0 and width]
    if not fits:
        return PartitionSpec()
    axis = max(fits)[1]
    return PartitionSpec(*[None] * axis, "params")
