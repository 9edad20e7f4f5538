"""Index plans: replayed from a seed, checked, printed, drawn, learnt from, scored at any time."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from tiny_streams import KEY, blobs, tiny

from jaxmerge.continual.anytime import anytime
from jaxmerge.continual.drivers import program
from jaxmerge.continual.methods import er
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import planned
from jaxmerge.data.streams.blurry import i_blurry, si_blurry
from jaxmerge.data.streams.hierarchy import expansion
from jaxmerge.data.streams.plans import online
from jaxmerge.report.streams import arrivals, draw_plan

LABELS = np.repeat(np.arange(6), 20)
TREE = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [1, 2, 4], [1, 3, 5]])
PAIR = TREE[:, [0, 2]]
MAKERS = {
    "online": lambda seed: online(LABELS, 3, seed),
    "si_blurry": lambda seed: si_blurry(LABELS, 3, seed=seed),
    "i_blurry": lambda seed: i_blurry(LABELS, 3, seed=seed),
    "single": lambda seed: expansion(LABELS, PAIR, "single", 3, seed),
    "dual": lambda seed: expansion(LABELS, PAIR, "dual", 3, seed),
    "multi": lambda seed: expansion(LABELS, TREE, "multi", seed=seed),
}
every = pytest.mark.parametrize("name", MAKERS)


@every
def test_a_seed_replays_a_plan(name):
    one, again, other = MAKERS[name](1), MAKERS[name](1), MAKERS[name](2)
    assert one.digest() == again.digest() != other.digest()
    assert all(np.array_equal(a, b) for a, b in zip(one.rows, again.rows, strict=True))
    assert one.digest() in str(one)
    assert len(str(one).splitlines()) == 1 + len(one.names)


def swapped(plan, t, rows):
    changed = tuple(rows if i == t else r for i, r in enumerate(plan.rows))
    return dataclasses.replace(plan, rows=changed)


@every
def test_a_corrupted_order_is_refused(name):
    plan = MAKERS[name](0)
    first = plan.rows[0]
    again = np.r_[first[1], first[1:]]
    with pytest.raises(ValueError, match=r"promises each example .*: 1 examples come again \(row"):
        swapped(plan, 0, again).check()
    with pytest.raises(ValueError, match=r"task 0: row 120 is not in 0..119"):
        swapped(plan, 0, np.r_[120, first[1:]]).check()
    with pytest.raises(ValueError, match=r"task 0 has \d+ rows and \d+ columns"):
        swapped(plan, 0, first[1:]).check()
    columns = (np.full_like(plan.columns[0], -1), *plan.columns[1:])
    with pytest.raises(ValueError, match=r"task 0: column -1 is not in"):
        dataclasses.replace(plan, columns=columns).check()


def test_a_plan_that_promises_all_examples_has_all():
    plan = online(LABELS, 3)
    short = dataclasses.replace(
        plan, rows=(plan.rows[0][1:], *plan.rows[1:]), columns=(plan.columns[0][1:],
                                                                *plan.columns[1:])
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"1 examples never come .row {plan.rows[0][0]}"):
        short.check()


def test_bad_trees_and_settings_are_named_all_at_once():
    bad = np.array([[0, 0], [0, 1], [2, 2], [0, 2], [0, 4], [0, 5]])
    with pytest.raises(ValueError, match=r"last level .* is not 0, 1, 2.*level 0 has no class 1"):
        expansion(LABELS, bad, "single")
    two_parents = np.array([[0, 0, 0], [1, 0, 1], [0, 1, 2], [1, 2, 3], [1, 2, 4], [1, 3, 5]])
    with pytest.raises(ValueError, match="a class of level 1 has two parents"):
        expansion(LABELS, two_parents, "multi")
    with pytest.raises(ValueError, match="single has two levels, the tree has 3"):
        expansion(LABELS, TREE, "single")
    with pytest.raises(ValueError, match=r"disjoint is 120, not in 0\.\.100"):
        si_blurry(LABELS, 3, 120)
    with pytest.raises(ValueError, match="6 classes make at most 6 tasks, got 7"):
        si_blurry(LABELS, 7)


@every
def test_pictures(name, tmp_path):
    plan = MAKERS[name](0)
    share, borders = arrivals(plan, 30)
    assert share.max(1).tolist() == [1] * len(share)
    assert borders[-1] == sum(map(len, plan.rows))
    draw_plan([plan, plan], tmp_path / "plan.png", bins=30)
    assert (tmp_path / "plan.png").stat().st_size > 2000


def learnt(plan, columns, metrics, anytime=1, batch=5):
    x, y = blobs()
    test = blobs(seed=1)
    stream = planned(plan, (x, y), test, batch=batch)
    problem = classification(columns=columns, metrics=metrics)
    setup = Setup(tiny(classes=len(plan.names)), problem, sgd(rate=0.1), (er(30),))
    return stream, jax.jit(lambda s, k: program(setup, s, k, anytime=anytime))(stream, KEY)


def test_the_batches_of_a_stream_are_those_of_its_plan():
    for name, make in MAKERS.items():
        plan = make(0)
        x = np.arange(120, dtype=np.float32)[:, None]
        stream = planned(plan, (x, LABELS), (x, LABELS), batch=7)
        for t, (rows, columns) in enumerate(zip(plan.rows, plan.columns, strict=True)):
            at = stream.rows[t][stream.weight[t] > 0]
            assert np.array_equal(stream.inputs[at, 0], rows), name
            assert np.array_equal(stream.targets[at], columns), name


def test_an_empty_task_is_left_out():
    plan = next(
        p for s in range(99) if not min(map(len, (p := si_blurry(LABELS, 5, 100, seed=s)).rows))
    )
    x, y = blobs()
    stream = planned(plan, (x, y), blobs(seed=1))
    assert stream.tasks == sum(len(r) > 0 for r in plan.rows) < 5


def test_online_accuracy_at_any_time():
    stream, result = learnt(i_blurry(LABELS, 3, seed=1), "seen", ("met", "accuracy"), anytime=4)
    R = result.R[LAST]["met"]
    marks = anytime(stream, R)
    assert marks.examples.tolist() == list(range(10, 121, 10))
    assert abs(marks.A_AUC - marks.accuracy.mean()) < 1e-12
    met = np.isin(np.arange(6), stream.targets[stream.rows[0, :2].reshape(-1)])
    assert marks.accuracy[0] == pytest.approx(np.asarray(R)[0, 0][met].mean())
    with pytest.raises(ValueError, match=r"R is \[tasks, parts, groups\]"):
        anytime(stream, R[:, 0])


def test_a_hierarchy_is_learnt_level_after_level():
    plan = expansion(LABELS, TREE, "multi", seed=0)
    stream, result = learnt(plan, "level", ("level", "level_or_below"), batch=2)
    depth = np.concatenate([g.info["level"][:, 0] * 0 + d for d, g in enumerate(stream.groups)])
    R = np.asarray(result.R[LAST]["level"])
    for d in range(3):
        assert R[d, depth == d].mean() > 0.6, d
    assert np.asarray(result.R[LAST]["level_or_below"] >= R).all()
