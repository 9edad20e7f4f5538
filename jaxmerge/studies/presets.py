"""The comparisons of the continual-merging papers, as settings of an `Experiment`.

`MERGES` are the methods of MagMax's and OPCM's tables, each with the factors that are tried on the
validation split, and more past an end of the list while the best one stands there; `STREAMS` the
ways of learning: sequential and independent fine-tuning with every merge on both, LwF, EWC and L2.
MagMax and OPCM are deployed after every task, the others at the end.

The average has no factor, as in MagMax's paper: with one it is task arithmetic, whose factor is
that of the average divided by the number of tasks.  Continual TIES has 0.3 in OPCM's paper for 8
tasks, 0.1 for 14 and 20; it is chosen here of these and 0.03, for which each has a fold of its own
(the factor enters it), 1 x the model.

    streams = comparisons()                        # all of them
    streams = comparisons("sequential", "independent")
"""

from __future__ import annotations

import copy
from typing import Any

MERGES: dict[str, Any] = {
    "MagMax": {"method": "magmax", "factor": [0.3, 0.5, 0.75, 1.0], "beyond": 6},
    "average": {"method": "average", "always": False},
    "RandMix": {
        "method": "randmix", "factor": [0.5, 0.75, 1.0, 1.5], "beyond": 6, "always": False,
    },
    "TIES": {"method": "ties", "factor": [0.3, 0.5, 0.75, 1.0], "beyond": 6, "always": False},
    "task arithmetic": {
        "method": "task_arithmetic", "factor": [0.1, 0.2, 0.3, 0.5], "beyond": 6, "always": False,
    },
    "continual TIES": {
        "method": "continual_ties", "factor": [0.03, 0.1, 0.3], "always": False,
    },
    "OPCM": {"method": "opcm"},
}  # fmt: skip
BOTH = ["MagMax", "average", "RandMix", "TIES", "task arithmetic"]
STREAMS: dict[str, Any] = {
    "sequential": {"start": "last", "deploys": ["last model", *BOTH]},
    "independent": {"start": "base", "deploys": [*BOTH, "continual TIES", "OPCM"]},
    "LwF": {"methods": {"lwf": {"strength": 0.3, "heads": "joined"}}},
    "EWC": {
        "methods": {"ewc_magmax": {"labels": "sampled", "running": False, "examples": 32}},
    },
    "L2": {"methods": {"l2": {"strength": 1.0}}},
}


def comparisons(*names: str) -> dict[str, Any]:
    """Some of `STREAMS`, or all of them."""
    return copy.deepcopy({n: STREAMS[n] for n in names or STREAMS})
