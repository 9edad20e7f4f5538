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

from collections.abc import Callable

from jaxmerge.continual.distillation import feature, lwf
from jaxmerge.continual.regularisers import ewc, l2, mas
from jaxmerge.continual.strategy import Strategy
from jaxmerge.errors import closest

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "finetune": lambda: Strategy("finetune"),
    "probe": lambda pattern="projection/kernel$": Strategy("probe", trainable=(pattern,)),
    "l2": lambda strength=1.0, anchor="base": Strategy("l2", (l2(strength, anchor),)),
    "ewc": lambda strength=1e6, kind="true", decay=0.5, examples=512: Strategy(
        "ewc", (ewc(strength, kind, decay, examples),)
    ),
    "mas": lambda strength=1.0, decay=None: Strategy("mas", (mas(strength, decay),)),
    "lwf": lambda strength=0.3, temperature=2.0: Strategy("lwf", (lwf(strength, temperature),)),
    "feature": lambda strength=1.0: Strategy("feature", (feature(strength),)),
    "replay": lambda per_class=10: Strategy("replay", replay=per_class),
}


def strategy(name: str, **settings) -> Strategy:
    """A strategy by name.

    >>> strategy("lwf", strength=0.5).name
    'lwf'
    >>> strategy("lfw")
    Traceback (most recent call last):
    ValueError: No strategy is named 'lfw': did you mean lwf?
    """
    if name not in STRATEGIES:
        raise ValueError(f"No strategy is named {name!r}: {closest(name, STRATEGIES)}")
    return STRATEGIES[name](**settings)
