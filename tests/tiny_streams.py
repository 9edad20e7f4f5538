"""A tiny classifier and streams of noise around class centres, for tests of the mechanism."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models
from jaxmerge.continual.stream_records import Groups, Setup, Stream
from jaxmerge.core.specs import Static

KEY = jax.random.key(0)


@models.register
def tiny(inputs: int = 6, hidden: int = 8, classes: int = 6) -> Model:
    """Two dense layers."""

    def init(key):
        a, b = jax.random.split(key)
        return {
            "hidden/kernel": jax.random.normal(a, (inputs, hidden)) / jnp.sqrt(inputs),
            "hidden/bias": jnp.zeros(hidden),
            "head/kernel": jax.random.normal(b, (hidden, classes)) / jnp.sqrt(hidden),
            "head/bias": jnp.zeros(classes),
        }

    def head(params, features, task):
        logits = features @ params["head/kernel"] + params["head/bias"][None]
        half = features.shape[1] // 2  # as if it were two towers
        towers = {"image": features[:, :half], "text": features[:, half:]}
        return Outputs(logits, features, towers)

    def apply(params, x, task):
        hidden = jax.nn.relu(x @ params["hidden/kernel"] + params["hidden/bias"][None])
        return head(params, hidden, task)

    return Model(init, apply, from_features=head)


def blobs(seed=0, examples=20, classes=6, inputs=6):
    """(inputs, targets), the examples of each class around a centre of its own."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, inputs)) * 2
    targets = np.repeat(np.arange(classes, dtype=np.int32), examples)
    noise = rng.normal(size=(len(targets), inputs))
    return (centres[targets] + noise).astype(np.float32), targets


def split(tasks=3, steps=8, batch=5, classes=6, seed=0, data=None):
    """Class-incremental: the classes, shuffled, in equal parts; one group a task."""
    rng = np.random.default_rng(seed)
    inputs, targets = blobs(classes=classes) if data is None else data
    order = rng.permutation(classes).reshape(tasks, -1)
    own = np.stack([np.isin(np.arange(classes), part) for part in order])
    members = [np.flatnonzero(np.isin(targets, part)) for part in order]
    rows = []
    for part in members:
        passes = [rng.permutation(part) for _ in range(-(-steps * batch // len(part)))]
        rows.append(np.concatenate(passes)[: steps * batch].reshape(steps, batch))
    rows = np.stack(rows).astype(np.int32)
    origin = np.broadcast_to(np.arange(tasks, dtype=np.int32)[:, None, None], rows.shape)
    test = blobs(seed=1, classes=classes)
    groups = Groups(
        *test, np.int32([np.flatnonzero(np.isin(test[1], part)) for part in order]),
        np.ones((tasks, len(test[1]) // tasks), np.float32), np.arange(tasks, dtype=np.int32),
        {"own": own},
    )  # fmt: skip
    weight = np.ones(rows.shape, np.float32)
    return Stream(
        inputs, targets, rows, origin, weight, {"own": own}, groups, promise=Static("epochs")
    )


def setup(*methods, optimiser=None, columns="all", **more):
    """Fine-tuning of the tiny classifier, and what is asked besides."""
    return Setup(
        tiny(), classification(columns=columns), optimiser or sgd(rate=0.1), tuple(methods), **more
    )
