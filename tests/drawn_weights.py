"""Weights of a torch network drawn from a seed, alike wherever numpy is: none need be stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """float32 weights under torch's keys, layout [out, in, ...].

    Args:
        shapes: key -> shape; keys are drawn in sorted order, other keys change all behind them.
        seed: of `numpy.random.default_rng`.

    He's normal kernels, scales and variances even in [0.5, 1.5), biases and means normal of 0.2, so
    that no leaf is a constant and activations keep their size through the layers.
    """
    rng, out = np.random.default_rng(seed), {}
    for key in sorted(shapes):
        shape = tuple(shapes[key])
        if len(shape) > 1:
            value = rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
        elif key.endswith(("running_var", ".weight")):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = 0.2 * rng.normal(size=shape)
        out[key] = value.astype(np.float32)
    return out


def sums(weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """float64 [leaves, 2]: sum and sum of squares of every leaf, keys sorted."""
    exact = [weights[key].astype(np.float64) for key in sorted(weights)]
    return np.array([(x.sum(), (x * x).sum()) for x in exact])
