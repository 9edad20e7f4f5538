"""Where leaves lie: a mesh of devices, trees cut over it, models stacked along one of its axes.

    base = shard(base, mesh(4, 2), [("kernel$", P(None, "params")), (".*", P())])

Sharded leaves need nothing else: `merge`, `update` and `merged` keep the sharding of the base.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmerge.core import names
from jaxmerge.core.types import Device, Leaves, Tree
from jaxmerge.errors import UserError
from jaxmerge.io.safetensors import Leaves as Stored
from jaxmerge.io.sources import open_source

Rules = Sequence[tuple[str, PartitionSpec]]


def mesh(
    models: int = 1, params: int | None = None, devices: Sequence[Device] | None = None
) -> Mesh:
    """Devices as a grid of ``("models", "params")``; `params` defaults to all that are left.

    Args:
        models: devices along "models", over which `pmerge` spreads models.
        params: devices along "params", over which leaves are cut; None for all that are left.
        devices: jax's devices, in order; None for all of them.

    Raises:
        ValueError: more devices asked for than there are.

    Example:
        >>> dict(mesh(1, 1).shape)
        {'models': 1, 'params': 1}
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


def shard(params: Tree | str | os.PathLike, mesh: Mesh, rules: Rules | None = None) -> Tree:
    """Place a tree on the mesh, every leaf cut as the first rule says whose regex matches its name.

    Args:
        params: a tree; or a reference (`jaxmerge.io.sources`), or what one opened, whose leaves go
            from the file to the devices one by one: the host never holds more than one, and a host
            reads only the rows that its devices hold, from a bucket too.  Flat then, by the names
            in the file.
        mesh: of `mesh`, or any other.
        rules: ``[(regex, PartitionSpec), ...]``; every leaf must match one.  None cuts each leaf
            along its largest axis that the devices divide, over all axes of the mesh but "models".

    Raises:
        ValueError: leaves without a rule, or with an axis that does not divide, all of them named.

    Example:
        >>> out = shard({"fc/kernel": np.ones((2, 4))}, mesh(1, 1))
        >>> tuple(out["fc/kernel"].sharding.spec)
        (None, 'params')
    """
    if isinstance(params, str | os.PathLike):
        opened = open_source(params, by_range=True)
        try:
            placed = shard(opened, mesh, rules)
            if wrong := opened.replaced():
                raise UserError(f"{', '.join(wrong[:5])} was replaced while it was read.")
            return placed
        finally:
            opened.close()
    if isinstance(params, Stored):
        specs = _specs(params.like, mesh, rules)
        return {n: _from_file(params, n, NamedSharding(mesh, specs[n])) for n in params}
    flat, rebuild = names.flatten(params)
    specs = _specs(flat, mesh, rules)
    return rebuild({n: place_leaf(x, NamedSharding(mesh, specs[n])) for n, x in flat.items()})


def _from_file(leaves: Stored, name: str, sharding: NamedSharding) -> jax.Array:
    """A leaf of a file on its devices."""
    shape = leaves.like[name].shape
    row = math.prod(shape[1:])

    @functools.lru_cache(maxsize=1)  # devices that hold other columns of the same rows
    def rows(start: int, stop: int) -> np.ndarray:
        return leaves.read(name, start * row, stop * row).reshape(stop - start, *shape[1:])

    def part(at: Any) -> np.ndarray:  # a tuple of slices
        if not at:
            return leaves[name]
        start, stop, _ = at[0].indices(shape[0])
        return rows(start, stop)[:, *at[1:]]

    return jax.make_array_from_callback(shape, sharding, part)


