"""A head of a method's own in the place of the model's, which stays as it is and is not used."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.core.types import Array, Leaves


def with_head(
    model: Model,
    leaves: Callable[[Leaves, Array], Leaves],
    read: Callable[[Leaves, Outputs], Outputs],
    trains: tuple[str, ...],
) -> Model:
    """The model with another head.

    Args:
        leaves: ``(params, key) -> leaves`` that are added.
        read: ``(params, outputs) -> outputs``, of the model's outputs, whose features it reads.
        trains: names of the added leaves that train; the others are fixed, as ``head/...`` are.
    """

    def init(key: Array) -> Leaves:
        own, below = jax.random.split(key)
        params = dict(model.init(below))
        return params | dict(leaves(params, own))

    above = lambda f: f and (lambda params, *rest: read(params, f(params, *rest)))
    new = jax.eval_shape(lambda key: leaves(dict(model.init(key)), key), jax.random.key(0))
    fixed = frozenset(new) - set(trains)
    return model._replace(
        init=init, apply=above(model.apply), predict=above(model.predict), train=above(model.train),
        from_features=lambda params, f, task: read(params, Outputs(None, f)),
        trainable=lambda n: (
            n in trains
            or (n not in fixed and not n.startswith("head/") and model.trainable(n))
        ),
    )  # fmt: skip
