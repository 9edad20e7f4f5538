"""A head that is trained, on any tower: linear, cosine, or one binary classifier a column.

    linear     logits = features @ kernel + bias
    cosine     logits = scale * unit(features) @ unit(kernel), columns of unit length, scale trained
    sigmoid    as linear, every column a classifier of its own (its logits are log-odds, for the
               problem ``classification(loss="sigmoid")``); its bias starts where each class has
               probability 1 / classes

The head has a column for every class of a stream from the start, so no task changes a shape.
Which columns compete is the problem's business (``classification(columns=...)``).

Source: cosine: Hou et al., Learning a Unified Classifier Incrementally via Rebalancing, CVPR 2019,
section 3.2 (their scale starts at 1); sigmoid: Rebuffi et al., iCaRL, CVPR 2017, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.core.types import Array, Leaves

Kind = Literal["linear", "cosine", "sigmoid"]
LEAVES = ("head/kernel", "head/bias", "head/scale")


def trained_head(
    tower: Model, width: int, classes: int, kind: Kind = "linear", *, bias: bool = True,
    scale: float = 10.0,
) -> Model:  # fmt: skip
    """A tower with a trained head.

    Args:
        tower: its `Outputs` have features ``[B, width]``; logits it may have are replaced.  A
            frozen tower (``trainable=lambda name: False``) stays frozen: this is a linear probe.
        width: of the features.
        classes: columns of the head.
        kind: "linear", "cosine" or "sigmoid".
        bias: of a linear or sigmoid head.
        scale: where the trained scale of a cosine head starts.

    Returns:
        A `Model` with the leaves ``head/kernel [width, classes]`` and ``head/bias [classes]``, or
        ``head/scale``.  The kernel is drawn evenly from +-1 / sqrt(width), as torch's `Linear`.

    >>> from jaxmerge.models.mlp import Config, learner
    >>> model = trained_head(learner.tower(Config(4, (3,))), 3, 2, "cosine")
    >>> sorted(model.init(jax.random.key(0)))
    ['head/kernel', 'head/scale', 'layer_0/bias', 'layer_0/kernel']
    """
    if kind not in ("linear", "cosine", "sigmoid"):
        raise ValueError(f"head: found {kind!r}, expected linear, cosine or sigmoid")

    def init(key: Array) -> Leaves:
        own, below = jax.random.split(key)
        bound = width**-0.5
        draw = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        head = {"head/kernel": draw(own, (width, classes))}
        if kind == "cosine":
            head["head/scale"] = jnp.float32(scale)
        elif kind == "sigmoid" and bias:
            head["head/bias"] = jnp.full(classes, -math.log(max(classes - 1, 1)), jnp.float32)
        elif bias:
            head["head/bias"] = draw(jax.random.fold_in(own, 1), (classes,))
        given = tower.init(below)
        stored_head = {n: p for n, p in given.items() if n in head and p.shape == head[n].shape}
        return {**given, **head, **stored_head}

    def read(params: Leaves, out: Outputs) -> Outputs:
        features, kernel = out.features, params["head/kernel"]
        if kind == "cosine":
            logits = params["head/scale"] * (unit(features, -1) @ unit(kernel, 0))
        else:
            logits = features @ kernel
            logits = logits + params["head/bias"][None] if bias else logits
        aux = dict(out.aux or {})
        if "taps" in aux:
            aux["taps"] = {**aux["taps"], "head/kernel": features}
        return Outputs(logits, features, aux)

    def from_features(params: Leaves, features: Array, task: Array) -> Outputs:
        return read(params, Outputs(None, features))

    above: Any = lambda f: f and (lambda params, *rest: read(params, f(params, *rest)))
    return tower._replace(
        init=init,
        apply=above(tower.apply),
        predict=above(tower.predict),
        train=above(tower.train),
        from_features=from_features,
        trainable=lambda name: name in LEAVES or tower.trainable(name),
        statistics=lambda name: name not in LEAVES and tower.statistics(name),
    )


def unit(x: Array, axis: int) -> Array:
    """Of unit length along an axis; zeros stay zeros."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), 1e-12)