def gather(params: Tree) -> Tree:
    """A sharded tree as numpy arrays, whole on every process.

    Args:
        params: a tree of arrays, each on any devices.

    Example:
        >>> gather(shard({"w": np.ones(2, np.float32)}, mesh(1, 1)))["w"]
        array([1., 1.], dtype=float32)
    """
    from jax.experimental import multihost_utils

    def to_numpy(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(to_numpy, params)


class Row(NamedTuple):
    """Shape and dtype of one model's leaf among stacked ones."""

    stacked: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stacked.shape[1:]

    @property
    def dtype(self) -> Any:
        return self.stacked.dtype


def stacked_leaves(models: Any) -> tuple[Leaves, int]:
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


def spec_on(x: Any, mesh: Mesh, axis: str) -> PartitionSpec:
    """How a leaf is cut over the axes of a mesh besides that of the models.

    A leaf of this mesh keeps its cut; one of another mesh is cut along the first axis along which
    it was, where that divides; all others are whole on every device.
    """
    own = getattr(jax.typeof(x) if isinstance(x, Tracer) else x, "sharding", None)
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


def place_like(out: Any, leaf: Any, mesh: Mesh) -> Any:
    """A merged leaf where the base's lies, if that is a sharding of its own."""
    own = getattr(leaf, "sharding", None)
    if isinstance(leaf, Tracer) or not isinstance(own, NamedSharding):
        return out
    ids = np.asarray(own.mesh.device_ids)
    same = np.array_equal(ids, mesh.device_ids) and own == out.sharding
    return out if same else jax.device_put(out, own)


def replicated_key(key: Any, mesh: Mesh) -> Any:
    """The key on every device of a mesh, which may span hosts; typed keys too."""
    if key is None or isinstance(key, Tracer):
        return key
    sharding = NamedSharding(mesh, PartitionSpec())
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return place_leaf(key, sharding)
    return jax.random.wrap_key_data(
        place_leaf(jax.random.key_data(key), sharding), impl=jax.random.key_impl(key)
    )


def place_leaf(x: Any, sharding: NamedSharding) -> Any:
    """A leaf with a sharding: from the host each device is sent its own part only."""
    if isinstance(x, Tracer):
        return jax.lax.with_sharding_constraint(x, sharding)
    if isinstance(x, jax.Array) and (len(x.sharding.device_set) > 1 or jax.process_count() == 1):
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda at: host[at])


def stack(rows: Sequence[Any], length: int, sharding: NamedSharding) -> Any:
    """Leaves of models as one, [length, *leaf]; places beyond the last model repeat it.

    Each device is sent its own models only: from the host, from other devices without the host,
    and by one program where all leaves lie on the devices of the mesh (which may span hosts).
    """
    rows = [*rows, *[rows[-1]] * (length - len(rows))]
    if any(isinstance(x, Tracer) for x in rows):
        return jax.lax.with_sharding_constraint(jnp.stack(rows), sharding)
    devices = sharding.device_set
    if all(isinstance(x, jax.Array) and x.sharding.device_set == devices for x in rows):
        return _stack_on(sharding)(*rows)
    shape = (length, *np.shape(rows[0]))
    if jax.process_count() == 1 and all(isinstance(x, jax.Array) for x in rows):
        parts = [
            jnp.stack([jax.device_put(x[at[1:]], device) for x in rows[at[0]]])
            for device, at in sharding.addressable_devices_indices_map(shape).items()
            if at is not None
        ]
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)
    part = lambda at: np.stack([np.asarray(x)[at[1:]] for x in rows[at[0]]])
    return jax.make_array_from_callback(shape, sharding, part)


@functools.cache
def _stack_on(sharding: NamedSharding) -> Any:
    return jax.jit(lambda *rows: jnp.stack(rows), out_shardings=sharding)


def stack_slice(x: Any, low: int, high: int, length: int, sharding: NamedSharding) -> Any:
    """Models `low` to `high` of stacked ones; places beyond the last model repeat it."""
    if (low, high, length) == (0, x.shape[0], x.shape[0]):
        return place_leaf(x, sharding)
    xp = np if isinstance(x, np.ndarray) else jnp
    part = x[low:high]
    if high - low < length:
        part = xp.concatenate([part, xp.repeat(part[-1:], length - (high - low), axis=0)])
    return place_leaf(part, sharding)


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
