"""Figures of continual learning against the code they are from, in groups, any time, any direction.

`golden/cl_metrics.npz` holds what the functions of these repositories gave for random matrices:
aimagelab/mammoth e75a491c69fd (`utils/metrics.py`), weilllllls/OnPro a92f8ae22ad7
(`utils/util.py`), Hyun1A/HLE 3126cb37bbc6 (`summary`), GengDavid/SLCA 169d4e6b91e3
(`utils/toolkit.py`); values only.
"""

from pathlib import Path

import numpy as np
import oracles
import pytest

from jaxmerge.continual.stream_records import Evaluator
from jaxmerge.evaluation import metrics
from jaxmerge.evaluation.definitions import DEFINITIONS
from jaxmerge.report import across, tables

GOLDEN = np.load(Path(__file__).parent / "golden" / "cl_metrics.npz")


def same(actual, key, atol=1e-9):
    """Equal to the figure of that name; the difference is noted for `oracles.json`."""
    apart = np.max(np.abs(np.asarray(actual) - GOLDEN[key]))
    assert oracles.note("cl_metrics", "cl_metrics", apart) <= atol, key


@pytest.mark.parametrize("k", range(3))
def test_mammoth(k):
    R = GOLDEN[f"m{k}_R"]
    same(metrics.backward_transfer(R), f"m{k}_backward_transfer")
    same(metrics.forgetting_from_best(R), f"m{k}_forgetting")
    if GOLDEN[f"m{k}_rows_complete"]:
        untrained = GOLDEN[f"m{k}_random_baseline"][:, 0]
        same(metrics.forward_transfer(R, untrained), f"m{k}_forward_transfer")
    else:  # entries above the diagonal are 0 there; that they are missing changes nothing
        missing = np.where(np.triu(np.ones_like(R), 1) > 0, np.nan, R)
        same(metrics.forgetting_from_best(missing), f"m{k}_forgetting")


@pytest.mark.parametrize("k", range(2))
def test_online(k):
    runs = GOLDEN[f"o{k}_acc"]
    figures = {
        "end_acc": metrics.average_accuracy,
        "end_forgetting": metrics.forgetting_all_tasks,
        "avg_acc": lambda R: np.mean(metrics.over_time(R)),
        "bwt_plus": metrics.positive_backward_transfer,
        "fwt": metrics.plain_forward_transfer,
    }
    for name, figure in figures.items():
        same(metrics.interval(np.array([figure(R) for R in runs])), f"o{k}_{name}")


@pytest.mark.parametrize("k", range(2))
def test_anytime(k):
    read = lambda name: GOLDEN[f"a{k}_{name}"]
    same(metrics.area_under_curve(read("anytime_accuracy")), f"a{k}_A_auc")
    same(np.mean(read("task_end_accuracy")), f"a{k}_A_avg")
    same(read("task_end_accuracy")[-1], f"a{k}_A_last")
    same(metrics.forgetting_by_class(read("task_end_class_accuracy")), f"a{k}_F_last")


def test_slca():
    right = GOLDEN["g_pred"] == GOLDEN["g_true"]
    figures = metrics.by_age(right, GOLDEN["g_true"], int(GOLDEN["g_known_classes"]))
    for name, key in {"all": "total", "old": "old", "new": "new"}.items():
        same(round(100 * figures[name], 2), f"g_{key}")
    assert metrics.area_under_curve(GOLDEN["curve"]) == pytest.approx(
        GOLDEN["curve_average"], abs=0.01
    )


def test_forgetting_in_the_middle_of_a_task_counts_at_any_time():
    marks = np.array([[[0.5, 0.0], [0.9, 0.1]], [[1.0, 0.2], [0.6, 0.8]]])  # [task, part, group]
    assert metrics.forgetting_anytime(marks) == pytest.approx(0.4)
    assert metrics.forgetting_from_best(marks[:, -1]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"\[tasks, parts, groups\]"):
        metrics.forgetting_anytime(marks[0])


def test_less_is_better_turns_best_and_forgetting_round():
    perplexity = np.array([[2.0, 9.0], [5.0, 3.0]])
    less = {"lower_is_better": True}
    assert metrics.forgetting(perplexity, **less) == 3.0
    assert metrics.forgetting_from_best(perplexity, **less) == 3.0
    assert metrics.backward_transfer(perplexity, **less) == -3.0
    assert metrics.forward_transfer(perplexity, np.array([10.0, 10.0]), **less) == 1.0


def test_groups_need_not_be_tasks():
    R = np.array([[0.9, 0.8, 0.1, 0.5], [0.5, 0.8, 0.7, 0.5]])  # the last group is of no task
    learnt = np.array([0, 0, 1, -1])
    assert metrics.forgetting(R, learnt) == pytest.approx(0.2)
    assert metrics.over_time(R, learnt).tolist() == pytest.approx([0.85, 2 / 3])
    assert metrics.plain_forward_transfer(R, learnt) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="4 groups after 2 tasks; where groups are not the tasks"):
        metrics.forgetting(R)
    with pytest.raises(ValueError, match="one task below 2 for each of the 4 groups"):
        metrics.forgetting(R, np.array([0, 0, 2, 1]))


def test_what_is_missing_after_learning_leaves_no_figure():
    only_last = np.array([[np.nan, np.nan], [0.5, 1.0]])
    for figure in (metrics.forgetting, metrics.forgetting_from_best, metrics.forgetting_all_tasks,
                   metrics.forgetting_by_class, metrics.backward_transfer):  # fmt: skip
        assert np.isnan(figure(only_last))


