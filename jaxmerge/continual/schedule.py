"""Schedules: where the training of a task starts, and what is deployed after it.

Two independent functions of the `Position` in the stream.  With them named, published systems are
pairs, and new ones are new pairs:

=======================  =======  =========  ==================================================
schedule                 start    deploy     who
=======================  =======  =========  ==================================================
sequential, merged       last     running    MagMax (Marczak et al. 2024)
independent, merged      base     running    OPCM (Tang et al. 2025); merging of "independent"
                                             fine-tunes in MagMax; zs_paint of FoMo-in-Flux
running average          running  running    ema_paint of FoMo-in-Flux (Udandarao et al. 2024)
sequential fine-tuning   last     last       the baseline that forgets; L2, EWC, LwF on it
=======================  =======  =========  ==================================================

Which merge makes the running model is a third, free choice (`jaxmerge.continual.loop.Deploy`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxmerge.core import Leaves


class Position(NamedTuple):
    """Where a stream stands before a task is learnt, or after.

    Attributes:
        base: theta_0.
        last: the model fine-tuned last; theta_0 before the first task.
        running: gives the merge of all models so far; theta_0 before the first task.
    """

    base: Leaves
    last: Leaves
    running: Callable[[], Leaves]


class Start(NamedTuple):
    """Where the training of a task starts; `merged` says that it reads the running merge."""

    name: str
    at: Callable[[Position], Leaves]
    merged: bool = False


from_base = Start("independent", lambda p: p.base)
from_last = Start("sequential", lambda p: p.last)
from_running = Start("running", lambda p: p.running(), merged=True)

STARTS = {s.name: s for s in (from_base, from_last, from_running)}
