"""Kernels in factors: the same answers and gradients as the array, by whichever way is cheaper."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.continual.operators import Operator, operated

rng = np.random.default_rng(0)
W, A, B = (rng.normal(size=s).astype(np.float32) for s in ((6, 8), (6, 2), (2, 8)))
USES = {
    "a product": lambda p, x: x @ p["w"],
    "inside jit": lambda p, x: jax.jit(lambda w, x: jax.nn.relu(x @ w) + 1)(p["w"], x),
    "twice": lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T,
    "transposed": lambda p, x: jnp.einsum("oi,ni->no", p["w"].T, x),
    "of three axes": lambda p, x: x.reshape(-1, 2, 6) @ p["w"],
    "given back": lambda p, x: (x @ p["w"], p["w"]),
    "in a scan": lambda p, x: jax.lax.scan(lambda c, y: (c, y @ p["w"]), 0, x)[1],
}


@jax.custom_vjp
def straight_through(w):
    return jnp.sign(w)


straight_through.defvjp(lambda w: (jnp.sign(w), None), lambda _, g: (g,))
USES |= {
    "with a derivative of its own": lambda p, x: x @ straight_through(p["w"]),
    "computed again": lambda p, x: jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(p["w"], x),
}
WHOLE = ("transposed", "in a scan", "with a derivative of its own", "computed again")


def low_rank(params, calls):
    """W + A B by its factors."""

    def rows(x, dot):
        calls.append("rows")
        return dot(x, params["w"]) + (x @ params["a"]) @ params["b"]

    def array():
        calls.append("array")
        return params["w"] + params["a"] @ params["b"]

    return {"w": Operator(rows, array)}


@pytest.mark.parametrize("many", [4, 40])
@pytest.mark.parametrize("use", USES)
def test_answers_and_gradients_are_those_of_the_array(use, many):
    x, params, calls = rng.normal(size=(many, 6)).astype(np.float32), {"w": W, "a": A, "b": B}, []
    sizes = lambda tree: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(tree))
    apply = lambda p, x: USES[use]({"w": p["w"]}, x)
    factors = lambda p: operated(apply, {"w": p["w"]}, low_rank(p, calls), x)
    whole = lambda p: apply({"w": p["w"] + p["a"] @ p["b"]}, x)
    for f in (lambda g: g(params), lambda g: jax.grad(lambda p: sizes(g(p)))(params)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), f(factors), f(whole))
    assert ("rows" in calls) == (many == 4 and use not in WHOLE)


def test_the_slope_of_relu_at_zero_stays_zero():
    apply = lambda p, x: jax.nn.relu(x @ p["w"])
    there = lambda p: {"w": Operator(lambda x, dot: dot(x, p["w"]), lambda: p["w"])}
    total = lambda p: jnp.sum(operated(apply, p, there(p), np.zeros((2, 6), np.float32)))
    assert float(jnp.abs(jax.grad(total)({"w": W})["w"]).max()) == 0


def test_other_leaves_and_arguments_pass_through():
    params = {"b": np.ones(8, np.float32), "w": W}
    there = {"w": Operator(lambda x, dot: dot(x, W), lambda: W)}
    apply = lambda p, x, scale: {"y": scale["by"] * (x @ p["w"] + p["b"])}
    x, scale = jnp.ones((2, 6)), {"by": np.float32(2)}
    found = operated(apply, params, there, x, scale)
    np.testing.assert_array_equal(found["y"], apply(params, x, scale)["y"])
