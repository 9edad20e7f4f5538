"""Published methods of arcs and angles: SLERP and its relatives, Karcher mean, Model Stock.

With ``base=None`` they act on the weights themselves, with a base on the task vectors.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxmerge.core.registry import register
from jaxmerge.core.types import Merge, check_range
from jaxmerge.folds.elementwise import linear
from jaxmerge.folds.geometric import Per, arc, karcher_mean, mean_direction, toward_mean

__all__ = ["interpolation", "karcher", "model_stock", "multislerp", "nuslerp", "slerp"]


@register
def interpolation(t: Any = 0.5) -> Merge:
    """Linear interpolation between two models (extrapolation outside [0, 1]).

    Formula: (1-t) theta_1 + t theta_2, whatever the base.

    Memory: 1 x the model.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), CVPR 2022.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> jm.merge(jm.interpolation(0.25), None, [{"w": np.zeros(1)}, {"w": np.ones(1)}])["w"]
        array([0.25])
    """
    check_range("t", t, -float("inf"), one=True)
    return linear([1 - t, t])


@register
def slerp(t: Any = 0.5) -> Merge:
    """Spherical linear interpolation of two models, leaf by leaf.

    Formula: (sin((1-t) w) a + sin(t w) b) / sin w, cos w = <a, b> / |a||b|; linear where
    |cos w| > 0.9995.

    Args:
        t: 0 gives the first model, 1 the second.  For another t on every layer route by name:
            ``jm.by_leaf(lambda name, like: jm.slerp(t_of(name)))``.

    Memory: 2 x the model, one leaf at a time.

    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; the threshold is
    that of the common implementations for model merging.

    Differs: the angle comes from half chords instead of arccos, which keeps its digits at small
    angles; a zero vector has no direction and is interpolated linearly.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = {"w": np.array([2.0, 0.0])}, {"w": np.array([0.0, 2.0])}
        >>> jm.merge(jm.slerp(), None, [one, two])["w"].round(3)
        array([1.414, 1.414])
    """
    return arc(t, colinear=0.9995)


@register
def nuslerp(weights: Any = (0.5, 0.5), per: Per = "leaf") -> Merge:
    """SLERP with weights instead of t, of whole leaves or of their rows or columns.

    Formula: SLERP at t = w_2 / (w_1 + w_2), linear only where the arc is undetermined.

    Args:
        weights: two numbers whose sum is not zero.
        per: "leaf", "row" (``x[i]``) or "column" (``x[..., j]``): what one vector is.

    Memory: 2 x the model, one leaf at a time.

    Source: mergekit's documentation of ``nuslerp``.  Differs: weights whose sum is zero are an
    error instead of t = 0.5.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = {"w": np.array([[2.0, 0.0]])}, {"w": np.array([[0.0, 2.0]])}
        >>> jm.merge(jm.nuslerp((1.0, 3.0), per="row"), None, [one, two])["w"].round(3)
        array([[0.765, 1.848]])
    """
    if not hasattr(weights, "__len__") or len(weights) != 2:
        raise ValueError(f"nuslerp() takes two weights, got {weights!r}.")
    return arc(_second_share(*weights), per)


@register
def multislerp(weights: Any = 1.0, normalize: bool = True, per: Per = "leaf") -> Merge:
    """SLERP of many models: the weighted mean direction with the weighted mean length.

    Formula: (sum_t w_t |x_t|) n / |n|, n = sum_t w_t x_t / |x_t|.

    Args:
        weights: one number for each model, or one for all.
        normalize: divide the weights by their sum.
        per: what one vector is, see `nuslerp`.

    Memory: 1 x the model.

    Source: mergekit's ``multislerp`` (barycentric interpolation on the sphere).  Differs: its
    correction in the tangent space at the mean direction is identically zero, and left out.
    """
    return mean_direction(weights, normalize, per)


@register
def karcher(max_iter: int = 10, tol: float = 1e-5) -> Merge:
    """The Karcher (Riemannian) mean of the leaves' directions on the sphere, with the mean length.

    Formula: see `karcher_mean`; all models count alike.

    Memory: T x the model, one leaf at a time.

    Source: mergekit's ``karcher``; Karcher, Riemannian center of mass and mollifier smoothing,
    1977.
    """
    return karcher_mean(max_iter, tol)


@register
def model_stock(
    average: Literal["cosine", "angle"] = "cosine",
    per: Literal["leaf", "row", "column", "model"] = "leaf",
) -> Merge:
    """Model Stock: the mean of few models, pulled to the base as far as they disagree.

    Formula: theta_0 + t mean_i(tau_i), t = T cos / (1 + (T-1) cos): the base at cosine 0, the mean
    at cosine 1.

    Args:
        average: the cosine is the mean "cosine" of all pairs, or that of their mean "angle".
        per: one cosine for every leaf (the paper's layer), row, column, or the whole "model".

    Memory: 2 x the model; T x for ``average="angle"``.

    Source: Jang et al., Model Stock: All we need is just a few fine-tuned models, ECCV 2024,
    equation 4 (general T in the appendix).

    Differs: the paper takes the angles between all pairs for equal; for more than two models one
    has to average, and implementations do it in two ways.  Norms are not bounded from below, so
    small changes keep their cosine.  A negative cosine gives a negative t, as the formula says.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([2.0, 1.0])}, {"w": np.array([1.0, 2.0])}]
        >>> jm.merge(jm.model_stock(), {"w": np.ones(2)}, [models[0], models[0]])["w"].round(3)
        array([2., 1.])
        >>> jm.merge(jm.model_stock(), {"w": np.ones(2)}, models)["w"].round(3)
        array([1., 1.])
    """
    return toward_mean(average, per)


def _second_share(first: Any, second: Any) -> Any:
    total = first + second
    if isinstance(total, float | int) and total == 0:
        raise ValueError(f"The weights of nuslerp() sum to zero: ({first}, {second}).")
    return second / total
