"""The types of the core: keys by name, dtypes of work, stacked folds, ranges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.core import hyperparameters, keys, types


def same_key(a, b) -> bool:
    return bool((jax.random.key_data(a) == jax.random.key_data(b)).all())


def test_keys_depend_on_name_step_and_stage_alone():
    root = jax.random.key(0)
    every = [
        keys.cell_key(keys.leaf_key(root, name), step, stage)
        for name in ("a", "b")
        for step in (0, 1)
        for stage in (0, 1)
    ]
    data = {tuple(jax.random.key_data(k).tolist()) for k in every}
    assert len(data) == 8
    again = keys.cell_key(keys.leaf_key(root, "b"), 1, 1)
    assert same_key(again, every[-1])
    assert keys.leaf_key(None, "a") is None
    assert keys.cell_key(None, 0, 0) is None


def test_no_two_stages_of_a_leaf_share_a_key():
    """Drop everything twice in a row with the same probability: the masks must differ."""
    base, model = {"w": np.zeros(4000, np.float32)}, {"w": np.ones(4000, np.float32)}
    drop = jm.drop_random(0.5, rescale=None)
    stages = [drop, drop, jm.add(), drop]
    out = jm.merge(jm.chain(*stages), base, [model], key=jax.random.key(1))
    assert 0.09 < out["w"].mean() < 0.16  # 1/8


def test_work_is_done_in_float32_or_better():
    assert types.working_dtype(jnp.zeros(1, jnp.bfloat16)) == jnp.float32
    assert types.working_dtype(np.zeros(1, np.float16)) == jnp.float32
    assert types.working_dtype(np.zeros(1, np.float64)) == np.float64


def test_a_custom_method_in_four_lines():
    @jm.register
    def test_only_median() -> jm.Merge:
        """The median of the task vectors."""
        return jm.stacked(lambda rows, ctx: jnp.median(rows, axis=0))

    try:
        models = [{"w": np.float32([x, -x])} for x in (1, 5, 9)]
        out = jm.merge(jm.chain(test_only_median(), jm.scale(2.0)), {"w": np.zeros(2, "f")}, models)
        assert out["w"].tolist() == [10, -10]
        assert repr(test_only_median()) == "test_only_median()"
    finally:
        del jm.REGISTRY["test_only_median"]


def test_per_model_takes_numbers_lists_and_arrays():
    ctx = types.Context(base=None, step=jnp.int32(2))
    assert hyperparameters.per_model(0.5, ctx) == 0.5
    for value in ((1.0, 2.0, 3.0), [1, 2, 3], np.float32([1, 2, 3]), jnp.arange(1.0, 4.0)):
        assert float(hyperparameters.per_model(value, ctx)) == 3


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), np.float32([0.5, 2])])
def test_ranges_are_checked_where_values_are_known(value):
    with pytest.raises(ValueError, match=r"x must be in \[0, 1\]"):
        hyperparameters.check_range("x", value, 0, 1)
    hyperparameters.check_range("x", [0, 0.5, 1], 0, 1)
    jax.jit(lambda v: hyperparameters.check_range("x", v, 0, 1) or v)(
        2.0
    )  # traced: cannot be known
