"""Distillation from two teachers against its formula, written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from golden_streams import given, learn, stream
from scipy.special import log_softmax, softmax

from jaxmerge.continual.methods import two_teachers


def test_the_first_loss_of_the_second_task(x64):
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(5, 3)), rng.normal(size=(4, 5))
    x, y = rng.normal(size=(2, 2, 6, 3)), np.array([[[0, 1] * 3] * 2, [[2, 3] * 3] * 2])
    own = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    model = given(kernels, (np.zeros(5), np.zeros(4)), "tanh")
    result, after = learn(model, stream(x, y, own=own), two_teachers(0.7, 3.0), columns="seen")
    logits = lambda p: (
        np.tanh(x[1, 0] @ p["layer_0/kernel"] + p["layer_0/bias"]) @ p["head/kernel"]
        + p["head/bias"]
    )
    base, last = logits(after[0].base), logits(after[0].params)
    place = np.arange(6)
    right = np.stack([log_softmax(z, 1)[place, y[1, 0]] for z in (base, last)])
    share = softmax(right, 0)
    kl = np.stack([
        np.sum(softmax(z / 3, 1) * (log_softmax(z / 3, 1) - log_softmax(last / 3, 1)), 1)
        for z in (base, last)
    ])  # fmt: skip
    expected = -right[1].mean() + 0.7 * (share * kl).sum(0).mean()
    np.testing.assert_allclose(result.losses[1, 0], expected, atol=1e-12)
    np.testing.assert_allclose(kl[1], 0, atol=1e-12)
    assert jax.config.jax_enable_x64
    assert jnp.isfinite(result.losses).all()
