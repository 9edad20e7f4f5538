"""Training steps of CLIP: on a mesh of eight devices as on one; in bfloat16; without waiting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmerge.models import clip

CONFIG = clip.Config(
    clip.Vision(image=16, patch=8, width=32, layers=2, heads=4, hidden=64), None, projection_dim=16
)


def step(params, state, images, labels, head):
    def loss(params):
        features = clip.image_features(CONFIG, params, images)
        scores = clip.logits(features, head, jnp.float32(3.0))
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optax.sgd(0.1).update(gradient, state)
    return optax.apply_updates(params, updates), state, value


def problem():
    draw = np.random.default_rng(0)
    params = clip.init(CONFIG, jax.random.key(0))
    images = draw.standard_normal((16, 16, 16, 3)).astype(np.float32)
    labels = draw.integers(0, 5, 16)
    head = np.linalg.qr(draw.standard_normal((16, 5)))[0].astype(np.float32)
    return params, images, labels, head


def run(params, images, labels, head, steps=3):
    state = optax.sgd(0.1).init(params)
    compiled, losses = jax.jit(step, donate_argnums=(0, 1)), []
    for _ in range(steps):
        params, state, value = compiled(params, state, images, labels, head)
        losses.append(float(value))
    return params, losses


@pytest.mark.parametrize("shards", [1, 4], ids=["data", "data and parameters"])
def test_eight_devices_equal_one(shards):
    params, images, labels, head = problem()
    alone, losses_alone = run(jax.tree.map(jnp.array, params), images, labels, head)
    mesh = jax.make_mesh(
        (8 // shards, shards), ("data", "params"), axis_types=(AxisType.Auto, AxisType.Auto)
    )

    def place(leaf):
        wide = leaf.ndim == 2 and leaf.shape[-1] % shards == 0
        return jax.device_put(leaf, NamedSharding(mesh, P(None, "params") if wide else P()))

    placed = {name: place(jnp.array(leaf)) for name, leaf in params.items()}
    batch = NamedSharding(mesh, P("data"))
    images, labels = (jax.device_put(x, batch) for x in (images, labels))
    together, losses = run(placed, images, labels, head)
    kernel = together["vision/block_00/mlp/up/kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.sharding.shard_shape(kernel.shape) == (32, 64 // shards)
    np.testing.assert_allclose(losses, losses_alone, rtol=1e-5)
    assert losses[-1] < losses[0]
    for name in params:
        np.testing.assert_allclose(together[name], alone[name], atol=1e-5, rtol=0, err_msg=name)


def test_a_bfloat16_step_keeps_float32_masters_gives_its_buffers_on_and_never_waits():
    params, images, labels, head = problem()
    compute = clip.Compute("bfloat16", scan=True, remat="dots")
    optimizer = optax.adamw(1e-2)

    @jax.jit(donate_argnums=(0, 1))
    def step(params, state, images, labels):
        def loss(params):
            features = clip.image_features(CONFIG, params, images, compute=compute)
            scores = clip.logits(features, head, jnp.float32(3.0))
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, names = optimizer.init(params), set(params)
    images, labels, head = jax.device_put((images, labels, head))
    values = []
    step.lower(params, state, images, labels)  # constants of the trace move to the device here
    with jax.transfer_guard("disallow"):
        for _ in range(4):
            old = (params, state)
            params, state, value = step(params, state, images, labels)
            values.append(value)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert step._cache_size() == 1
    assert set(params) == names  # scan stacks inside the step only
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state[0].mu)} == {jnp.dtype("float32")}
    assert float(values[-1]) < float(values[0])
