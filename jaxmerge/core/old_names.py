"""Old spellings of registered names: they work until the next release, with a warning.

This is the one table of them.  `Registry.get` reads it, and with it `jm.get`, ``jm.NAME``, recipes
and settings.  Arguments that went from a name that stayed are refused with what they are today.

Paths of modules are no part of it: a module that moved is found under its new path alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Now(NamedTuple):
    """What an old name stands for.

    Attributes:
        name: the name today.
        takes: the old arguments in their order; None for those of today.
        given: arguments that the old name fixed, or whose default was another.
    """

    name: str
    takes: tuple[str, ...] | None = None
    given: Mapping[str, Any] = {}


MERGES = {
    "absorb_ties": Now("continual_ties"),
    "balance": Now("pcb", ("density", "scope")),
    "consensus_sum": Now("consensus", ("tall", "at_least"), {"factor": 1.0}),
    "continual_task_arithmetic": Now("task_arithmetic", ("factor",), {"factor": 0.3}),
    "ema_with_reference": Now("three_way_ema"),
    "fisher_mean": Now("fisher_merging", ("weights", "floor")),
    "gram_mean": Now("regmean"),
    "karcher_mean": Now("karcher"),
    "localized_sum": Now("tall_task", ("task", "tall")),
    "mean_direction": Now("multislerp"),
    "modulated_unified": Now("emr_task"),
    "random_mix": Now("randmix", ()),
    "running_ema": Now("ema"),
    "running_mean": Now("mean"),
    "select_calculate_erase": Now("sce", ("density", "floor", "exact")),
    "toward_mean": Now("model_stock"),
    "unique_or_mean": Now("ram", ("epsilon",)),
    "unique_or_mean_rescaled": Now("ram_plus", ("r", "alpha", "epsilon", "scope")),
}

METHODS = {"feature": Now("feat_kd"), "probe": Now("train_only")}  # of continual learning

# Arguments that methods of continual learning had -> what says the same today.  They are refused,
# not translated: with the authors' forms of these methods, defaults and factors changed too.
ARGUMENTS = {
    "ewc": {
        "kind": "it is labels now, 'true' is 'expected'; 'released' is the method ewc_magmax",
        "decay": "null is slots='sum' now; a number is the decay of the method ewc_magmax",
    },
    "l2": {"anchor": "it is towards now"},
    "mas": {"decay": "the importances of all tasks are added up now, as decay null did"},
}