def test_every_metric_of_a_stream_in_its_direction():
    R = {
        "accuracy": np.array([[0.9, 0.2, np.nan], [0.5, 0.8, np.nan]]),
        "perplexity": np.array([[np.nan, np.nan, 2.0], [np.nan, np.nan, 3.0]]),
    }
    evaluators = {
        "accuracy": Evaluator(lambda out, y, info: y),
        "perplexity": Evaluator(lambda out, y, info: y, lower_is_better=True),
    }
    learnt = np.array([0, 1, 0])
    figures = metrics.of_groups(R, evaluators, learnt)
    assert figures["accuracy"]["final"] == pytest.approx(0.65)
    assert figures["accuracy"]["forgetting"] == pytest.approx(0.4)
    assert figures["perplexity"]["forgetting"] == 1.0
    marks = {"accuracy": np.array([[[0.5, 0.1], [0.7, 0.2]], [[0.8, 0.6], [0.6, 0.8]]])}
    again = metrics.of_groups(marks, evaluators)["accuracy"]
    assert again["a_auc"] == pytest.approx((0.5 + 0.7 + 0.7 + 0.7) / 4)
    assert again["forgetting_anytime"] == pytest.approx(0.2)


ACCURACY = {"accuracy": Evaluator(lambda out, y, info: y)}


def drawn(seed: int, parts: int | None = None):
    """A matrix of up to seven tasks, which task teaches each group, some by none."""
    rng = np.random.default_rng(seed)
    tasks, groups = rng.integers(2, 8), rng.integers(2, 9)
    R = rng.random((tasks, groups) if parts is None else (tasks, parts, groups))
    learnt = rng.integers(-1, tasks, groups)
    learnt[:2] = 0, -1
    return R, learnt


@pytest.mark.parametrize("seed", range(6))
def test_groups_that_no_task_teaches_count_at_the_end_alone(seed):
    R, learnt = drawn(seed, parts=3)
    other = np.where(learnt < 0, np.random.default_rng(seed).random(R.shape), R)
    one, two = (
        metrics.of_groups({"accuracy": r}, ACCURACY, learnt)["accuracy"] for r in (R, other)
    )
    assert {k for k in one if one[k] != two[k] and one[k] == one[k]} == {"final"}
    whole = metrics.of_groups({"accuracy": R[:, -1:]}, ACCURACY, learnt)["accuracy"]
    assert whole["a_auc"] == pytest.approx(whole["over_time"], abs=1e-9)  # one mark a task


def test_the_area_of_taught_groups_that_are_always_right_is_one():
    R = np.ones((2, 3, 3))
    R[..., 2] = 0
    figures = metrics.of_groups({"accuracy": R}, ACCURACY, np.array([0, 1, -1]))["accuracy"]
    assert (figures["over_time"], figures["a_auc"]) == (1, 1)


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("parts", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_with_fewer_scores_the_figures_are_those_of_longer_tasks(every, parts, seed):
    """No figure is missing that a stream of so many tasks has."""
    R, learnt = drawn(seed, parts)
    at = [t for t in range(len(R)) if (t + 1) % every == 0 or t == len(R) - 1]
    sparse = np.full_like(R, np.nan)
    sparse[at] = R[at]
    longer = [-1 if task < 0 else next(k for k, t in enumerate(at) if t >= task) for task in learnt]
    actual = metrics.of_groups({"accuracy": sparse}, ACCURACY, learnt)["accuracy"]
    expected = metrics.of_groups({"accuracy": R[at]}, ACCURACY, np.array(longer))["accuracy"]
    np.testing.assert_equal(actual, expected)
    assert actual["scored"] == len(at)
    assert np.isfinite(actual["final"])
    assert np.isnan(actual["over_time"]) == (0 not in longer)


def test_scores_of_every_other_task_of_a_run():
    from tiny_streams import KEY, setup, split

    from jaxmerge.continual.drivers import run
    from jaxmerge.continual.records import LAST

    result = run(setup(), split(tasks=3, steps=2), KEY, score_every=2)
    figures = metrics.of_groups(result.R[LAST], setup().problem.build().evaluators)
    assert all(np.isfinite(v) for f in figures.values() for v in f.values())


def test_the_end_that_was_not_scored_is_missing():
    R = np.array([[0.5, 0.1], [np.nan, np.nan]])
    figures = metrics.of_groups({"accuracy": R}, ACCURACY)["accuracy"]
    assert all(np.isnan(figures[k]) for k in ("final", "over_time", "bwt", "forgetting"))


def test_a_metric_without_evaluator_or_value_is_one_error():
    R = {"acuracy": np.ones((2, 2)), "accuracy": np.full((2, 2), np.nan)}
    with pytest.raises(ValueError, match=r"'acuracy' has no evaluator.*'accuracy' has no value"):
        metrics.of_groups(R, {"accuracy": Evaluator(lambda out, y, info: y)})


def test_reports_use_the_definitions():
    from report_results import results

    created = results()
    shown = tables.columns(created)
    assert shown == [name for name in shown if DEFINITIONS[name].shown]
    assert "Forgetting %" in tables.markdown(created)
    lines = across.markdown({"a": created, "b": created}, "forgetting").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines if "|" in line][2:]
    learnt = [cell for _, finetunes, cell in rows if finetunes not in ("none", "joint")]
    learnt = [cell for cell in learnt if cell != "–"]
    value = lambda cell: float(cell.replace("*", "").split("±")[0])
    bold = [value(cell) for cell in learnt if cell.startswith("**")]
    assert bold == [min(map(value, learnt))]  # less is better
