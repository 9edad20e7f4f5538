"""The convolution: its derivative as a product of windows, against that of XLA's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.models.convolution import convolve


def own(x, kernel, stride, padding):
    """With XLA's derivative."""
    pad = [(padding, padding)] * 2
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, pad, dimension_numbers=names)


@pytest.mark.parametrize("size, stride, padding", [(3, 1, 1), (3, 2, 1), (1, 2, 0), (7, 2, 3),
                                                   (4, 1, 0), (2, 3, 2)])  # fmt: skip
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_derivatives(size, stride, padding, backend, monkeypatch):
    """Backwards, forwards, both, over a batch of them, in a loop; with the rule of either kind."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(size)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, kernel, dx, dk = draw(2, 9, 8, 3), draw(size, size, 3, 5), draw(2, 9, 8, 3), None
    dk = draw(*kernel.shape)
    close = lambda a, b: jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), a, b
    )
    both = [lambda x, k, f=f: f(x, k, stride, padding) for f in (convolve, own)]
    loss = [lambda x, k, f=f: jnp.sum(jnp.tanh(0.1 * f(x, k))) for f in both]
    close(both[0](x, kernel), both[1](x, kernel))
    close(*(jax.jvp(f, (x, kernel), (dx, dk)) for f in both))
    close(*(jax.grad(f, (0, 1))(x, kernel) for f in loss))
    twice = lambda f: jax.jvp(jax.grad(f, (0, 1)), (x, kernel), (dx, dk))
    close(*map(twice, loss))
    many = lambda f: jax.vmap(jax.grad(f, 1), (None, 0))(x, jnp.stack([kernel, dk]))
    close(*map(many, loss))
    step = lambda f: lambda k, _: (k - 0.1 * jax.grad(f, 1)(x, k), None)
    close(*(jax.lax.scan(step(f), kernel, None, length=2)[0] for f in loss))
