"""A toy to test continual learning with: clouds of points, two dense layers, a fixed head."""

import jax
import numpy as np

from jaxmerge.data.sources import Source
from jaxmerge.data.splits import stratified
from jaxmerge.data.streams.scenario import Scenario, class_incremental
from jaxmerge.training.fit import Training
from jaxmerge.training.learner import Learner

WIDTH, CLASSES = 12, 6
TRAINING = Training(epochs=4, batch=8, rate=0.02, chunk=3)


def features(params, inputs):
    """Two dense layers."""
    return jax.nn.tanh(inputs @ params["a/kernel"] + params["a/bias"][None]) @ params["b/kernel"]


def source() -> Source:
    """Six overlapping clouds of thirty points."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), 30).astype(np.int32)
    centres = rng.normal(size=(CLASSES, WIDTH))
    inputs = (centres[labels] + rng.normal(scale=0.8, size=(180, WIDTH))).astype(np.float32)
    splits = stratified(labels, {"val": 6, "test": 6})
    names = tuple(f"cloud {i}" for i in range(CLASSES))
    return Source("clouds", inputs, labels, names, ("a {}",), splits)


def learner() -> Learner:
    """Random weights under a random head."""
    rng = np.random.default_rng(1)
    shapes = {"a/kernel": (WIDTH, 16), "a/bias": (16,), "b/kernel": (16, 8)}
    params = {
        n: jax.numpy.asarray(rng.normal(size=s) / s[0] ** 0.5, "float32") for n, s in shapes.items()
    }
    head = rng.normal(size=(8, CLASSES))
    head = jax.numpy.asarray(head / np.linalg.norm(head, axis=0), "float32")
    return Learner(params, features, np.asarray, head, jax.numpy.float32(10))


def scenario(source: Source) -> Scenario:
    """Three tasks of two clouds."""
    return class_incremental(source, 3, (4, 1, 0, 5, 2, 3))
