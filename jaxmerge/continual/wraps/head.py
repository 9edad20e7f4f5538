"""A head of a method's own in the place of the model's, which stays as it is and is not used."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.core.types import Array, Leaves


def head_form(model: Model, params: Leaves, who: str) -> jax.ShapeDtypeStruct:
    """Shape ``[features, columns]`` and dtype of a model's head, trained or frozen.

    Args:
        model: of which `head` counts, or else the leaf ``head/kernel``.
        params: of the model.
        who: asks, for the message.

    Raises:
        ValueError: neither is there.

    >>> model = Model(lambda key: {}, lambda params, x, task: Outputs(x))
    >>> head_form(model, {"head/kernel": jax.numpy.ones((3, 2))}, "prd").shape
    (3, 2)
    """
    if model.head is not None:
        return model.head
    if "head/kernel" not in params:
        raise ValueError(
            f"{who}: the model has no leaf head/kernel, whose shape it takes, nor says `head`."
        )
    return jax.ShapeDtypeStruct(params["head/kernel"].shape, params["head/kernel"].dtype)


def with_head(
    model: Model,
    leaves: Callable[[Leaves, Array], Leaves],
    read: Callable[[Leaves, Outputs], Outputs],
    trains: tuple[str, ...],
    fixed: tuple[str, ...] = (),
) -> Model:
    """The model with another head.

    Args:
        leaves: ``(params, key) -> leaves`` that are added.
        read: ``(params, outputs) -> outputs``, of the model's outputs, whose features it reads.
        trains, fixed: names of the added leaves that train, and of those that do not; neither do
            the model's own ``head/...``.
    """

    def init(key: Array) -> Leaves:
        own, below = jax.random.split(key)
        params = dict(model.init(below))
        return params | dict(leaves(params, own))

    above = lambda f: f and (lambda params, *rest: read(params, f(params, *rest)))
    return model._replace(
        init=init, apply=above(model.apply), predict=above(model.predict), train=above(model.train),
        from_features=lambda params, f, task: read(params, Outputs(None, f)),
        trainable=lambda n: (
            n in trains
            or (n not in fixed and not n.startswith("head/") and model.trainable(n))
        ),
    )  # fmt: skip
