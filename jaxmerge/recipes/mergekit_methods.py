"""Mergekit's twenty methods as jaxmerge methods: names, parameters with defaults, base, reading.

``Reading.build(p, q)`` gets the global parameters `p` and, for each per-model parameter, a tuple
`q` over the merged models, and returns a `Merge`.  What differs on purpose from mergekit's numbers
is listed in `jaxmerge.recipes.mergekit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmerge import folds, methods, transforms
from jaxmerge.core.composition import chain

REQUIRED = object()
P = Mapping[str, Any]


class Reading(NamedTuple):
    """How a method of mergekit is read.

    Attributes:
        build: ``(global parameters, per-model parameters) -> Merge``.
        world: global parameters with their defaults.
        model: per-model parameters with their defaults.
        base: "needed" (task vectors), "model" (the base is one of the merged), "may", "joins" (a
            base that is not among the models enters as one more), "none".
        count: least and greatest number of merged models.
    """

    build: Callable[[P, P], Any]
    world: Mapping[str, Any] = {}
    model: Mapping[str, Any] = {}
    base: str = "needed"
    count: tuple[int, int | None] = (1, None)


def even(values: tuple) -> Any:
    """One number where all models have the same."""
    return values[0] if len(set(values)) == 1 else values


def density_of(q: P) -> Any:
    """The densities; from 1 on all is kept, from 0 down nothing."""
    return even(tuple(min(1.0, max(0.0, d)) for d in q["density"]))


def _linear(p, q):
    return folds.linear(q["weight"], normalize=bool(p["normalize"]))


def _sum(p, q):
    normalize = bool(p["normalize"]) and abs(sum(q["weight"])) >= 1e-8
    return methods.task_arithmetic(p["lambda"], q["weight"], normalize)


def _elect(p, q, *before):
    kind = "mean" if p["normalize"] else "sum"
    fold = folds.disjoint_mean(kind, weights=q["weight"], tie="positive")
    return chain(*before, fold, transforms.scale(p["lambda"]))


def _rescale(p):
    return "l1" if p["rescale"] else None


def _dense(q):
    return all(d >= 1 for d in q["density"])


def _ties(p, q):
    trim = transforms.trim(density_of(q), "leaf", rescale=_rescale(p), exact=True)
    return _elect(p, q, *(() if _dense(q) else (trim,)))


def _dare(p, q):
    return transforms.drop_random(density_of(q), _rescale(p))


def _dare_linear(p, q):
    if _dense(q):
        return _sum(p, q)
    return chain(_dare(p, q), _sum(p, q))


def _dare_ties(p, q):
    return _elect(p, q, *(() if _dense(q) else (_dare(p, q),)))


def _outliers(p, q):
    density, gamma = density_of(q), even(q["gamma"])
    return transforms.drop_outliers(density, gamma, rescale=_rescale(p), exact=True)


def _breadcrumbs(p, q):
    return methods.breadcrumbs(
        density_of(q), even(q["gamma"]), p["lambda"], weights=q["weight"],
        normalize=bool(p["normalize"]), rescale=_rescale(p), exact=True,
    )  # fmt: skip


def _breadcrumbs_ties(p, q):
    return _elect(p, q, _outliers(p, q))


def _window(q):
    """The width of every model's window of probabilities: none where all or nothing is kept."""
    pairs = list(zip(q["density"], q["epsilon"], strict=True))
    wrong = [f"density {d}, epsilon {e}" for d, e in pairs if 0 < d < 1 and not e <= d <= 1 - e]
    if wrong:
        raise ValueError(f"density +/- epsilon must stay within [0, 1]: {'; '.join(wrong)}.")
    return even(tuple(2 * e if 0 < d < 1 else 0.0 for d, e in pairs))


def _della(p, q):
    return _elect(p, q, transforms.drop_by_rank(density_of(q), _window(q), _rescale(p)))


def _della_linear(p, q):
    return methods.della_linear(
        density_of(q), _window(q), p["lambda"], _rescale(p), q["weight"],
        bool(p["normalize"]),
    )  # fmt: skip


def _nuslerp(p, q):
    weights = q["weight"] if abs(sum(q["weight"])) >= 1e-6 else (0.5, 0.5)
    if p["nuslerp_flatten"]:
        return methods.nuslerp(weights)
    return methods.nuslerp(weights, per="column" if p["nuslerp_row_wise"] else "row")


def _passthrough(p, q):
    (scale,) = q["scale"]
    return folds.linear((1.0 if scale is None else scale,))


GTA = {"normalize": False, "rescale": False, "lambda": 1.0, "int8_mask": False}
WEIGHT = {"weight": REQUIRED}
DENSE = {**WEIGHT, "density": 1.0}

READINGS: dict[str, Reading] = {
    "linear": Reading(_linear, {"normalize": True}, WEIGHT, "joins"),
    "slerp": Reading(lambda p, q: methods.slerp(p["t"]), {"t": REQUIRED}, {}, "model", (2, 2)),
    "nuslerp": Reading(
        _nuslerp, {"nuslerp_row_wise": False, "nuslerp_flatten": True}, WEIGHT, "may", (2, 2)
    ),
    "multislerp": Reading(
        lambda p, q: methods.multislerp(q["weight"], normalize=bool(p["normalize_weights"])),
        {"normalize_weights": True, "eps": 1e-8}, WEIGHT, "may", (2, None),
    ),
    "karcher": Reading(
        lambda p, q: methods.karcher(int(p["max_iter"]), float(p["tol"])),
        {"max_iter": 10, "tol": 1e-5}, {}, "joins",
    ),
    "task_arithmetic": Reading(_sum, GTA, DENSE),
    "ties": Reading(_ties, {**GTA, "normalize": True}, DENSE),
    "dare_linear": Reading(_dare_linear, {**GTA, "rescale": True}, DENSE),
    "dare_ties": Reading(_dare_ties, {**GTA, "rescale": True}, DENSE),
    "breadcrumbs": Reading(_breadcrumbs, GTA, {**DENSE, "gamma": 0.01}),
    "breadcrumbs_ties": Reading(_breadcrumbs_ties, GTA, {**DENSE, "gamma": 0.01}),
    "della": Reading(
        _della, {**GTA, "normalize": True, "rescale": True}, {**DENSE, "epsilon": 0.15}
    ),
    "della_linear": Reading(_della_linear, {**GTA, "rescale": True}, {**DENSE, "epsilon": 0.15}),
    "model_stock": Reading(
        lambda p, q: methods.model_stock(per="row" if p["filter_wise"] else "leaf"),
        {"filter_wise": False}, {}, "needed", (2, None),
    ),
    "sce": Reading(
        lambda p, q: methods.sce(density=min(1.0, max(0.0, p["select_topk"])), exact=True),
        {"select_topk": 1.0, "int8_mask": False},
    ),
    "ram": Reading(lambda p, q: methods.ram(p["epsilon"]), {"epsilon": 1e-5}),
    "ramplus_tl": Reading(
        lambda p, q: methods.ram_plus(p["r"], p["alpha"], p["epsilon"], scope="leaf"),
        {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
    ),
    "nearswap": Reading(
        lambda p, q: methods.nearswap(p["t"]), {"t": REQUIRED}, {}, "needed", (1, 1)
    ),
    "arcee_fusion": Reading(lambda p, q: methods.arcee_fusion(), {}, {}, "needed", (1, 1)),
    "passthrough": Reading(_passthrough, {}, {"scale": None}, "none", (1, 1)),
}  # fmt: skip
