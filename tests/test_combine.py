"""chain, partition and by_leaf: how stages are put together and routed."""

from __future__ import annotations

import laws
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.core.composition import resolve

BASE = laws.model(0)
MODELS = [laws.model(1 + t, BASE) for t in range(3)]


def test_chains_nest_and_keep_the_order_of_stages():
    inner = jm.chain(jm.scale(2.0), jm.add(), jm.scale(3.0))
    outer = jm.chain(jm.scale(5.0), inner, jm.scale(7.0))
    assert [repr(t) for t in outer.before] == ["scale(factor=5.0)", "scale(factor=2.0)"]
    assert [repr(t) for t in outer.after] == ["scale(factor=3.0)", "scale(factor=7.0)"]
    base, one = {"w": np.zeros(2, np.float32)}, {"w": np.float32([1, -1])}
    assert jm.merge(outer, base, [one])["w"].tolist() == [210, -210]


def test_a_chain_takes_exactly_one_merge():
    with pytest.raises(ValueError, match="exactly one Merge among its stages, got 0 in 2"):
        jm.chain(jm.scale(1.0), jm.trim(0.2))
    with pytest.raises(ValueError, match="exactly one Merge among its stages, got 2 in 2"):
        jm.chain(jm.add(), jm.mean())
    with pytest.raises(TypeError, match="takes Transforms and one Merge, got"):
        jm.chain(jm.add(), 0.5)


def test_partition_routes_every_leaf_by_the_first_rule_that_matches():
    rules = [("block_0", "sum"), ("block", "none"), (".*", "mean")]
    method = jm.partition({"sum": jm.add(), "none": jm.keep_base(), "mean": jm.mean()}, rules)
    out = jm.merge(method, BASE, MODELS)
    total, mean = jm.merge(jm.add(), BASE, MODELS), jm.merge(jm.mean(), BASE, MODELS)
    for n in laws.SHAPES:
        expected = total if "block_0" in n else BASE if "block_1" in n else mean
        np.testing.assert_array_equal(out[n], expected[n], err_msg=n)


def test_partition_names_all_leaves_without_a_merge():
    method = jm.partition({"a": jm.add()}, [("query", "a"), ("scale", "b")])
    with pytest.raises(ValueError) as error:
        jm.merge(method, BASE, MODELS)
    for part in ("'patch/kernel'", "'norm/scale'", "'logit_scale'", "labels with a merge: ['a']"):
        assert part in str(error.value)


def test_a_global_measure_spans_the_leaves_of_its_branch_alone():
    method = jm.partition({"matrix": jm.ties(0.3), "rest": jm.mean()}, jm.by_ndim)
    matrices = {n: x for n, x in BASE.items() if x.ndim == 2}
    alone = jm.merge(jm.ties(0.3), matrices, [{n: m[n] for n in matrices} for m in MODELS])
    out = jm.merge(method, BASE, MODELS)
    laws.same({n: out[n] for n in matrices}, alone)


def test_partition_bounds_the_number_of_models_and_knows_what_it_needs():
    method = jm.partition({"a": jm.slerp(), "b": jm.fisher_merging()}, [(".*", "a")])
    assert method.models == (2, 2)
    assert method.needs == ("fisher",)
    assert jm.partition({"a": jm.randmix(), "b": jm.add()}, jm.by_ndim).stochastic


def test_stages_around_a_partition_act_on_all_its_branches():
    inner = jm.partition(
        {"matrix": jm.chain(jm.add(), jm.scale(2.0)), "rest": jm.add()}, jm.by_ndim
    )
    pipelines = resolve(jm.chain(jm.scale(0.5), inner, jm.scale(3.0)), BASE)
    assert [repr(t) for t in pipelines["block_0/query/kernel"].after] == [
        "scale(factor=2.0)",
        "scale(factor=3.0)",
    ]
    assert [repr(t) for t in pipelines["norm/scale"].after] == ["scale(factor=3.0)"]
    assert all(len(p.before) == 1 for p in pipelines.values())


def test_by_leaf_sets_a_coefficient_for_every_depth():
    def choose(name, like):
        return jm.task_arithmetic(1.0 if "block_1" in name else 0.0)

    out = jm.merge(jm.by_leaf(choose), BASE, MODELS[:1])
    np.testing.assert_array_equal(out["block_0/query/kernel"], BASE["block_0/query/kernel"])
    expected = jm.merge(jm.add(), BASE, MODELS[:1])
    np.testing.assert_array_equal(out["block_1/query/kernel"], expected["block_1/query/kernel"])


def test_a_routed_merge_says_that_it_has_no_fold_of_its_own():
    method = jm.partition({"a": jm.add()}, [(".*", "a")])
    with pytest.raises(TypeError, match="routes each leaf to another merge"):
        method.init(np.zeros(2))
