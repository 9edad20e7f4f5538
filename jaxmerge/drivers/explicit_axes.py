"""Leaves on a mesh with explicit axes, merged as if the axes were automatic.

Under explicit axes JAX refuses sort, scatter and products over a cut axis; what lies where is known
all the same, so results go back to where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmerge.core.types import Leaves


def traced_explicit(*trees: Any) -> bool:
    """Whether a leaf is being traced on a mesh with explicit axes."""
    made_later = lambda x: isinstance(x, Iterator)  # models may be generated
    leaves = (x for x in jax.tree.leaves(trees, made_later) if isinstance(x, Tracer))
    return any(AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types for x in leaves)


def automatically(run: Callable, like: Any) -> Callable:
    """A function of leaves that are traced on explicit axes, with the axes automatic inside; what
    it returns lies as `like` does."""
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(like))
    mesh = next((m for m in meshes if m.axis_names), None)
    if mesh is None:
        raise TypeError(
            "Models are traced on explicit axes, the base is not: place it as they are."
        )
    own = lambda x: jax.typeof(x).sharding
    there = lambda x: own(x) if own(x).mesh.axis_names else NamedSharding(mesh, PartitionSpec())
    return jax.sharding.auto_axes(run, out_sharding=jax.tree.map(there, like))


def refuse_traced_explicit(call: str, *trees: Any) -> None:
    """Raise TypeError inside jit where leaves lie on explicit axes."""
    if traced_explicit(*trees):
        raise TypeError(
            f"{call} inside jit cannot take leaves on explicit axes: call it outside of jit, or "
            "under jax.sharding.auto_axes; jm.merge takes them."
        )


def implicit(leaves: Leaves) -> Leaves:
    """Leaves on a mesh whose axes are explicit as on one whose axes are automatic; nothing moves.

    Under explicit axes sort, scatter and products over a cut axis are refused by JAX.
    """
    if not any(map(explicit, leaves.values())):
        return leaves
    return {n: _implicit(x) for n, x in leaves.items()}


def explicit(leaf: Any) -> bool:
    """Whether a leaf, no value inside jit, lies on a mesh with explicit axes."""
    if isinstance(leaf, Tracer):
        return False
    own = getattr(leaf, "sharding", None) if isinstance(leaf, jax.Array) else None
    return isinstance(own, NamedSharding) and AxisType.Explicit in own.mesh.axis_types


def _implicit(leaf: Any) -> Any:
    if not explicit(leaf):
        return leaf
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    return jax.device_put(leaf, NamedSharding(Mesh(mesh.devices, mesh.axis_names), spec))
