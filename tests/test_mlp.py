"""The perceptron against its formula, its drawing against torch's bounds, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.models import mlp


@pytest.mark.parametrize("bias", [True, False])
def test_features_are_the_formula(bias):
    config = mlp.Config(inputs=12, hidden=(5, 4), bias=bias)
    params = mlp.init(config, jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32)
    h = x.reshape(3, -1)
    for layer in ("layer_0", "layer_1"):
        shift = params[f"{layer}/bias"] if bias else 0
        h = np.maximum(h @ np.asarray(params[f"{layer}/kernel"]) + shift, 0)
    np.testing.assert_allclose(mlp.features(config, params, x), h, rtol=1e-5, atol=1e-6)
    assert {n: p.shape for n, p in params.items()} == mlp.param_shapes(config)


def test_a_row_of_a_kernels_input_times_the_kernel_is_what_the_layer_gives():
    config = mlp.Config(inputs=6, hidden=(5, 4), bias=False)
    params = mlp.init(config, jax.random.key(0))
    x = jnp.ones((2, 6))
    actual = mlp.forward(config, params, x, inputs=True)
    last = actual.inputs["layer_1/kernel"] @ params["layer_1/kernel"]
    np.testing.assert_allclose(jnp.maximum(last, 0), actual.features, rtol=1e-6)
    assert set(actual.inputs) == {"layer_0/kernel", "layer_1/kernel"}


def test_weights_are_drawn_evenly_within_torchs_bounds():
    params = mlp.init(mlp.Config(inputs=400, hidden=(300,)), jax.random.key(0))
    for leaf in params.values():
        assert float(jnp.abs(leaf).max()) <= 1 / 20
    assert float(params["layer_0/kernel"].std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    assert float(params["layer_0/bias"].std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.1)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"inputs 0.*hidden \(\).*activation 'swish'"):
        mlp.Config(inputs=0, hidden=(), activation="swish")
    config = mlp.Config(inputs=6)
    with pytest.raises(ValueError, match="6 numbers an example"):
        mlp.features(config, mlp.init(config, jax.random.key(0)), jnp.ones((2, 5)))


def test_dropout_is_of_training_only():
    config = mlp.Config(inputs=6, hidden=(400, 4), dropout=(0.25, 0.0))
    params = mlp.init(config, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 6))
    plain = mlp.forward(mlp.Config(inputs=6, hidden=(400, 4)), params, x)
    np.testing.assert_array_equal(mlp.forward(config, params, x).features, plain.features)
    seen = mlp.forward(config, params, x, key=jax.random.key(2), inputs=True).inputs
    hidden = mlp.forward(config, params, x, inputs=True).inputs["layer_1/kernel"]
    kept = np.asarray(seen["layer_1/kernel"] != 0)[np.asarray(hidden != 0)]
    assert 0.7 < kept.mean() < 0.8
    np.testing.assert_allclose(
        seen["layer_1/kernel"], np.where(seen["layer_1/kernel"] != 0, hidden / 0.75, 0), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"dropout \(0.5,\), expected 2 rates"):
        mlp.Config(inputs=6, hidden=(4, 4), dropout=(0.5,))
