"""Trees and their flat views."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.core import names

ARRAYS = st.builds(lambda n: np.zeros(n, np.float32), st.integers(0, 3))
KEYS = st.text("ab", min_size=1, max_size=2)
TREES = st.recursive(
    ARRAYS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)


@given(TREES)
def test_flatten_and_back_is_the_identity(tree):
    import jax

    flat, back = names.flatten(tree)
    again = back(flat)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True))


def test_an_nnx_state_is_a_tree():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    state = nnx.state(model)
    flat, back = names.flatten(state)
    assert sorted(x.shape for x in flat.values()) == [(2,), (2, 3), (3,), (3, 2)]
    assert isinstance(back(flat), nnx.State)


def test_a_flat_mapping_is_taken_as_it_is_and_lazy_ones_are_not_read():
    class Lazy(Mapping):
        def __getitem__(self, name):
            raise AssertionError(f"{name} was read")

        def __iter__(self):
            return iter(["w"])

        def __len__(self):
            return 1

    lazy = Lazy()
    assert names.flatten(lazy)[0] is lazy
    flat = {"a/b": np.zeros(1)}
    assert names.flatten(flat)[0] is flat


def test_names_join_the_path():
    import jax

    @jax.tree_util.register_dataclass
    @__import__("dataclasses").dataclass
    class Layer:
        kernel: np.ndarray

    flat, _ = names.flatten({"blocks": [Layer(np.zeros(1)), Layer(np.ones(1))]})
    assert list(flat) == ["blocks/0/kernel", "blocks/1/kernel"]


def test_a_merge_without_a_base_sees_zeros():
    like = {"w": np.ones(2, np.float32), "ids": np.arange(2)}
    zeros = names.Zeros(like)
    assert list(zeros) == ["w", "ids"]
    assert np.asarray(zeros["w"]).tolist() == [0, 0]
    assert zeros["ids"] is like["ids"]


@pytest.mark.parametrize(
    ("dtype", "merged"),
    [("float32", True), ("float16", True), ("bfloat16", True), ("int8", False), ("bool", False)],
)
def test_which_leaves_are_merged(dtype, merged):
    import ml_dtypes  # noqa: F401

    assert names.is_float(np.zeros(1, dtype)) is merged
