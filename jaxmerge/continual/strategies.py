"""The strategies by name, with the settings of their papers.

=============  ================================================================  ==============
name           what it adds to fine-tuning                                       extra memory
=============  ================================================================  ==============
finetune       nothing                                                           0
probe          trains the last projection only (linear probing under a frozen    0
               text head)
l2             (strength / 2) |theta - theta_0|^2                                1 model
ewc            (strength / 2) sum F (theta - theta_last)^2                       2 models
mas            the same with MAS importance                                      2 models
lwf            strength x distillation over the columns of earlier tasks         1 model
feature        strength x squared distance to the last model's features          1 model
replay         examples of earlier tasks in every batch, all columns seen        examples
=============  ================================================================  ==============

Sequential fine-tuning with one of these is the baseline that MagMax is compared with; each may as
well be combined with any merge.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jaxmerge.continual.distillation import feature, lwf
from jaxmerge.continual.regularisers import Anchor, Fisher, ewc, l2, mas
from jaxmerge.continual.strategy import Strategy
from jaxmerge.errors import closest, listed


def _l2(strength: float = 1.0, anchor: Anchor = "base") -> Strategy:
    return Strategy("l2", (l2(strength, anchor),))


def _ewc(
    strength: float = 1e6, kind: Fisher = "true", decay: float | None = 0.5, examples: int = 512
) -> Strategy:
    return Strategy("ewc", (ewc(strength, kind, decay, examples),))


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "finetune": lambda: Strategy("finetune"),
    "probe": lambda pattern="projection/kernel$": Strategy("probe", trainable=(pattern,)),
    "l2": _l2,
    "ewc": _ewc,
    "mas": lambda strength=1.0, decay=None: Strategy("mas", (mas(strength, decay),)),
    "lwf": lambda strength=0.3, temperature=2.0: Strategy("lwf", (lwf(strength, temperature),)),
    "feature": lambda strength=1.0: Strategy("feature", (feature(strength),)),
    "replay": lambda per_class=10: Strategy("replay", replay=per_class),
}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1


SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "strength": ("a number from 0 on", lambda v: _number(v) and v >= 0),
    "temperature": ("a positive number", lambda v: _number(v) and v > 0),
    "decay": ("a number in [0, 1] or null", lambda v: v is None or (_number(v) and 0 <= v <= 1)),
    "examples": ("a whole number from 1 on", _count),
    "per_class": ("a whole number from 1 on", _count),
}


def strategy(name: str, **settings) -> Strategy:
    """A strategy by name.

    Raises:
        ValueError: no such strategy, settings that it does not have or that are out of range.

    >>> strategy("lwf", strength=0.5).name
    'lwf'
    >>> strategy("lfw")
    Traceback (most recent call last):
    ValueError: No strategy is named 'lfw': did you mean lwf?
    """
    if not isinstance(name, str) or name not in STRATEGIES:
        raise ValueError(f"No strategy is named {name!r}: {closest(str(name), STRATEGIES)}")
    known, wrong = inspect.signature(STRATEGIES[name]).parameters, []
    for key, value in settings.items():
        what, fits = SETTINGS.get(key, ("", lambda v: True))
        if key not in known:
            wrong.append(f"{name} has no setting {key!r}: {closest(key, known)}")
        elif not fits(value):
            wrong.append(f"{key} of {name} is {what}, got {value!r}")
    if wrong:
        raise ValueError(listed(wrong))
    return STRATEGIES[name](**settings)
