"""Schedules: where the training of a task starts, and what is deployed after it.

Two independent functions of the `Position` in the stream: a `Start`, and a deployment
(`jaxmerge.studies.loop.Deploy`), which is the last model or a merge of all models so far.  With
them named, published systems are pairs, and new ones are new pairs:

========================  =======  =======================  ======================================
schedule                  start    deploy                   who
========================  =======  =======================  ======================================
sequential fine-tuning    last     last model               the baseline that forgets; L2, EWC,
                                                            LwF, MAS on it
MagMax sequential         last     magmax                   MagMax (Marczak et al., ECCV 2024);
                                                            average, RandMix, TIES there too
MagMax independent        base     magmax                   the comparison in MagMax; a row of
                                                            OPCM's tables; zs_paint of
                                                            FoMo-in-Flux with any merge
OPCM                      base     opcm                     OPCM (Tang et al., NeurIPS 2025), with
                                                            mean, continual_ties,
                                                            task_arithmetic beside it
interpolation             last     ema(0), scale(factor)    ft_paint of FoMo-in-Flux (Roth et al.,
                                                            NeurIPS 2024): theta_0 and the last
running EMA               running  ema                      ema_paint of FoMo-in-Flux
re-merge of all           base     any method over all      offline_merge of FoMo-in-Flux, the
                          or last  models (ties, linear)    deploy half of its double_merge
re-initialise from the    running  any method over all      the init half of its double_merge (the
merge                              models                   follow-up TIME)
========================  =======  =======================  ======================================

As settings of an experiment (`jaxmerge.studies.config`)::

    merges  = {"EMA": {"method": "ema", "decay": 0.9}, "MagMax": {"method": "magmax"}}
    streams = {"MagMax": {"start": "last", "deploys": ["MagMax"]},
               "running EMA": {"start": "running", "deploys": ["EMA"]}}

A fold over few rows (MagMax, OPCM, averages) keeps one model however many tasks arrive; a re-merge
with a method over all rows keeps as much as ``jaxmerge methods`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxmerge.core.types import Leaves
from jaxmerge.errors import closest


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


from_base = Start("base", lambda p: p.base)
from_last = Start("last", lambda p: p.last)
from_running = Start("running", lambda p: p.running(), merged=True)

STARTS = {s.name: s for s in (from_base, from_last, from_running)}


def start(what: Start | str) -> Start:
    """A start from its name, or as it is.

    Args:
        what: "base", "last" or "running", or a start.

    Raises:
        ValueError: no start is named so.

    >>> start("last") is from_last
    True
    """
    if isinstance(what, Start):
        return what
    if what not in STARTS:
        raise ValueError(f"no start is named {what!r}: {closest(str(what), STARTS)}")
    return STARTS[what]
