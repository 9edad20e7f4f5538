"""The public names of jaxmerge, by noun: ``import jaxmerge as jm`` gives them all.

* types: `Merge`, `Transform`, `Measure`, `Context`, `MergeState`
* drivers: `merge` (batch), `init` / `update` / `merged` / `join` (continual), `merge_files`
* devices: `mesh`, `shard`, `pmerge`, `gather`
* composition: `chain`, `partition`, `by_leaf`, `keep_base`, `stacked`
* registry: `register`, `get`, `REGISTRY`
* methods, merges and transforms: every factory in `REGISTRY`
"""

# ruff: noqa: F403
from typing import Any

from jaxmerge import folds, methods, transforms
from jaxmerge.core.composition import by_leaf, by_ndim, chain, keep_base, partition
from jaxmerge.core.hyperparameters import per_model
from jaxmerge.core.registry import REGISTRY, get, register
from jaxmerge.core.types import Context, Measure, Merge, Transform, stacked, zeros
from jaxmerge.diagnostics import diagnose, effective_rank
from jaxmerge.drivers.batch_merge import merge
from jaxmerge.drivers.memory import MergeState, init, join, merged, update
from jaxmerge.drivers.placement import gather, mesh, shard
from jaxmerge.drivers.sharded import pmerge
from jaxmerge.folds import *
from jaxmerge.methods import *
from jaxmerge.numerics.linalg import by_kernel
from jaxmerge.recipes.merge_files import merge_files
from jaxmerge.transforms import *

__all__ = [
    "REGISTRY",
    "Context",
    "Measure",
    "Merge",
    "MergeState",
    "Transform",
    "by_kernel",
    "by_leaf",
    "by_ndim",
    "chain",
    "diagnose",
    "effective_rank",
    "gather",
    "get",
    "init",
    "join",
    "keep_base",
    "merge",
    "merge_files",
    "merged",
    "mesh",
    "partition",
    "per_model",
    "pmerge",
    "register",
    "shard",
    "stacked",
    "update",
    "zeros",
]
__all__ += folds.__all__
__all__ += methods.__all__
__all__ += transforms.__all__


def __getattr__(name: str) -> Any:
    if name in REGISTRY.old:  # an old name, which warns
        return get(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
