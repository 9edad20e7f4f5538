"""Data parallelism: batches are cut over all devices, weights are whole on each of them.

The default wherever there is more than one device (JAXMERGE_DEVICES=1 uses one): `spread` places a
batch, `everywhere` the weights, and XLA adds up the gradients.  Sums are then taken in another
order, so figures agree with those of one device to rounding, not to the bit.  A batch that the
devices do not divide is computed by each of them as a whole: right, but no faster; choose a
multiple.

Under ``jax.distributed`` every process runs the same program on the same data, computes its share
of each batch, and holds all weights; the first process alone writes files.  The folder of the run
must be one that all processes see.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.core.types import Tree

AXIS = "data"


def mesh() -> Mesh | None:
    """All devices in a row, or the first JAXMERGE_DEVICES of them; None where there is one.

    Raises:
        ValueError: JAXMERGE_DEVICES is no number from 1 to the number of devices.

    >>> row = mesh()
    >>> row is None or row.axis_names == ("data",)
    True
    """
    return _mesh(os.environ.get("JAXMERGE_DEVICES", ""))


@functools.cache
def _mesh(wanted: str) -> Mesh | None:
    devices = jax.devices()
    if wanted:
        if not wanted.isdigit() or not 1 <= int(wanted) <= len(devices):
            raise ValueError(
                f"JAXMERGE_DEVICES is {wanted!r}; expected a number from 1 to {len(devices)}, the "
                "devices there are."
            )
        devices = devices[: int(wanted)]
    return Mesh(np.array(devices), (AXIS,)) if len(devices) > 1 else None


def spread(tree: Tree, axis: int = 0) -> Tree:
    """Numpy leaves on the devices, cut along `axis` where the devices divide it.

    Args:
        tree: numpy leaves, [..., B, ...].
        axis: that of the batch, from 0.

    >>> spread({"x": np.ones((4, 2), np.float32)})["x"].shape
    (4, 2)
    """
    row = mesh()
    if row is None:
        return jax.tree.map(jnp.asarray, tree)

    def put(x: np.ndarray) -> jax.Array:
        fits = np.ndim(x) > axis and x.shape[axis] % row.size == 0
        cut = PartitionSpec(*[None] * axis, AXIS) if fits else PartitionSpec()
        return _put(x, NamedSharding(row, cut))

    return jax.tree.map(put, tree)


def to_numpy(x: jax.Array) -> np.ndarray:
    """An array that may be cut over devices, of other processes too, as numpy.

    Args:
        x: on any devices.

    >>> to_numpy(jnp.ones(2))
    array([1., 1.], dtype=float32)
    """
    return np.asarray(x if x.is_fully_addressable else everywhere(x))


def first() -> bool:
    """Whether this process writes files.

    >>> first()
    True
    """
    return jax.process_index() == 0


def agreed(answer: bool) -> bool:
    """The answer of the first process, in all of them; they wait for it.

    Args:
        answer: of this process.

    >>> agreed(True)
    True
    """
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import broadcast_one_to_all

        answer = bool(broadcast_one_to_all(answer))
    return answer


def wait(where: str) -> None:
    """Wait until all processes are here.

    Args:
        where: what the processes call this place.

    >>> wait("the end of a task")
    """
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(where)


def everywhere(tree: Tree) -> Tree:
    """Every leaf whole on every device.

    Args:
        tree: leaves on any devices.

    >>> everywhere({"w": jnp.ones(2)})["w"].shape
    (2,)
    """
    row = mesh()
    if row is None:
        return tree
    return _put(tree, NamedSharding(row, PartitionSpec()))


def _put(tree: Tree, where: NamedSharding) -> Tree:
    """Leaves, of which every process has the whole, on the devices of all of them.

    With several processes `jax.device_put` sends what is given to it from the first process to the
    others and compares, so that it takes neither a number of Python nor a batch at its own speed.
    """
    return jax.device_put(tree, where) if jax.process_count() == 1 else _put_own(tree, where)


def _put_own(tree: Tree, where: NamedSharding) -> Tree:
    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, where)
        dtype = jnp.result_type(x)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        own = np.asarray(x, dtype)
        return jax.make_array_from_callback(own.shape, where, lambda part: own[part])

    return jax.tree.map(put, tree)
