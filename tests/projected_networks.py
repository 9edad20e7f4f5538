"""A small network of any names, and settings of the methods that project its kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import methods, models
from jaxmerge.continual.stream_records import Setup

SPACES = ("gpm", "trgp", "cuber", "fot", "coso", "osft")
WRAPS = ("lora", "olora", "supsup")


@models.register
def network(names: tuple = ("w1", "w2", "out"), stack: int = 0, inputs: int = 6) -> Model:
    """A convolution of 2 x 2 over `inputs` = height x 3, a dense layer, a head, of any names."""
    conv, dense, head = names

    def init(key):
        a, b, c = jax.random.split(key, 3)
        draw = lambda k, *shape: jax.random.normal(k, shape) / np.sqrt(np.prod(shape[:-1]))
        inner = draw(b, stack, 10, 10) if stack else draw(b, 10, 10)
        return {
            conv: draw(a, 2, 2, 1, 5), dense: inner, head: draw(c, 10, 6),
            "text/position": jnp.zeros((4, 5)), "norm/scale": jnp.ones(10),
        }  # fmt: skip

    def apply(params, x, task):
        picture = x.reshape(x.shape[0], -1, 3, 1)
        h = jax.lax.conv_general_dilated(
            picture, params[conv], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(x.shape[0], -1)  # fmt: skip
        if stack:
            h, _ = jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), h, params[dense])
        else:
            h = jax.nn.relu(h @ params[dense])
        return Outputs((h * params["norm/scale"]) @ params[head], h)

    return Model(init, apply)


def own(name, pattern=".*", **more):
    """A method by name, of kernels of a pattern."""
    argument = "project" if name in ("gpm", "trgp", "cuber", "fot") else "target"
    if name in ("gpm", "trgp", "cuber"):
        more = {"examples": 12, "threshold": 0.9, **more}
    if name == "coso":
        more = {"rank": 2, "sketch": 4, **more}
    if name == "fot":
        more = {"clients": 2, "batch": 2, **more}
    return methods.get(name)(**{argument: pattern}, **more)


def setting(*chosen, model=None, optimiser=None):
    if optimiser is None:  # fot averages, coso makes its steps of gradients
        names = [m.factory.__name__ for m in chosen]
        optimiser = sgd(1.0 if {"fot", "coso"} & {*names} else 0.05)
    return Setup(model or network(), classification(), optimiser, chosen)
