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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmerge.core import names
from jaxmerge.core.specs import frozen
from jaxmerge.core.types import Leaves, Merge, concrete
from jaxmerge.core.validation import (
    check_count,
    check_joinable,
    check_method,
    check_nonfinite,
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
    chosen = devices[: models * params]
    return jax.make_mesh((models, params), ("models", "params"), automatic, devices=chosen)


def shard(params: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """Place a tree on the mesh, every leaf cut as the first rule says whose regex matches its name.

    Args:
        rules: ``[(regex, PartitionSpec), ...]``; every leaf must match one.  None cuts each leaf
            along its largest axis that the devices divide, over all axes of the mesh but "models".

    Raises:
        ValueError: leaves without a rule, or with an axis that does not divide, all of them named.
    """
    flat, rebuild = names.flatten(params)
    specs = _specs(flat, mesh, rules)
    return rebuild({n: _place(x, NamedSharding(mesh, specs[n])) for n, x in flat.items()})


def gather(params: Any) -> Any:
    """A sharded tree as numpy arrays, whole on every process."""
    from jax.experimental import multihost_utils

    def to_numpy(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(to_numpy, params)


def pmerge(
    method: Merge,
    base: Any,
    models: Any,
    mesh: Mesh,
    *,
    axis: str = "models",
    key: Any = None,
    extras: Sequence[Any] | None = None,
    nonfinite: Nonfinite = "raise",
) -> Any:
    """Merge models in parallel over one axis of a mesh; see the module's docstring.

    Args:
        base: theta_0; where its leaves are sharded over the other axes, the result is.  Sharded
            over another mesh, leaves are cut along the same axis over the other axes of this one
            while they are merged, and the result lies as the base does.
        models: a list of trees like the base, or one such tree whose leaves are stacked,
            ``[T, *leaf]``.  T need not be a multiple of the number of devices.
        axis: the axis of the mesh that counts models.
        extras: per model, side information, as in `merge`.

    Returns:
        The merged model as jax arrays on the mesh, equal to `merge` (bit for bit where the
        method's arithmetic does not depend on the grouping of sums).

    Raises:
        ValueError: as `merge`; the mesh has no such axis; or the method cannot join states of
            disjoint sets of models.

    Memory a device: its share of the models, the base, and two states.  Compiled once for each
    method, mesh and number of models; runs inside jit too.
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
    stacked, count = _stacked(models)
    rows = [] if stacked else [names.flatten(m)[0] for m in models]
    check_count(method, count)
    names.check_same(flat, *([{n: _Row(x) for n, x in stacked.items()}] if stacked else rows))
    grid = grid_of(method, flat)
    check_joinable(method, grid)
    if extras is not None and len(extras) != count:
        raise ValueError(f"extras has {len(extras)} entries for {count} models; one each.")
    sides = [
        flat_extra(method, flat, e, f"model {t}") for t, e in enumerate(extras or [{}] * count)
    ]
    if not zero:
        refuse_nonfinite(grid, flat, [stacked] if stacked else rows)

    placed = {n: _place(x, NamedSharding(mesh, _spec_on(x, mesh, axis))) for n, x in flat.items()}
    specs = {n: _spec_on(x, mesh, axis) for n, x in flat.items()}
    key = _replicated_key(key, mesh)
    devices = mesh.shape[axis]
    if _grows(method, grid, flat, sides[0], key):  # then no device may idle: see _program
        share = count // devices
    else:
        share = math.ceil(count / devices)
    cut = share * devices

    def part(low: int, high: int, length: int, over: str | None) -> Any:
        place = lambda spec: NamedSharding(mesh, PartitionSpec(over, *spec))
        leaves = {
            n: _stack_slice(stacked[n], low, high, length, place(specs[n]))
            if stacked
            else _stack([r[n] for r in rows[low:high]], length, place(specs[n]))
            for n in grid
        }
        whole = lambda *xs: _stack(list(xs), length, place(PartitionSpec()))
        return leaves, jax.tree.map(whole, *sides[low:high])

    spread = part(0, min(cut, count), cut, axis) if cut else None
    rest = part(cut, count, count - cut, None) if cut < count else None
    plan = (mesh, axis, count, share, nonfinite)
    if concrete(jax.tree.leaves(frozen(method))):
        out = _run(frozen(method), plan, placed, spread, rest, key)
    else:  # a number of the method is being traced
        out = jax.jit(functools.partial(_program, method, plan))(placed, spread, rest, key)
    return rebuild({n: _back(x, flat[n], mesh) for n, x in out.items()})


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
    sides = {k: {n: v[n] for n in samples if n in v} for k, v in extras.items()}
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


class _Row(NamedTuple):
    """Shape and dtype of one model's leaf among stacked ones."""

    stacked: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stacked.shape[1:]

    @property
    def dtype(self) -> Any:
        return self.stacked.dtype


def _stacked(models: Any) -> tuple[Leaves, int]:
    """Stacked leaves and how many models they hold; no leaves where `models` is a list."""
    if isinstance(models, list | tuple):
        return {}, len(models)
    flat = names.flatten(models)[0]
    lengths = {n: x.shape[0] if x.ndim else None for n, x in flat.items()}
    length = next(iter(lengths.values()), None)
    if length is None or set(lengths.values()) != {length}:
        raise ValueError(
            f"Stacked models need one leading axis of one length in every leaf, found {lengths}."
        )
    return flat, length


def _spec_on(x: Any, mesh: Mesh, axis: str) -> PartitionSpec:
    """How a leaf is cut over the axes of a mesh besides that of the models.

    A leaf of this mesh keeps its cut; one of another mesh is cut along the first axis along which
    it was, where that divides; all others are whole on every device.
    """
    own = getattr(jax.typeof(x) if isinstance(x, jax.core.Tracer) else x, "sharding", None)
    if not isinstance(own, NamedSharding):
        return PartitionSpec()
    if own.mesh.axis_names == mesh.axis_names and own.mesh.axis_sizes == mesh.axis_sizes:
        return PartitionSpec(*(_without(part, axis) for part in own.spec))
    others = tuple(a for a in mesh.axis_names if a != axis)
    size = math.prod(mesh.shape[a] for a in others)
    for at, part in enumerate(own.spec):
        if part is not None and x.shape[at] % size == 0:
            return PartitionSpec(*[None] * at, others)
    return PartitionSpec()


def _without(part: Any, axis: str) -> Any:
    left = tuple(a for a in (part if isinstance(part, tuple) else (part,)) if a not in (axis, None))
    return None if not left else left[0] if len(left) == 1 else left


def _back(out: Any, leaf: Any, mesh: Mesh) -> Any:
    """A merged leaf where the base's lies, if that is a sharding of its own."""
    own = getattr(leaf, "sharding", None)
    if isinstance(leaf, jax.core.Tracer) or not isinstance(own, NamedSharding):
        return out
    same = own.mesh.device_ids.tolist() == mesh.device_ids.tolist() and own == out.sharding
    return out if same else jax.device_put(out, own)


def _replicated_key(key: Any, mesh: Mesh) -> Any:
    """The key on every device of a mesh, which may span hosts; typed keys too."""
    if key is None or isinstance(key, jax.core.Tracer):
        return key
    sharding = NamedSharding(mesh, PartitionSpec())
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return _place(key, sharding)
    return jax.random.wrap_key_data(
        _place(jax.random.key_data(key), sharding), impl=jax.random.key_impl(key)
    )


def _place(x: Any, sharding: NamedSharding) -> Any:
    """A leaf with a sharding: from the host each device is sent its own part only."""
    if isinstance(x, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(x, sharding)
    if isinstance(x, jax.Array) and (len(x.sharding.device_set) > 1 or jax.process_count() == 1):
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda at: host[at])


def _stack(rows: Sequence[Any], length: int, sharding: NamedSharding) -> Any:
    """Leaves of models as one, [length, *leaf]; places beyond the last model repeat it.

    Each device is sent its own models only: from the host, from other devices without the host,
    and by one program where all leaves lie on the devices of the mesh (which may span hosts).
    """
    rows = [*rows, *[rows[-1]] * (length - len(rows))]
    if any(isinstance(x, jax.core.Tracer) for x in rows):
        return jax.lax.with_sharding_constraint(jnp.stack(rows), sharding)
    devices = sharding.device_set
    if all(isinstance(x, jax.Array) and x.sharding.device_set == devices for x in rows):
        return _stack_on(sharding)(*rows)
    shape = (length, *np.shape(rows[0]))
    if jax.process_count() == 1 and all(isinstance(x, jax.Array) for x in rows):
        parts = [
            jnp.stack([jax.device_put(x[at[1:]], device) for x in rows[at[0]]])
            for device, at in sharding.addressable_devices_indices_map(shape).items()
        ]
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)
    part = lambda at: np.stack([np.asarray(x)[at[1:]] for x in rows[at[0]]])
    return jax.make_array_from_callback(shape, sharding, part)


@functools.cache
def _stack_on(sharding: NamedSharding) -> Any:
    return jax.jit(lambda *rows: jnp.stack(rows), out_shardings=sharding)


def _stack_slice(x: Any, low: int, high: int, length: int, sharding: NamedSharding) -> Any:
    """Models `low` to `high` of stacked ones; places beyond the last model repeat it."""
    if (low, high, length) == (0, x.shape[0], x.shape[0]):
        return _place(x, sharding)
    xp = np if isinstance(x, np.ndarray) else jnp
    part = x[low:high]
    if high - low < length:
        part = xp.concatenate([part, xp.repeat(part[-1:], length - (high - low), axis=0)])
    return _place(part, sharding)


def _specs(flat: Leaves, mesh: Mesh, rules: Rules | None) -> dict[str, PartitionSpec]:
    unknown = sorted({a for _, spec in rules or () for a in _axes(spec)} - set(mesh.axis_names))
    if unknown:
        raise ValueError(
            f"The rules name the axes {unknown}, which the mesh lacks; it has {mesh.axis_names}."
        )
    if rules is None:
        over = tuple(a for a in mesh.axis_names if a != "models")
        return {
            n: _largest(x, over, math.prod(mesh.shape[a] for a in over)) for n, x in flat.items()
        }
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


def _axes(spec: PartitionSpec) -> list[str]:
    """The axes of a mesh that a spec names."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec]
    return [a for part in parts for a in part if a is not None]


def _largest(x: Any, over: tuple[str, ...], size: int) -> PartitionSpec:
    fits = [(width, axis) for axis, width in enumerate(x.shape) if width % size == 0 and width]
    if not fits:
        return PartitionSpec()
    axis = max(fits)[1]
    return PartitionSpec(*[None] * axis, over[0] if len(over) == 1 else over)
