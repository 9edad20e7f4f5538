"""A-GEM against its equation, step by step over a whole stream."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from golden_streams import close, given, learn, stream

from jaxmerge.continual.methods import agem
from jaxmerge.continual.optimisers import sgd


def by_hand(kernels, xs, ys, rate):
    """Plain SGD on the first task; from then on the equation, with all of its examples."""

    pairs = functools.partial(zip, strict=True)

    def loss(ws, x, y):
        for w in ws[:-1]:
            x = jax.nn.relu(x @ w.T)
        return -jnp.mean(jax.nn.log_softmax(x @ ws[-1].T)[jnp.arange(len(y)), y])

    old, turned = None, 0
    for task_x, task_y in zip(xs, ys, strict=True):
        for x, y in zip(task_x, task_y, strict=True):
            g = jax.grad(loss)(kernels, x, y)
            if old is not None:
                r = jax.grad(loss)(kernels, *old)
                dot, square = (sum(jnp.sum(a * b) for a, b in pairs(r, v)) for v in (g, r))
                turned += int(dot < 0)
                g = [a - min(float(dot), 0) / square * b for a, b in pairs(g, r)]
            kernels = [w - rate * a for w, a in pairs(kernels, g)]
        old = jnp.concatenate(task_x), jnp.concatenate(task_y)
    return kernels, turned


def test_a_stream_is_the_equation(x64):
    rng = np.random.default_rng(3)
    kernels = tuple(rng.normal(size=s) * 0.5 for s in ((6, 5), (3, 6)))
    xs = [rng.normal(size=(5, 4, 5)) for _ in range(2)]
    ys = [np.full((5, 4), 0) + (rng.random((5, 4)) < 0.5), np.full((5, 4), 2)]
    result, _ = learn(
        given(kernels), stream(xs, ys, classes=3), agem(20, examples=20, replay=20),
        optimiser=sgd(0.5),
    )  # fmt: skip
    expected, turned = by_hand([jnp.asarray(w) for w in kernels], xs, ys, 0.5)
    assert 0 < turned < 5  # both branches were taken
    for n, w in zip(("layer_0/kernel", "head/kernel"), expected, strict=True):
        close(result.state.params[n], w.T, 1e-12)
