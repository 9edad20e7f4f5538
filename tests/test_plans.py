"""Index plans: replayed from a seed, checked, printed, drawn, learnt from, scored at any time."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from tiny_streams import KEY, blobs, tiny

from jaxmerge.continual.anytime import anytime
from jaxmerge.continual.checks import check
from jaxmerge.continual.drivers import program
from jaxmerge.continual.methods import er
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import planned, split
from jaxmerge.data.streams.blurry import i_blurry, si_blurry
from jaxmerge.data.streams.hierarchy import expansion
from jaxmerge.data.streams.plans import Plan, online
from jaxmerge.data.streams.recurring import recurring
from jaxmerge.data.streams.trees import hierarchy
from jaxmerge.report.streams import arrivals, draw_plan, rows_named

LABELS = np.repeat(np.arange(6), 20)
TREE = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [1, 2, 4], [1, 3, 5]])
PAIR = TREE[:, [0, 2]]
MAKERS = {
    "online": lambda seed: online(LABELS, 3, seed),
    "si_blurry": lambda seed: si_blurry(LABELS, 3, seed=seed),
    "i_blurry": lambda seed: i_blurry(LABELS, 3, seed=seed),
    "recurring": lambda seed: recurring(LABELS, 4, 2, seed),
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
    with pytest.raises(ValueError, match="single has two levels, the tree has 1: give the classes"):
        expansion(LABELS, TREE[:, 2:], "single")
    with pytest.raises(ValueError, match=r"tasks must be 2, got 3: .* out the 1 coarse class with"):
        expansion(LABELS, np.stack([np.zeros(6, int), np.arange(6)], 1), "single", 3)
    with pytest.raises(ValueError, match="6 classes make at most 6 tasks, got 7"):
        si_blurry(LABELS, 7)


MAKE = {
    "online": lambda y, tasks, seed=0, **more: online(y, tasks, seed, **more),
    "si_blurry": lambda y, tasks, seed=0, **more: si_blurry(y, tasks, seed=seed, **more),
    "i_blurry": lambda y, tasks, seed=0, **more: i_blurry(y, tasks, seed=seed, **more),
    "recurring": lambda y, tasks, seed=0, **more: recurring(y, tasks, 2, seed, **more),
    "single": lambda y, tasks, seed=0: expansion(y, PAIR, "single", tasks, seed),
    "dual": lambda y, tasks, seed=0: expansion(y, PAIR, "dual", tasks, seed),
    "multi": lambda y, tasks, seed=0: expansion(y, TREE, "multi", tasks, seed),
}
BAD_LABELS = {
    "float64": LABELS / 1.0, "<U": LABELS.astype(str), "got none": LABELS[:0],
    r"int64\[2, 60\]": LABELS.reshape(2, 60), r"int64\[\]": 3, "object": [[1], [1, 2]],
    "bool": LABELS > 2, "-1 among them": LABELS - 1, "no label is 0, the largest is 6": LABELS + 1,
    "no label is 1, the largest is 10": 2 * LABELS,
}  # fmt: skip


@pytest.mark.parametrize("words", BAD_LABELS)
@pytest.mark.parametrize("maker", MAKE)
def test_bad_labels(maker, words):
    with pytest.raises(ValueError, match=words):
        MAKE[maker](BAD_LABELS[words], 3)


BAD_NUMBERS = [2.5, "2", -1, True, float("nan"), [3]]


@pytest.mark.parametrize("seed", ["a", KEY, 1.5, -1, None, [0, "a"]], ids=str)
@pytest.mark.parametrize("maker", MAKE)
def test_bad_seeds_and_tasks_are_said_at_once(maker, seed):
    for tasks in (0, *BAD_NUMBERS):
        both = "seed must be a whole number from 0 on.*; tasks must be a whole number from 1 on"
        with pytest.raises(ValueError, match=both):
            MAKE[maker](LABELS, tasks, seed)
    with pytest.raises(ValueError, match="tasks"):
        MAKE[maker](LABELS, 99 if maker != "recurring" else 0)


@pytest.mark.parametrize("value", [120, 0.5, 33.3, *BAD_NUMBERS])
def test_bad_percentages(value):
    for make in (si_blurry, i_blurry):
        words = "disjoint must be a whole percentage, 0 to 100, got .*; blurry must be a whole"
        with pytest.raises(ValueError, match=words):
            make(LABELS, 3, value, value)


def test_names_are_texts():
    with pytest.raises(ValueError, match="names are texts, one a label; got 0"):
        online(LABELS, 3, names=range(6))


@pytest.mark.parametrize("names", [list("abc"), list("abcdefg")], ids=len)
def test_as_many_names_as_classes(names):
    for maker in ("online", "si_blurry", "i_blurry", "recurring"):
        with pytest.raises(ValueError, match=f"{len(names)} names, but labels are 0 to 5"):
            MAKE[maker](LABELS, 3, names=names)


def test_too_few_examples_for_a_hierarchy():
    with pytest.raises(ValueError, match="3 tasks: the part of one task has none of class 2:0, 2:"):
        expansion(np.arange(6), TREE, "multi")
    with pytest.raises(ValueError, match="3 tasks: the part of one task has none of class 0:0, 0:"):
        expansion(np.arange(6), PAIR, "single")
    wrong: list[Any] = [TREE[:0], TREE - 1, TREE / 2, [[0], [0, 1]], 3]
    for bad in wrong:
        with pytest.raises(ValueError, match="The tree "):
            expansion(LABELS, bad, "multi")


def test_seeds_of_every_kind():
    one = online(LABELS, 3, 7).digest()
    for seed in (np.int64(7), np.random.default_rng(7)):
        assert online(LABELS, 3, seed).digest() == one
    assert online(LABELS, 3, [7, 1]).digest() == online(LABELS, 3, np.array([7, 1])).digest()


@every
def test_labels_of_a_plan(name):
    plan = MAKERS[name](0)
    plan.check(LABELS)
    for t, columns in enumerate(plan.columns):
        wrong = np.r_[columns[:1], (columns[1:3] + 1) % len(plan.names), columns[3:]]
        changed = tuple(wrong if i == t else c for i, c in enumerate(plan.columns))
        with pytest.raises(
            ValueError, match=rf"task {t}: row {plan.rows[t][1]} comes as .*, its l"
        ):
            dataclasses.replace(plan, columns=changed).check(LABELS)
    with pytest.raises(ValueError, match=r"labels are int \[120\] in 0..5, got 119 up to 5"):
        plan.check(LABELS[1:])


@pytest.mark.parametrize("name", ["online", "single", "dual"])
def test_an_example_that_never_comes_is_missed(name):
    plan = MAKERS[name](0)
    for t in range(len(plan)):
        cut = lambda x, t=t: tuple(p[3:] if i == t else p for i, p in enumerate(x))
        level = rf" on level {int(t > 0)}" if name == "dual" else ""
        with pytest.raises(ValueError, match=rf"3 examples never come{level} \(row"):
            dataclasses.replace(plan, rows=cut(plan.rows), columns=cut(plan.columns)).check()


def test_plans_that_are_none():
    one, none = np.zeros(1, int), ()
    for words, plan in {
        "it has no task": Plan("x", none, none, 3, ("a",)),
        "rows are of 2 tasks, columns of 1": Plan("x", (one, one), (one,), 3, ("a",)),
        "task 0: rows are float64.1., not int .N.": Plan("x", (one / 2,), (one,), 3, ("a",)),
        r"task 0: columns are int64\[1, 1\]": Plan("x", (one,), (one[None],), 3, ("a",)),
        "promise is one of .*; got 'always'": dataclasses.replace(
            online(LABELS, 1), promise="always"
        ),
        "level is .2. for 1 columns": Plan("x", (one,), (one,), 3, ("a",), level=np.arange(2)),
    }.items():
        with pytest.raises(ValueError, match=words):
            plan.check()


def test_classes_come_back_once_in_a_task():
    plan = recurring(LABELS, 30, 2, seed=3)
    counts = plan.counts()
    assert ((counts > 0).sum(0) == 2).all()
    assert set(np.unique(counts)) == {0, 20}
    assert ((counts > 0).sum(1) > 1).all()
    stream = planned(plan, blobs(), blobs(seed=1), batch=7)
    assert stream.promise.value == "epochs"
    check(Setup(tiny(), classification(columns="seen"), sgd(0.1)), stream)
    with pytest.raises(ValueError, match=r"6 classes: ask for 1 to 6 a task .* got 7 and 3"):
        recurring(LABELS, 3, 7)


@every
def test_pictures(name, tmp_path):
    plan = MAKERS[name](0)
    share, borders = arrivals(plan, 30)
    assert share.max(1).tolist() == [1] * len(share)
    assert borders[-1] == sum(map(len, plan.rows))
    draw_plan([plan, plan], tmp_path / "plan.png", bins=30)
    assert (tmp_path / "plan.png").stat().st_size > 2000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"plans": []}, "draw_plan takes a plan or several"),
        ({"plans": [3]}, "draw_plan takes a plan or several"),
        ({"columns": 0, "bins": 0}, "columns must be a whole number .* bins must be a whole"),
    ],
)
def test_pictures_of_nothing(given, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        draw_plan(given.pop("plans", online(LABELS, 3)), tmp_path / "x.png", **given)
    with pytest.raises(ValueError, match=r"planned takes a `Plan`, .*"):
        planned(None, blobs(), blobs())


def test_what_is_no_data_or_no_names_is_one_line():
    plan = online(LABELS, 3)
    broken = dataclasses.replace(plan, rows=tuple(r + 99 for r in plan.rows))
    for call, words in (
        (lambda: planned(plan, *blobs()), r"The training data are a pair \(inputs, labels\), got "),
        (lambda: planned(broken, blobs(), blobs()), "online, 3 tasks: .*row"),
        (lambda: online(LABELS, 3, names=5), "names are texts, one a label; got 5"),
        (lambda: online(LABELS, 3, names="abcdef"), "names are texts, one a label; got 'abcdef'"),
        (lambda: online(LABELS, 3, order=5), "The order of .* holds whole numbers, got 5"),
        (
            lambda: expansion(LABELS, TREE, "multi", names=list(range(12))),
            "names are texts, .*got 0",
        ),
        (lambda: anytime(plan, np.zeros((3, 1, 6))), "anytime takes a `Stream`, .*got .*Plan"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_groups_name_the_rows_of_many_classes(tmp_path):
    names = [f"c{i}" for i in range(60)]
    tree = hierarchy(names, {"few": names[:2], "many": names[2:30], "more": names[30:]})
    plan = expansion(np.arange(240) % 60, tree, seed=1)
    named = rows_named(plan, len(tree.names))
    assert {"many", "more"} <= set(named.values()) <= {"few", "many", "more", "the coarsest"}
    middle = {name: place for place, name in named.items()}
    arrive = {
        name: np.flatnonzero(plan.counts()[3 + i])[0] for name, i in (("many", 2), ("more", 30))
    }
    assert (middle["many"] < middle["more"]) == (arrive["many"] < arrive["more"])
    assert min(np.diff(sorted(named))) >= 63 / 24
    draw_plan(plan, tmp_path / "plan.png")
    assert rows_named(online(np.arange(60) % 30, 3), 30) == {}
    assert len(rows_named(online(LABELS, 3), 6)) == 6


def test_a_digest_tells_more_than_rows_apart():
    one = expansion(LABELS, PAIR, "single", 3, 0)
    others = [
        dataclasses.replace(one, examples=900), dataclasses.replace(one, promise="at most once"),
        dataclasses.replace(one, parent=np.zeros_like(one.parent)),
        dataclasses.replace(one, level=np.zeros_like(one.level)),
    ]  # fmt: skip
    assert len({p.digest() for p in (one, *others)}) == 5
    assert dataclasses.replace(one, name="x").digest() == one.digest()


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
    """Parts of 3 of 8 steps: a mark every 15 examples of a task, and one after its last ten."""
    stream, result = learnt(i_blurry(LABELS, 3, seed=1), "seen", ("met", "accuracy"), anytime=3)
    R = result.R[LAST]["met"]
    marks = anytime(stream, R)
    assert marks.examples.tolist() == [15, 30, 40, 55, 70, 80, 95, 110, 120]
    weights = np.array([15, 15, 10] * 3) / 120
    assert abs(marks.A_AUC - (marks.accuracy * weights).sum()) < 1e-12
    met = np.isin(np.arange(6), stream.targets[stream.rows[0, :3].reshape(-1)])
    assert marks.accuracy[0] == pytest.approx(np.asarray(R)[0, 0][met].mean())
    for bad in (R[:, 0], R[1:], R[..., 1:]):
        with pytest.raises(
            ValueError, match=r"R is \[tasks, parts, groups\] .*, here \[3, parts, 6"
        ):
            anytime(stream, bad)


def test_a_curve_of_what_was_not_scored():
    x, y = blobs()
    stream = planned(online(LABELS, 3), (x, y), (x, y), batch=5)
    with pytest.raises(ValueError, match=r"got \[3, 0, 6\]"):
        anytime(stream, np.ones((3, 0, 6)))
    with pytest.raises(ValueError, match="marks that were not scored"):
        anytime(stream, np.full((3, 2, 6), np.nan))
    tasks = split((x, y), (x, y), [[0, 1], [2, 3], [4, 5]], batch=5)
    with pytest.raises(ValueError, match=r"groups of one class each .*; some have several"):
        anytime(tasks, np.ones((3, 2, 3)))


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 7])
def test_the_area_is_over_examples_wherever_marks_are(parts):
    """A model that knows a class after n examples of the stream: the area is the mean over them."""
    x, y = blobs()
    stream = planned(si_blurry(LABELS, 3, seed=4), (x, y), (x, y), batch=1)
    size = -(-stream.rows.shape[1] // parts)
    taken = np.asarray(stream.weight).sum((1, 2)).astype(int)
    ends = [np.minimum(size * (1 + np.arange(parts)), n) + taken[:t].sum()
            for t, n in enumerate(taken)]  # fmt: skip
    R = np.repeat(np.array(ends)[..., None] / 120, 6, axis=2)
    marks = anytime(stream, R)
    at = np.unique(np.concatenate(ends))
    assert marks.examples.tolist() == at.tolist()
    assert abs(marks.A_AUC - np.sum(np.diff(np.r_[0, at]) * at) / 120**2) < 1e-12


def test_a_hierarchy_is_learnt_level_after_level():
    plan = expansion(LABELS, TREE, "multi", seed=0)
    stream, result = learnt(plan, "level", ("level", "level_or_below"), batch=2)
    depth = np.concatenate([np.full(len(g.rows), d) for d, g in enumerate(stream.groups)])
    R = np.asarray(result.R[LAST]["level"])
    for d in range(3):
        assert R[d, depth == d].mean() > 0.6, d
    assert np.asarray(result.R[LAST]["level_or_below"] >= R).all()
    for d in range(3):  # one part a task; all classes of a level come in its task
        marks = anytime(stream, R[:, None], level=d)
        tests = np.asarray(stream.groups[d].weight).sum(1)
        right = [np.average(R[t, depth == d], weights=tests) for t in range(d, 3)]
        np.testing.assert_allclose(marks.accuracy, right, rtol=1e-6)
        assert marks.examples.tolist() == np.cumsum([len(r) for r in plan.rows])[d:].tolist()
    for level in (None, 3, -1):
        with pytest.raises(ValueError, match=r"level is one of \[0, 1, 2\], .*; got"):
            anytime(stream, R[:, None], level=level)
