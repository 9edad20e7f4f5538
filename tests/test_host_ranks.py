"""Ranks on the host: those of a plain argsort, and merges that do not depend on who ranked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.numerics.host_ranks import ranks

KEY = jax.random.key(3)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(
    "shape, axis",
    [((7, 50), -1), ((7, 50), 0), ((3, 5, 8), 1), ((3, 5, 8), 0), ((40,), 0), ((6, 1), 1),
     ((2, 70_000), 1)],
)  # fmt: skip
def test_ranks_are_those_of_a_stable_argsort(shape, axis, dtype):
    rng = np.random.default_rng(0)
    base, model = (rng.integers(-9, 9, shape) * rng.normal(size=shape) for _ in range(2))
    base, model = base.astype(dtype), model.astype(dtype)
    model[..., ::3] = base[..., ::3]  # ties
    x = np.abs(model.astype(np.float32) - base.astype(np.float32))
    order = np.argsort(x, axis, kind="stable")
    np.testing.assert_array_equal(ranks(model, base, axis), np.argsort(order, axis))


INFINITY = int(np.float32(np.inf).view(np.uint32))
ROWS = {
    "normal": lambda x, rng: x,
    "few values": lambda x, rng: np.round(x),
    "all equal": lambda x, rng: np.full_like(x, -3),
    "zeros of both signs": lambda x, rng: np.copysign(np.float32(0), x),
    "mostly zeros": lambda x, rng: np.where(rng.random(x.shape) < 0.9, 0, x),
    "denormals": lambda x, rng: x * np.float32(1e-42),
    "an outlier": lambda x, rng: np.where(np.arange(x.shape[1]) == 0, np.float32(1e9), x),
    "the last bits": lambda x, rng: 1 + np.float32(1e-5) * x,
    "every magnitude": lambda x, rng: rng.integers(0, INFINITY + 1, x.shape, np.uint32).view(
        np.float32
    ),
    "infinities": lambda x, rng: np.where(x > 1, np.float32(np.inf), x),
    "falling": lambda x, rng: -np.sort(-np.abs(x)),
}


@pytest.mark.parametrize("n", [1, 2, 1023, 1024, 1025, 3072, 4096, 5000, 40_000])
@pytest.mark.parametrize("rows", ROWS)
def test_ranks_of_rows_of_every_kind_and_length(rows, n):
    """Rows that are right after one sort, that are repaired, and that are sorted anew."""
    rng = np.random.default_rng(5)
    x = ROWS[rows](rng.standard_normal((40_000 // n % 50 + 1, n), np.float32), rng)
    order = np.argsort(np.abs(x.astype(np.float32)), 1, kind="stable")
    np.testing.assert_array_equal(ranks(x, np.zeros_like(x), 1), np.argsort(order, 1))


def test_ranks_over_several_threads():
    rng = np.random.default_rng(1)
    model, base = rng.normal(size=(2, 2100, 777)).astype(np.float32)
    order = np.argsort(np.abs(model - base), 1, kind="stable")
    np.testing.assert_array_equal(ranks(model, base, 1), np.argsort(order, 1))


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_della_is_the_same_whoever_ranks(axis, dtype):
    rng = np.random.default_rng(2)
    draw = lambda: {"w": rng.normal(size=(9, 31)).astype(dtype), "b": np.ones(5, dtype)}
    base, models = draw(), [draw(), draw()]
    method = jm.della(0.5, epsilon=0.6, axis=axis)
    merge = lambda base, models: jm.merge(method, base, models, key=KEY)
    on_host = merge(base, models)
    compiled = jax.jit(merge)(jax.tree.map(jnp.asarray, base), jax.tree.map(jnp.asarray, models))
    state = jm.init(method, base, key=KEY)
    for model in models:
        state = jm.update(method, state, base, model)
    streamed = jm.merged(method, state, base)
    for n in base:
        np.testing.assert_array_equal(on_host[n], streamed[n])
        np.testing.assert_array_equal(on_host[n] == base[n], compiled[n] == base[n])  # the masks
        close = {"rtol": 1e-6 if dtype == np.float32 else 2**-7, "atol": 1e-6}
        np.testing.assert_allclose(*(x[n].astype(np.float32) for x in (on_host, compiled)), **close)


def test_two_drops_by_rank_rank_what_reaches_them():
    rng = np.random.default_rng(4)
    base, model = ({"w": x} for x in rng.normal(size=(2, 8, 20)).astype(np.float32))
    drop = jm.drop_by_rank(0.5, epsilon=1.0)
    method = jm.chain(drop, drop, jm.add())
    merge = lambda base, model: jm.merge(method, base, [model], key=KEY)
    np.testing.assert_array_equal(
        merge(base, model)["w"], np.asarray(jax.jit(merge)(base, model)["w"])
    )
