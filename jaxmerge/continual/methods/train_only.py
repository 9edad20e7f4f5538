"""Training of some leaves only."""

from __future__ import annotations

import re

from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Pattern, methods


@methods.register
def train_only(pattern: Pattern = "projection/kernel$") -> Method:
    """Only leaves whose name matches a regular expression train; the others keep their values.

    Under a frozen text head the last projection is what a linear probe would train.  In a
    transformer ``"attn/(query|key|value)/"`` trains the maps to queries, keys and values alone,
    ``"attn/(query|key|value)/|^head/"`` a head of its own too.

    Args:
        pattern: found anywhere in the name; several are joined by "|".

    Memory: none.

    Source: queries, keys and values: Smith et al., A Closer Look at Rehearsal-Free Continual
    Learning, CVPR workshops 2023.

    Raises:
        ValueError: the pattern matches no leaf, when the model is known.

    >>> train_only("^head/")
    train_only(pattern='^head/')
    """
    rule = re.compile(pattern)

    def wrap(model, tasks):
        return model._replace(
            trainable=lambda name: bool(rule.search(name)) and model.trainable(name)
        )

    def init(model, params, batch, stored):
        if not any(model.trainable(n) for n in params):
            raise ValueError(
                f"train_only: pattern {pattern!r} matches none of the {len(params)} leaves, for "
                f"example {list(params)[:3]}."
            )
        return ()

    return Method(wrap=wrap, init=init)
