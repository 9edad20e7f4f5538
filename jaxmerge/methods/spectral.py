"""Published methods that work on singular values and vectors: Iso-C, Iso-CTS, TSV, WUDI.

Each treats kernels of dense layers by its own formula and averages all other leaves, as the papers
do.  Which leaves are kernels is `jaxmerge.numerics.linalg.by_kernel`: two axes, no embeddings.
The released codes take every leaf with two axes, tables of tokens and positions among them, unless
told otherwise; for that reading pass ``leaves=jm.by_ndim``.  Patch and convolution kernels (four
axes) are averaged as they are.
"""

from __future__ import annotations

from jaxmerge.core.composition import chain, keep_base, partition
from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.ranges import Number
from jaxmerge.core.registry import register
from jaxmerge.core.types import Labels, Merge
from jaxmerge.folds.elementwise import add, mean
from jaxmerge.folds.spectral import Axis, least_interference, share_ranks, split_subspaces
from jaxmerge.numerics.linalg import by_kernel
from jaxmerge.transforms.scaling import scale
from jaxmerge.transforms.spectral import isotropic, low_rank

__all__ = ["iso_c", "iso_cts", "tsv_c", "tsv_m", "wudi"]


def _kernels(matrix: Merge, factor: Number, leaves: Labels) -> Merge:
    rest = chain(mean(), scale(factor))
    folds = {"matrix": chain(matrix, scale(factor)), "rest": rest, "base": keep_base()}
    return partition(folds, leaves)


@register
def iso_c(factor: Number = 1.0, leaves: Labels = by_kernel) -> Merge:
    """Iso-C: the sum of the task vectors with a flat spectrum.

    Formula: factor * mean(s) U V' with sum_t tau_t = U diag(s) V'; other leaves factor * mean.

    Args:
        factor: alpha of the paper, tuned there between 0.5 and 2.
        leaves: ``(name, leaf) -> label`` or ordered rules ``[(regex, label), ...]`` with labels
            "matrix", "rest" (averaged), "base" (left as in the base).

    Memory: 1 x the model.

    Source: Marczak et al., No Task Left Behind: Isotropic Model Merging with Common and
    Task-Specific Subspaces, ICML 2025, section 4.1.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> base = {"dense/kernel": np.zeros((2, 2))}
        >>> models = [{"dense/kernel": np.diag(d)} for d in ([4.0, 0.0], [1.0, 1.0])]
        >>> jm.merge(jm.iso_c(), base, models)["dense/kernel"]
        array([[3., 0.],
               [0., 3.]])
    """
    return _kernels(chain(add(), isotropic()), factor, leaves)


@register(shapes=("common",))
def iso_cts(
    factor: Number = 1.0, common: float = 0.8, output_axis: Axis = 1, leaves: Labels = by_kernel
) -> Merge:
    """Iso-CTS: Iso-C whose weakest directions give way to directions of each model's own.

    Formula: see `split_subspaces`; other leaves factor * mean.

    Args:
        factor: alpha of the paper, tuned there between 0.5 and 2.
        common: share of the rank for the common subspace, in [0, 1].
        output_axis: which axis of a kernel counts output units; 1 for [in, out], 0 for [out, in].
        leaves: see `iso_c`.

    Memory: T x the model, one leaf at a time.

    Source: Marczak et al., No Task Left Behind, ICML 2025, section 4.2.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> base = {"fc/kernel": np.zeros((2, 2))}
        >>> models = [{"fc/kernel": np.diag(d)} for d in ([4.0, 0.0], [0.0, 2.0])]
        >>> jm.merge(jm.iso_cts(), base, models)["fc/kernel"].round(3)
        array([[3., 0.],
               [0., 3.]])
    """
    return _kernels(split_subspaces(common, output_axis), factor, leaves)


@register
def tsv_m(factor: Number = 1.0, leaves: Labels = by_kernel) -> Merge:
    """TSV-Merge: an equal share of the rank for every model, the shares made orthogonal.

    Formula: see `share_ranks`; other leaves factor * mean.

    Args:
        factor: alpha of the paper, 1.
        leaves: see `iso_c`.

    Memory: T x the model, one leaf at a time.

    Source: Gargiulo et al., Task Singular Vectors: Reducing Task Interference in Model Merging,
    CVPR 2025, algorithm 1.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> base = {"fc/kernel": np.zeros((2, 2))}
        >>> models = [{"fc/kernel": np.diag(d)} for d in ([4.0, 0.0], [0.0, 2.0])]
        >>> jm.merge(jm.tsv_m(), base, models)["fc/kernel"].round(3)
        array([[4., 0.],
               [0., 2.]])
    """
    return _kernels(share_ranks(), factor, leaves)


@register(shapes=("tasks",))
def tsv_c(tasks: int, leaves: Labels = by_kernel) -> Merge:
    """TSV-Compress: one model's task vector at 1 / `tasks` of its rank.

    T models so compressed take together the room of about one, and each stays itself.

    Formula: theta_0 + sum_{i < k} s_i u_i v_i', k = floor(min(m, n) / tasks), at least 1; other
    leaves unchanged.

    Args:
        tasks: how many models share the room, at least 1.
        leaves: see `iso_c`.

    Memory: 1 x the model, with the factors written out (`jaxmerge.numerics.linalg.thin_svd`).

    Source: Gargiulo et al., Task Singular Vectors, CVPR 2025, section 4.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> base, model = {"fc/kernel": np.zeros((2, 2))}, {"fc/kernel": np.diag([2.0, 1.0])}
        >>> jm.merge(jm.tsv_c(tasks=2), base, [model])["fc/kernel"]
        array([[2., 0.],
               [0., 0.]])
    """
    check_range("tasks", tasks, 1, float("inf"))
    folds = {"matrix": chain(add(), low_rank(1 / tasks)), "rest": add(), "base": keep_base()}
    return partition(folds, leaves)._replace(models=(1, 1))


@register(shapes=("steps",))
def wudi(
    steps: int | None = 300,
    learning_rate: Number = 1e-5,
    output_axis: Axis = 1,
    leaves: Labels = by_kernel,
) -> Merge:
    """WUDI-Merging: kernels that interfere least with every model on its own inputs, without data.

    Formula: see `least_interference`; other leaves are averaged.

    Args:
        steps: of Adam, 300 in the paper; None goes to the minimum in closed form.
        learning_rate: of Adam.
        output_axis: which axis of a kernel counts output units; 1 for [in, out], 0 for [out, in].
        leaves: see `iso_c`.

    Memory: 2 x the model and one [in, in] matrix a kernel, however many models.

    Source: Cheng et al., Whoever Started the Interference Should End It: Guiding Data-Free Model
    Merging via Task Vectors (WUDI-Merging), ICML 2025.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> base = {"fc/kernel": np.zeros((2, 2))}
        >>> models = [{"fc/kernel": np.diag(d)} for d in ([4.0, 0.0], [0.0, 2.0])]
        >>> jm.merge(jm.wudi(steps=None), base, models)["fc/kernel"].round(3)
        array([[4., 0.],
               [0., 2.]])
    """
    return _kernels(least_interference(steps, learning_rate, output_axis), 1.0, leaves)
