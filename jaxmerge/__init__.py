"""jaxmerge: model merging and continual learning by merging, in JAX.

>>> import numpy as np
>>> import jaxmerge as jm
>>> base = {"w": np.zeros(2, np.float32)}
>>> models = [{"w": np.float32([1, -2])}, {"w": np.float32([-3, 1])}]
>>> jm.merge(jm.magmax(factor=0.5), base, models)["w"]
array([-1.5, -1. ], dtype=float32)
"""

from jaxmerge.combine import by_leaf, by_ndim, chain, keep_base, partition
from jaxmerge.core import Context, Measure, Merge, Transform, stacked, zeros
from jaxmerge.merges import *  # noqa: F403
from jaxmerge.methods import *  # noqa: F403
from jaxmerge.run import MergeState, init, merge, merged, update
from jaxmerge.spec import REGISTRY, get, register
from jaxmerge.transforms import *  # noqa: F403

__version__ = "0.1.0"
