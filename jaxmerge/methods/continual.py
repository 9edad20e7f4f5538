"""Published methods that merge models as they arrive: OPCM and what it is compared with."""

from __future__ import annotations

from typing import Any

from jaxmerge.combine import keep_base, partition
from jaxmerge.core import Merge
from jaxmerge.matrices import by_kernel
from jaxmerge.merges.elementwise import add
from jaxmerge.merges.subspace import add_projected, keep_mean_norm
from jaxmerge.spec import register

__all__ = ["opcm"]


@register(static=("alpha",))
def opcm(alpha: float = 0.5, zero_diag: bool = False, leaves: Any = by_kernel) -> Merge:
    """OPCM: orthogonal projection of every kernel, then the mean norm of the models seen so far.

    Formula: S <- S + P_S(tau_t) on kernels (`add_projected`), S <- S + tau_t elsewhere;
    theta_0 + (mean_t |tau_t|) S / |S|, norms over the whole model (`keep_mean_norm`).

    Args:
        alpha: share of the nuclear norm of a kernel whose subspace is protected, in [0, 1].
        zero_diag: see `add_projected`; False is what the released code computes.
        leaves: ``(name, leaf) -> label`` or ordered rules ``[(regex, label), ...]`` with labels
            "matrix" (projected), "rest" (added) and "base" (left as in the base).

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
    folds = {"matrix": add_projected(alpha, zero_diag), "rest": add(), "base": keep_base()}
    return keep_mean_norm(partition(folds, leaves))
