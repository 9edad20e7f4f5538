"""NaN and Inf refused by the name of the leaf, wherever its parts lie."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.core.composition import Pipeline
from jaxmerge.core.types import Leaves, concrete, working_dtype
from jaxmerge.errors import screen


def refuse_nonfinite(grid: Mapping[str, Pipeline], base: Leaves, models: Sequence[Leaves]) -> None:
    """Raise one ValueError that names every leaf with NaN or Inf (concrete values only).

    A finite sum proves that every entry is finite, and a sum runs at the speed of memory; entries
    are counted only where it is not.  Every device sums its own parts: none waits for another.
    Where leaves span several hosts, all of them hear of what each has found.
    """
    good = {}
    for n in grid:
        leaves = [base[n], *(m[n] for m in models)]
        if not concrete(leaves):
            return
        with jax.ensure_compile_time_eval():  # concrete leaves may sit inside the caller's jit
            good[n] = _looked_at(leaves)
    told = jax.device_get({n: [_parts(x) for _, x in pairs] for n, pairs in good.items()})
    counts = np.zeros((len(grid), 1 + len(models)), np.int64)
    for row, n in enumerate(grid):
        for (members, _), answers in zip(good[n], told[n], strict=True):
            for t in np.flatnonzero(~_everywhere(answers)):
                leaf = (base, *models)[members[t]][n]
                finite = [np.isfinite(_wide(np.asarray(x))) for x in _pieces(leaf)]
                counts[row, members[t]] = sum(np.sum(~x) for x in finite)
    trees = (base, *models)
    if jax.process_count() > 1 and any(_elsewhere(tree[n]) for tree in trees for n in grid):
        from jax.experimental.multihost_utils import process_allgather

        counts = np.asarray(process_allgather(counts)).sum(axis=0)
    wrong = [
        f"{'the base' if t == 0 else f'model {t - 1}'}, leaf {n!r}: {counts[row, t]} of "
        f"{math.prod(base[n].shape)} entries"
        for row, n in enumerate(grid)
        for t in np.flatnonzero(counts[row])
    ]
    if wrong:
        raise ValueError(
            "NaN or Inf in\n  " + "\n  ".join(screen(wrong)) + "\nMend the checkpoint, or pass "
            'nonfinite="zero" to count such entries as no change.'
        )


def refuse_overflow(grid: Mapping[str, Pipeline], base: Leaves, merged: Leaves) -> None:
    """Raise one ValueError that names float16 leaves that are finite in the base, not in the merge.

    Only these are looked at (concrete values only): 65,504 is within reach of a sum of changes, the
    ends of float32 and bfloat16 are not.
    """
    half = {n: [base[n], merged[n]] for n in grid if merged[n].dtype == np.float16}
    if not half or not concrete(half):
        return
    with jax.ensure_compile_time_eval():
        good = {n: _looked_at(pair) for n, pair in half.items()}
    told = jax.device_get({n: [_parts(x) for _, x in pairs] for n, pairs in good.items()})
    wrong = []
    for n, every in told.items():
        fine = [True, True]
        for (members, _), answers in zip(good[n], every, strict=True):
            for t, one in zip(members, _everywhere(answers), strict=True):
                fine[t] &= bool(one)
        wrong += [n] * (fine == [True, False])
    if wrong:
        raise ValueError(
            "The merge is beyond float16, which ends at 65,504, in\n  "
            + "\n  ".join(screen([f"leaf {n!r}" for n in wrong]))
            + "\nGive the base in float32 or bfloat16."
        )


def _wide(x: np.ndarray) -> np.ndarray:
    """Values that numpy can ask whether they are finite; both parts of complex ones."""
    return x if x.dtype.kind == "c" else x.astype(np.float64)


def _looked_at(leaves: Sequence[Any]) -> list[tuple[list[int], Any]]:
    """Leaves that lie alike by their numbers, and for each device whether its parts are finite."""
    alike: dict[Any, list[int]] = {}
    for t, leaf in enumerate(leaves):
        own = leaf.sharding if isinstance(leaf, jax.Array) else None
        if own is None or len(own.device_set) == 1:
            key = own
        else:
            key = own.mesh if isinstance(own, NamedSharding) else t
        alike.setdefault(key, []).append(t)
    out = []
    for where, members in alike.items():
        group = [leaves[t] for t in members]
        if isinstance(where, Mesh):
            out.append((members, _on_mesh(where, tuple(x.sharding.spec for x in group))(group)))
        elif isinstance(where, int):  # a sharding of another kind
            out += [(members, _finite([x])) for x in _pieces(group[0])]
        elif not any(map(_elsewhere, group)):  # else another host holds them
            out.append((members, _finite(group)))
    return out


def _parts(answers: jax.Array) -> list[jax.Array]:
    """What each device of this host has to say."""
    if len(answers.sharding.device_set) == 1:  # asking for its shards takes longer than the sums
        return [answers]
    return [x.data for x in answers.addressable_shards]


@functools.lru_cache(maxsize=256)
def _on_mesh(mesh: Mesh, specs: tuple) -> Callable:
    """`_finite` on every device of a mesh, in one program in which no device waits for another."""
    one = jax.shard_map(
        lambda leaves: _finite(leaves)[None],
        mesh=mesh, in_specs=(list(specs),), out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )  # fmt: skip
    return jax.jit(one)


def _everywhere(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the parts on this host's devices are all finite, for each leaf."""
    return np.asarray(np.concatenate([x.reshape(-1, x.shape[-1]) for x in answers]).all(axis=0))


def _pieces(leaf: Any) -> list[Any]:
    """The parts of a leaf that lie on this host; copies once."""
    if not isinstance(leaf, jax.Array):
        return [leaf]
    return [x.data for x in leaf.addressable_shards if x.replica_id == 0]


def _elsewhere(leaf: Any) -> bool:
    """Whether a part of the leaf lies on another host."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


@jax.jit
def _finite(leaves):
    """Whether the sum of each is finite, in one array: to wait for many takes longer."""
    return jnp.stack([jnp.isfinite(jnp.sum(x, dtype=working_dtype(x))) for x in leaves])
