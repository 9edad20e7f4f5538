"""Mergekit's twenty methods as jaxmerge methods: names, parameters with defaults, base, reading.

``Reading.build(p, q)`` gets the global parameters `p` and, for each per-model parameter, a tuple
`q` over the merged models, and returns a `Merge`.  What differs on purpose from mergekit's numbers
is listed in `jaxmerge.recipes.mergekit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jaxmerge as jm

REQUIRED = object()
P = Mapping[str, Any]


class Reading(NamedTuple):
    """How a method of mergekit is read.

    Attributes:
        build: ``(global parameters, per-model parameters) -> Merge``.
        world: global parameters with their defaults.
        model: per-model parameters with their defaults.
        base: "needed" (task vectors), "model" (the base is one of the merged), "may", "none".
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


def _linear(p, q):
    return jm.linear(q["weight"], normalize=bool(p["normalize"]))


def _sum(p, q):
    return jm.task_arithmetic(p["lambda"], q["weight"], bool(p["normalize"]))


def _elect(p, q, *before):
    kind = "mean" if p["normalize"] else "sum"
    fold = jm.disjoint_mean(kind, weights=q["weight"], tie="positive")
    return jm.chain(*before, fold, jm.scale(p["lambda"]))


def _rescale(p):
    return "l1" if p["rescale"] else None


def _dense(q):
    return all(d >= 1 for d in q["density"])


def _ties(p, q):
    trim = jm.trim(even(q["density"]), "leaf", rescale=_rescale(p))
    return _elect(p, q, *(() if _dense(q) else (trim,)))


def _dare(p, q):
    return jm.drop_random(even(q["density"]), _rescale(p))


def _dare_linear(p, q):
    if _dense(q):
        return _sum(p, q)
    return jm.chain(_dare(p, q), _sum(p, q))


def _dare_ties(p, q):
    return _elect(p, q, *(() if _dense(q) else (_dare(p, q),)))


def _outliers(p, q):
    return jm.drop_outliers(even(q["density"]), even(q["gamma"]), rescale=_rescale(p))


def _breadcrumbs(p, q):
    return jm.breadcrumbs(
        even(q["density"]), even(q["gamma"]), p["lambda"], weights=q["weight"],
        normalize=bool(p["normalize"]), rescale=_rescale(p),
    )  # fmt: skip


def _breadcrumbs_ties(p, q):
    return _elect(p, q, _outliers(p, q))


def _window(q):
    return even(tuple(2 * e for e in q["epsilon"]))


def _della(p, q):
    return _elect(p, q, jm.drop_by_rank(even(q["density"]), _window(q), _rescale(p)))


def _della_linear(p, q):
    return jm.della_linear(
        even(q["density"]), _window(q), p["lambda"], _rescale(p), q["weight"],
        bool(p["normalize"]),
    )  # fmt: skip


def _nuslerp(p, q):
    if p["nuslerp_flatten"]:
        return jm.nuslerp(q["weight"])
    return jm.nuslerp(q["weight"], per="column" if p["nuslerp_row_wise"] else "row")


def _passthrough(p, q):
    (scale,) = q["scale"]
    return jm.linear((1.0 if scale is None else scale,))


GTA = {"normalize": False, "rescale": False, "lambda": 1.0, "int8_mask": False}
WEIGHT = {"weight": REQUIRED}
DENSE = {**WEIGHT, "density": 1.0}

READINGS: dict[str, Reading] = {
    "linear": Reading(_linear, {"normalize": True}, WEIGHT, "none"),
    "slerp": Reading(lambda p, q: jm.slerp(p["t"]), {"t": REQUIRED}, {}, "model", (2, 2)),
    "nuslerp": Reading(
        _nuslerp, {"nuslerp_row_wise": False, "nuslerp_flatten": True}, WEIGHT, "may", (2, 2)
    ),
    "multislerp": Reading(
        lambda p, q: jm.multislerp(q["weight"], normalize=bool(p["normalize_weights"])),
        {"normalize_weights": True, "eps": 1e-8}, WEIGHT, "may", (2, None),
    ),
    "karcher": Reading(
        lambda p, q: jm.karcher(int(p["max_iter"]), float(p["tol"])),
        {"max_iter": 10, "tol": 1e-5}, {}, "none",
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
        lambda p, q: jm.model_stock(per="row" if p["filter_wise"] else "leaf"),
        {"filter_wise": False}, {}, "needed", (2, None),
    ),
    "sce": Reading(
        lambda p, q: jm.sce(density=float(p["select_topk"])),
        {"select_topk": 1.0, "int8_mask": False},
    ),
    "ram": Reading(lambda p, q: jm.ram(p["epsilon"]), {"epsilon": 1e-5}),
    "ramplus_tl": Reading(
        lambda p, q: jm.ram_plus(p["r"], p["alpha"], p["epsilon"], scope="leaf"),
        {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
    ),
    "nearswap": Reading(lambda p, q: jm.nearswap(p["t"]), {"t": REQUIRED}, {}, "needed", (1, 1)),
    "arcee_fusion": Reading(lambda p, q: jm.arcee_fusion(), {}, {}, "needed", (1, 1)),
    "passthrough": Reading(_passthrough, {}, {"scale": None}, "none", (1, 1)),
}  # fmt: skip
