"""Transforms of a kernel's singular values: make them equal, or keep the largest."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.registry import register
from jaxmerge.core.types import Transform, concrete
from jaxmerge.numerics.linalg import check_matrix, polar_and_values, thin_svd

__all__ = ["isotropic", "low_rank"]


@register
def isotropic() -> Transform:
    """Replace every singular value of a kernel by their mean.

    Formula: U diag(s) V' -> mean(s) U V'.

    Shapes: [m, n]; a transposed leaf gives the transposed result.

    Memory: 0 (one leaf's singular vectors).

    Source: Marczak et al., No Task Left Behind (Iso-C), ICML 2025, equation 6.

    Differs: singular values below the numerical rank stay zero, for their vectors are arbitrary;
    they count in the mean, as they do there.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> jm.merge(jm.chain(jm.add(), jm.isotropic()), None, [{"w": np.diag([5.0, 1.0])}])["w"]
        array([[3., 0.],
               [0., 3.]])
    """

    def kernel(x, ctx):
        check_matrix(x, "isotropic()")
        turned, s = polar_and_values(x)
        return jnp.mean(s) * turned

    return Transform(kernel, decomposes=True)


@register(static=("share",))
def low_rank(share: float) -> Transform:
    """Keep the largest singular values of a kernel.

    Formula: sum_{i < k} s_i u_i v_i', k = floor(share * min(m, n)), at least 1.

    Args:
        share: of the singular values, in (0, 1].

    Shapes: [m, n].

    Memory: 0 (one leaf's singular vectors).

    Source: Gargiulo et al., Task Singular Vectors, CVPR 2025, section 4 (TSV-Compress).

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> jm.merge(jm.chain(jm.add(), jm.low_rank(0.5)), None, [{"w": np.diag([5.0, 1.0])}])["w"]
        array([[5., 0.],
               [0., 0.]])
    """
    check_range("share", share, 0, 1, open_low=True)

    def kernel(x, ctx):
        check_matrix(x, "low_rank()")
        if not concrete(share):
            u, s, vt = thin_svd(x)
            k = jnp.maximum(1, jnp.floor(share * s.size + 1e-6))
            return (u * jnp.where(jnp.arange(s.size) < k, s, 0)[None, :]) @ vt
        k = max(1, int(share * min(x.shape) + 1e-9))  # 1/T of k T values are k despite rounding
        u, s, vt = thin_svd(x, vectors=k)
        return (u * s[None, :k]) @ vt

    return Transform(kernel, decomposes=True)
