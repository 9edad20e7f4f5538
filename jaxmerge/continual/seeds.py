"""One stream with several seeds: one form for all; at once, what differs stacked and mapped over.

What is mapped over is traced, so that `jaxmerge.continual.drivers.program` cannot see its numbers
there: `stacked` looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.continual.stream_records import Groups, Stream
from jaxmerge.continual.values import wrong_values
from jaxmerge.core.types import Array, Tree
from jaxmerge.errors import listed


def alike(streams: Sequence[Stream], every: int = 1) -> list[Stream]:
    """The streams filled up with weight 0 to one form, so that one compilation serves all.

    Args:
        streams: of as many tasks, with as many groups.
        every: the steps of a task become a multiple of this number.

    >>> from jaxmerge.continual import streams
    >>> x, y = np.eye(6, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 5]], np.array([0, 1, 2, 3, 4, 5, 5])
    >>> orders = [[0, 1, 2], [3, 4, 5]], [[0], [1, 2, 3, 4, 5]]
    >>> every = [streams.split((x, y), (x, y), order, batch=1) for order in orders]
    >>> [s.rows.shape for s in every], [s.rows.shape for s in alike(every, 4)]
    ([(2, 4, 1), (2, 6, 1)], [(2, 8, 1), (2, 8, 1)])
    """

    def grown(x: Array, size: int, value: int = 0) -> np.ndarray:
        room = [(0, 0)] * x.ndim
        room[1] = (0, size - x.shape[1])
        return np.pad(np.asarray(x), room, constant_values=value)

    sets = [(s.groups,) if isinstance(s.groups, Groups) else tuple(s.groups) for s in streams]
    widths = [max(g.rows.shape[1] for g in own) for own in zip(*sets, strict=True)]
    steps = -(-max(s.rows.shape[1] for s in streams) // every) * every
    size = max((s.sample.shape[1] for s in streams if s.sample is not None), default=0)
    filled = []
    for s, own in zip(streams, sets, strict=True):
        wide = tuple(
            g._replace(rows=grown(g.rows, w), weight=grown(g.weight, w))
            for g, w in zip(own, widths, strict=True)
        )
        filled.append(s._replace(
            rows=grown(s.rows, steps), origin=grown(s.origin, steps),
            weight=grown(s.weight, steps), groups=wide[0] if len(wide) == 1 else wide,
            sample=None if s.sample is None else grown(s.sample, size, -1),
        ))  # fmt: skip
    return filled


def stacked(streams: Sequence[Stream]) -> tuple[Stream, Stream]:
    """Streams of several seeds over the same data as one, what differs stacked; and `vmap` axes.

    Args:
        streams: at least one; inputs and targets are the same arrays.

    Raises:
        ValueError: streams of different shapes, or over different data; what is wrong with the
            arrays of one, which cannot be seen once they are mapped over.

    >>> from jaxmerge.continual import streams
    >>> data = np.eye(4, dtype=np.float32), np.arange(4)
    >>> every = [streams.split(data, data, [[0, 1], [2, 3]], batch=2, seed=s) for s in range(3)]
    >>> stacked(every)[0].rows.shape
    (3, 2, 1, 2)
    """
    first = streams[0]
    if wrong := {w for s in streams for w in wrong_values(s)}:
        raise ValueError(listed(sorted(wrong)))
    evaluated = [s.groups for s in streams if isinstance(s.groups, Groups)]
    if len(evaluated) < len(streams):
        raise ValueError("Streams with several sets of groups cannot be stacked; run them in turn.")
    shapes = sorted({str(s.rows.shape) for s in streams})
    if len(shapes) > 1 or any(s.inputs is not first.inputs for s in streams):
        raise ValueError(
            f"Stacked streams share their data and have one shape; found {', '.join(shapes)}."
        )
    same = lambda x, y: np.array_equal(np.asarray(x), np.asarray(y))
    if not all(same(s.weight, first.weight) for s in streams):
        raise ValueError("Stacked streams share their weights, or skipped steps would be computed.")
    streams = alike(streams)
    sample = None if first.sample is None else 0
    groups = Groups(None, None, 0, 0, 0, 0)
    axes = Stream(None, None, 0, 0, None, 0, groups, sample)._replace(promise=None)
    pile = lambda axis, *x: x[0] if axis is None else jax.tree.map(lambda *y: np.stack(y), *x)
    return jax.tree.map(pile, axes, *streams, is_leaf=lambda x: x is None), axes


def over(
    one: Callable[[Stream, Array], Tree], axes: Stream, streams: Stream, keys: Array,
    *, sharded: bool | int = False,
) -> Tree:  # fmt: skip
    """``one(stream, key)`` of every stacked stream: `vmap`, or `lax.map` on a CPU.

    Args:
        one: a pure function of a stream and a key.
        keys: PRNG keys [seeds].
        axes, streams: of `stacked`.
        sharded: cut the seeds over all devices, or over the first so many (their number must divide
            that of the seeds).

    >>> from jaxmerge.continual import streams
    >>> data = np.eye(4, dtype=np.float32), np.arange(4)
    >>> every = [streams.split(data, data, [[0, 1], [2, 3]], batch=2, seed=s) for s in range(3)]
    >>> together, axes = stacked(every)
    >>> count = lambda stream, key: jnp.sum(stream.weight)
    >>> over(count, axes, together, jax.random.split(jax.random.key(0), 3)).tolist()
    [4.0, 4.0, 4.0]
    """
    if jax.default_backend() != "cpu":
        if sharded:
            keys = jax.device_put(keys, NamedSharding(_seeds(sharded), PartitionSpec("seeds")))
        return jax.vmap(one, (axes, 0))(streams, keys)
    leaves, form = jax.tree.flatten(streams)
    spread = jax.tree.map(
        lambda a, x: jax.tree.map(lambda _: a == 0, x), axes, streams, is_leaf=lambda a: a is None
    )
    flags = jax.tree.leaves(spread)
    own = [x for x, f in zip(leaves, flags, strict=True) if f]

    def one_seed(x):
        rest, key = iter(x[0]), x[1]
        full = [next(rest) if f else y for y, f in zip(leaves, flags, strict=True)]
        return one(jax.tree.unflatten(form, full), key)

    if not sharded:
        return jax.lax.map(one_seed, (own, keys))
    cut = PartitionSpec("seeds")
    per_device = jax.shard_map(
        lambda own, keys: jax.lax.map(one_seed, (own, keys)),
        mesh=_seeds(sharded), in_specs=(cut, cut), out_specs=cut, check_vma=False,
    )  # fmt: skip
    return per_device([jnp.asarray(x) for x in own], keys)


def _seeds(sharded: bool | int) -> Mesh:
    devices = jax.devices()
    return Mesh(np.array(devices if sharded is True else devices[:sharded]), ("seeds",))
