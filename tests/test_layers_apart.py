"""A model whose layers are stacked for a scan, with a leaf for every layer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from projected_networks import SPACES, network, own, setting
from tiny_streams import KEY, split

import jaxmerge as jm
from jaxmerge.continual.drivers import program
from jaxmerge.continual.methods.osft import FREE
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models
from jaxmerge.continual.stages import create
from jaxmerge.continual.wraps.layers import layers_apart
from jaxmerge.models.mlp.learner import mlp


@models.register
def taken_apart(stack: int = 4, scanned: bool = True) -> Model:
    """`network` with a leaf for every layer, which it reads as a stack in a scan or one by one."""
    apart = layers_apart(network(("conv", "layers", "head"), stack).build(), "layers")
    if scanned:
        return apart

    def apply(params, x, task):
        picture = x.reshape(x.shape[0], -1, 3, 1)
        h = jax.lax.conv_general_dilated(
            picture, params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(x.shape[0], -1)  # fmt: skip
        for i in range(stack):
            h = jax.nn.relu(h @ params[f"layers/{i}"])
        return Outputs((h * params["norm/scale"]) @ params["head"], h)

    return Model(apart.init, apply)


@pytest.mark.parametrize("name", SPACES)
def test_a_stack_taken_apart_has_a_subspace_a_layer(name):
    chosen, stream = setting(own(name), model=taken_apart(4)), split(batch=6)
    state = jax.eval_shape(program, chosen, stream, KEY).state
    cut = {n.removesuffix(f"{FREE}scale") for n in state.params if n.endswith(f"{FREE}scale")}
    layers = {f"layers/{i}" for i in range(4)}
    assert (cut if name == "osft" else set(state.memory[0])) == {"conv", "head", *layers}


def test_a_stack_taken_apart_learns_and_merges_as_layers_do():
    stream, ended = split(steps=4, batch=6), []
    for scanned in (True, False):
        chosen = setting(own("gpm", "layers", free="."), model=taken_apart(2, scanned))
        result = jax.jit(program)(
            dataclasses.replace(chosen, merges={"MagMax": jm.magmax()}), stream, KEY
        )
        ended.append((result.state.params, result.state.memory, result.R))
    assert int(ended[0][1][0]["layers/1"].rank) > 0
    for one, other in zip(*map(jax.tree.leaves, ended), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_what_is_no_stack_is_refused_by_name():
    model = Model(lambda key: {"w": jnp.ones((2, 2)), "s": jnp.float32(1)}, lambda p, x, t: x)
    with pytest.raises(ValueError, match=r"^layers_apart: 'q' .*found none of \['s', 'w'\]\."):
        layers_apart(model, "q")
    with pytest.raises(ValueError, match=r"found s without layers\."):
        layers_apart(model, ".*")


def shaped(**shapes):
    """A model of leaves of these shapes."""
    return Model(lambda key: {n.replace("_", "/"): jnp.ones(s) for n, s in shapes.items()}, len)


@pytest.mark.parametrize(
    ("model", "pattern", "message"),
    [
        (shaped(layers_kernel=(3, 4, 4), text_kernel=(2, 4, 4)), "kernel", r", of different numb"),
        (shaped(one_kernel=(8, 16), two_kernel=(8, 16)), ".*", r"\[8, 16\], no stack of kernels"),
        (shaped(w=(8, 16)), "(", r"stacks must be a regular expression, got '\('\.$"),
        (mlp(8, (16, 16), 3), "layer", r"layer_0/kernel \[8, 16\].*, of different numbers\.$"),
    ],
)
def test_what_cannot_be_stacks_is_one_line(model, pattern, message):
    with pytest.raises(ValueError, match=r"^layers_apart: .*" + message) as error:
        layers_apart(model, pattern)
    assert "\n" not in str(error.value)


def test_stacks_of_vectors_are_taken_apart_beside_kernels_and_alone():
    model = shaped(layers_kernel=(3, 4, 5), layers_bias=(3, 5), layers_gain=(3, 4), head=(5, 2))
    for pattern, many in (("^layers", 9), ("bias", 3), ("kernel|gain", 6)):
        params = jax.eval_shape(layers_apart(model, pattern).init, KEY)
        assert sum(n[-1] in "012" for n in params) == many


def test_a_registered_model_is_taken_apart_as_one():
    spec = layers_apart(network(("conv", "layers", "head"), 4), "^layers")
    assert spec == layers_apart(network(("conv", "layers", "head"), 4), "^layers")
    assert repr(spec).startswith("layers_apart(model=network(")
    state = jax.eval_shape(create, setting(own("gpm", "layers"), model=spec), split(batch=6), KEY)
    assert set(state.memory[0]) == {f"layers/{i}" for i in range(4)}
