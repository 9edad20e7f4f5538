"""Published methods that merge models as they arrive: OPCM and what it is compared with.

Of the same comparisons are `task_arithmetic` (at factor 0.3), `mean` and `ema`, whose running and
whose batch forms are one.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxmerge.core.composition import keep_base, partition
from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.ranges import Number
from jaxmerge.core.registry import register
from jaxmerge.core.types import Labels, Merge, zeros
from jaxmerge.folds.elementwise import add
from jaxmerge.folds.running import balance_projections, ema
from jaxmerge.folds.subspace import add_projected, keep_mean_norm
from jaxmerge.numerics import order_statistics
from jaxmerge.numerics.linalg import by_kernel
from jaxmerge.numerics.measures import keep_count, ranked_magnitude, ranked_magnitudes

__all__ = ["continual_ties", "dop", "opcm", "three_way_ema"]


@register(static=("alpha",))
def opcm(
    alpha: float = 0.5,
    zero_diag: bool = False,
    leaves: Labels = by_kernel,
    double: bool | None = None,
) -> Merge:
    """OPCM: orthogonal projection of every kernel, then the mean norm of the models seen so far.

    Formula: S <- S + P_S(tau_t) on kernels (`add_projected`), S <- S + tau_t elsewhere;
    theta_0 + (mean_t |tau_t|) S / |S|, norms over the whole model (`keep_mean_norm`).

    Args:
        alpha: share of the nuclear norm of a kernel whose subspace is protected, in [0, 1].
        zero_diag: see `add_projected`; False is what the authors' released code computes, True what
            FusionBench's class for any architecture does (0.2.33).
        leaves: ``(name, leaf) -> label`` or ordered rules ``[(regex, label), ...]`` with labels
            "matrix" (projected), "rest" (added) and "base" (left as in the base).
        double: decompose float32 kernels in float64, see `add_projected`.

    Memory: 1 x the model, however many models.

    Source: Tang et al., Merging Models on the Fly Without Retraining: A Sequential Approach to
    Scalable Continual Model Merging, NeurIPS 2025, algorithm 1.

    Differs: every leaf that is not a kernel is added.  The released code walks over leaf modules,
    so CLIP's class embedding, a bare parameter, is never merged there: it stays the first model's
    and shrinks with every rescaling.  That is an accident of torch modules and not offered; a
    test accounts for it and finds all else equal to 1e-12.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> base = {"dense/kernel": np.zeros((2, 2))}
        >>> one = {"dense/kernel": np.diag([3.0, 0.0])}
        >>> two = {"dense/kernel": np.diag([3.0, 4.0])}
        >>> jm.merge(jm.opcm(alpha=1.0), base, [one, two])["dense/kernel"].round(3)
        array([[2.4, 0. ],
               [0. , 3.2]])
    """
    folds = {"matrix": add_projected(alpha, zero_diag, double), "rest": add(), "base": keep_base()}
    return keep_mean_norm(partition(folds, leaves))


@register(static=("epsilon",))
def dop(
    alpha: Number = 0.8,
    steps: int = 200,
    learning_rate: Number = 1e-4,
    decay: Number = 0.999,
    epsilon: float = 0.99999,
    leaves: Labels = by_kernel,
) -> Merge:
    """DOP: dual orthogonal projection, each new kernel met half-way on both kernels' subspaces.

    Formula: see `balance_projections`; every other leaf becomes the mean of what is merged and
    what is new.  The first model is taken as it is.

    Args:
        alpha: weight of what is merged already, in [0, 1].
        steps: of Adam, for every model after the first.
        learning_rate: of Adam.
        decay: of the weights; 1 keeps them at alpha.
        epsilon: share of the nuclear norm that is kept, in [0, 1].
        leaves: ``(name, leaf) -> label`` or ordered rules ``[(regex, label), ...]`` with labels
            "matrix", "rest" and "base".

    Memory: 1 x the model, however many models.

    Source: Yang et al., Continual Model Merging without Data: Dual Projections for Balancing
    Stability and Plasticity, NeurIPS 2025, with the settings of the authors' implementation.

    Differs: the shortest combination of two gradients is exact, where the common solver stops at
    shares of 0.001 and 0.999.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = {"b": np.array([2.0])}, {"b": np.array([4.0])}  # no kernel: the mean
        >>> jm.merge(jm.dop(steps=2), {"b": np.zeros(1)}, [one, two])["b"]
        array([3.])
    """
    matrix = balance_projections(alpha, steps, learning_rate, decay, epsilon)
    return partition({"matrix": matrix, "rest": ema(0.5), "base": keep_base()}, leaves)


@register(static=("density",))
def continual_ties(
    density: float = 0.2, factor: Number = 0.3, scope: Literal["global", "leaf"] = "global"
) -> Merge:
    """Continual TIES: add the scaled TIES merge of the merged task vector and the new one.

    Formula: S <- S + factor * sum of {trim(S), trim(tau_t)} that agree with the sign of their sum;
    S = factor * tau_1 after the first model; trim keeps the floor(density n) + 1 entries of largest
    magnitude (as many as the official TIES) and what ties with the last of them.

    Args:
        density: share of the entries that are kept, in (0, 1].
        factor: 0.3 for 8 tasks, 0.1 for 14 and 20 in the OPCM paper.
        scope: "global" ranks entries over the whole model (the paper), "leaf" within each leaf.
            For "global" the models before it are read again before every model: from files,
            T (T - 1) reads more for T models.

    Memory: 1 x the model; from files a multiple of the largest leaf for "leaf", which is not cut.

    Source: baseline of Tang et al., OPCM, NeurIPS 2025.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([4.0, 0.0])}, {"w": np.array([0.0, -2.0])}]
        >>> jm.merge(jm.continual_ties(1.0, factor=0.5), {"w": np.zeros(2)}, models)["w"]
        array([ 3., -1.])
    """
    check_range("density", density, 0, 1, open_low=True)
    ranks = lambda n: keep_count(density, n) + 1

    def least(ctx, *rows):
        """The smallest magnitudes that are kept."""
        if scope == "leaf":
            return [ranked_magnitudes(x, np.array([ranks(x.size)]))[0] for x in rows]
        return [order_statistics.bits_to_magnitude(measured["value"]) for measured in ctx.measured]

    def later(total, x, least_x, least_total):
        trim = lambda x, least: jnp.where(jnp.abs(x) >= least.astype(x.dtype), x, 0)
        a, b = trim(total, least_total), trim(x, least_x)
        up = a + b >= 0
        return jnp.where(
            up, jnp.maximum(a, 0) + jnp.maximum(b, 0), jnp.minimum(a, 0) + jnp.minimum(b, 0)
        )

    def update(total, x, ctx):
        change = jnp.where(ctx.step == 0, x, later(total, x, *least(ctx, x, total)))
        return total + jnp.asarray(factor, x.dtype) * change

    if scope == "leaf":
        return Merge(zeros, update)
    return Merge(zeros, update, measure=ranked_magnitude(ranks), opening=ranked_magnitude(ranks))


@register
def three_way_ema(momentum: Number = 0.9) -> Merge:
    """The momentum model of CTP: an average of itself, the current and the previous task's model.

    Formula: m <- momentum m + (1 - momentum) (theta_t + theta_{t-1}) / 2, from m = theta_1.

    Args:
        momentum: in [0, 1].

    Memory: 2 x the model.

    Source: Zhu et al., CTP: Towards Vision-Language Continual Pretraining via Compatible Momentum
    Contrast and Topology Preservation, ICCV 2023.

    Differs: one step for each model that arrives, there one for each training step, with an
    ordinary average during the first task.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([0.0])}, {"w": np.array([4.0])}]
        >>> jm.merge(jm.three_way_ema(0.5), {"w": np.zeros(1)}, models)["w"]
        array([1.])
    """
    check_range("momentum", momentum, 0, 1)

    def update(cell, x, ctx):
        m, reference = cell
        retained = jnp.asarray(momentum, x.dtype)
        return jnp.where(ctx.step == 0, x, m + (1 - retained) * ((x + reference) / 2 - m)), x

    return Merge(
        lambda leaf: (zeros(leaf), zeros(leaf)), update, lambda cell, ctx: cell[0], elementwise=True
    )
