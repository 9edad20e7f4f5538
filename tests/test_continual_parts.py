"""The parts of continual learning alone: scenarios, metrics, checkpoints, the rate, results."""

import dataclasses
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from report_results import results as made_up

from jaxmerge.continual.optimisers import learning_rate
from jaxmerge.continual.problems import cross_entropy
from jaxmerge.continual.schedule import STARTS, Position
from jaxmerge.data.digits import digits
from jaxmerge.data.streams.scenario import class_incremental, class_order
from jaxmerge.evaluation import metrics
from jaxmerge.studies import vectors
from jaxmerge.studies.results import Results
from jaxmerge.training import checkpoint
from jaxmerge.training.fit import Chunks, Training


@pytest.fixture(scope="module")
def source():
    return digits()


# ------------------------------------------------------------ scenarios


def test_class_incremental_covers_every_example_once_in_the_given_order(source):
    order = class_order(10, seed=3)
    scenario = class_incremental(source, 4, order)
    assert [len(t.classes) for t in scenario] == [2, 3, 2, 3]  # floor(10 t / 4)
    assert sum((t.classes for t in scenario), ()) == order
    for split in ("train", "val", "test"):
        rows = np.concatenate([t.rows[split] for t in scenario])
        assert sorted(rows.tolist()) == sorted(source.splits[split].tolist())
    data = scenario.split("test")
    assert np.array_equal(np.unique(data.task), np.arange(4))
    for t in range(4):
        assert set(data.columns[data.task == t].tolist()) == set(order[slice(*_bounds(10, 4, t))])
        assert scenario.mask(t).sum() == len(scenario[t].classes)
    assert "class-incremental, 4 tasks of 2 or 3 classes" in str(scenario)


def _bounds(total, tasks, t):
    return total * t // tasks, total * (t + 1) // tasks


def test_class_order_is_a_permutation_decided_by_the_seed():
    assert class_order(10, None) == tuple(range(10))
    assert class_order(10, 1) == class_order(10, 1) != class_order(10, 2)
    assert sorted(class_order(10, 1)) == list(range(10))


@pytest.mark.parametrize("tasks", [0, 11])
def test_more_tasks_than_classes_is_refused(source, tasks):
    with pytest.raises(ValueError, match="between 1 and 10 tasks"):
        class_incremental(source, tasks)


def test_an_order_that_is_no_permutation_is_refused(source):
    with pytest.raises(ValueError, match="missing 9, repeated or out of range 0"):
        class_incremental(source, 5, (0, 0, *range(1, 9)))
    with pytest.raises(ValueError, match=r"order of classes holds whole numbers, got \[0.5, "):
        class_incremental(source, 5, [0.5 + c for c in range(10)])


def test_a_task_without_examples_is_refused(source):
    rows = source.splits["val"]
    few = dataclasses.replace(
        source, splits={**source.splits, "val": rows[source.labels[rows] != 4]}
    )
    with pytest.raises(ValueError, match=r"task 4 \(four\) has no val examples"):
        class_incremental(few, 10)


# ------------------------------------------------------------ metrics


def test_metrics_of_a_matrix_worked_out_by_hand():
    R = np.array([[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.4, 1.0]])
    zero = np.array([0.3, 0.1, 0.1])
    assert metrics.average_accuracy(R) == pytest.approx(1.9 / 3)
    assert metrics.over_time(R) == pytest.approx([0.9, 0.7, 1.9 / 3])
    assert metrics.backward_transfer(R) == pytest.approx((0.5 - 0.9 + 0.4 - 0.8) / 2)
    assert metrics.forward_transfer(R, zero) == pytest.approx((0.2 - 0.1 + 0.3 - 0.1) / 2)
    assert metrics.forgetting(R) == pytest.approx((0.9 - 0.5 + 0.8 - 0.4) / 2)
    assert metrics.normalised(R, np.diag(R)) == pytest.approx((5 / 9 + 0.5 + 1) / 3)


def test_forgetting_counts_from_the_best_and_bwt_from_the_diagonal():
    R = np.array([[0.5, 0.0, 0.0], [0.9, 0.8, 0.0], [0.7, 0.9, 1.0]])
    assert metrics.forgetting(R) == pytest.approx((0.9 - 0.7 + 0.8 - 0.9) / 2)
    assert metrics.backward_transfer(R) == pytest.approx((0.7 - 0.5 + 0.9 - 0.8) / 2)


def test_one_task_has_no_transfer_and_rows_not_measured_spread():
    one = np.array([[0.5]])
    assert np.isnan(metrics.backward_transfer(one))
    assert np.isnan(metrics.forgetting(one))
    last_only = np.array([[np.nan, np.nan], [0.5, 1.0]])
    figures = metrics.summary(last_only, last_only, np.zeros(2))
    assert figures["accuracy"] == 0.75
    assert all(np.isnan(figures[k]) for k in ("over_time", "bwt", "fwt", "forgetting"))


# ------------------------------------------------------------ training


def test_rate_rises_in_the_warm_up_and_falls_to_zero():
    rates = np.array([learning_rate(k, 2.0, 4.0, 20.0) for k in range(20)])
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert np.all(np.diff(rates[3:]) < 0)
    assert 0 < rates[-1] < 0.05
    no_warm_up = learning_rate(0, 2.0, 0.0, 20.0)
    assert 1.9 < float(no_warm_up) <= 2.0


def test_batches_show_every_example_once_an_epoch_and_depend_on_the_seed_only():
    training = Training(epochs=3, batch=4)
    actual = np.concatenate(list(Chunks(10, training, (5, 1)).order))
    assert len(actual) == 28  # 30 examples in whole batches of 4
    assert sorted(actual[:10].tolist()) == list(range(10))
    assert sorted(actual[10:20].tolist()) == list(range(10))
    assert actual.tolist() == np.concatenate(list(Chunks(10, training, (5, 1)).order)).tolist()
    assert actual.tolist() != np.concatenate(list(Chunks(10, training, (5, 2)).order)).tolist()


def test_few_examples_still_make_one_whole_batch():
    (only,) = Chunks(3, Training(epochs=1, batch=8), (0,)).order
    assert len(only) == 8
    assert set(only.tolist()) == {0, 1, 2}


def test_cross_entropy_on_own_columns_equals_that_of_the_small_head():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)
    own = np.array([0, 1, 0, 1, 1, 0], bool)
    columns = np.array([1, 3, 4, 1, 3])
    small = np.asarray(logits)[:, own]
    label = np.searchsorted(np.flatnonzero(own), columns)
    expected = np.mean(np.log(np.exp(small).sum(1)) - small[np.arange(5), label])
    actual = float(cross_entropy(logits, columns, jnp.asarray(own)).mean())
    assert actual == pytest.approx(expected, rel=1e-6)


def test_wrong_training_options_are_named_together():
    with pytest.raises(ValueError, match=r"epochs.*batch.*rate.*warmup"):
        Training(epochs=0, batch=0, rate=0.0, warmup=1.5)


# ------------------------------------------------------------ schedules


def test_starts_read_one_place_each():
    position = Position({"w": 0}, {"w": 1}, lambda: {"w": 2})
    assert {n: s.at(position)["w"] for n, s in STARTS.items()} == {
        "base": 0,
        "last": 1,
        "running": 2,
    }


# ------------------------------------------------------------ task vectors


def test_task_vectors_are_described_from_their_definition():
    rng = np.random.default_rng(1)
    base = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    base = {n: x.astype(np.float32) for n, x in base.items()}
    models = [
        {n: x + rng.normal(scale=0.1, size=x.shape).astype(np.float32) for n, x in base.items()}
        for _ in range(3)
    ]
    described = vectors.describe(base, models, "sequential")
    flat = lambda m: np.concatenate([m["a"].ravel(), m["b"].ravel()])
    taus = np.stack([flat(m) - flat(base) for m in models])
    norm = np.linalg.norm(taus, axis=1)
    assert described.norm == pytest.approx(norm, rel=1e-6)
    assert np.array(described.cosine) == pytest.approx(
        taus @ taus.T / np.outer(norm, norm), abs=1e-6
    )
    assert described.sign_agreement[0][2] == pytest.approx(np.mean(taus[0] * taus[2] > 0))
    winner = np.abs(taus).argmax(0)
    assert described.magmax_share == pytest.approx(np.bincount(winner, minlength=3) / 17)
    assert np.sum(described.magnitude_counts) == 3 * 17


# ------------------------------------------------------------ checkpoints


def test_checkpoint_round_trip_in_structure(tmp_path):
    tree = {"a": np.arange(3.0), "b": {"c": jnp.int32(4), "d": (np.ones((2, 1), np.uint8),)}}
    checkpoint.save(tmp_path / "x.safetensors", tree, {"done": 2})
    actual, record = checkpoint.load(tmp_path / "x.safetensors", tree)
    assert record == {"done": 2}
    assert actual["b"]["c"].shape == ()
    assert int(actual["b"]["c"]) == 4
    assert actual["b"]["d"][0].dtype == np.uint8
    assert np.array_equal(actual["a"], tree["a"])


def test_a_cut_off_checkpoint_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": np.arange(1000.0)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"x.safetensors: not a complete checkpoint"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "y.safetensors")


def test_a_checkpoint_of_another_model_is_refused_leaf_by_leaf(tmp_path):
    checkpoint.save(tmp_path / "x.safetensors", {"a": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match=r"missing leaf 'b'"):
        checkpoint.load(tmp_path / "x.safetensors", {"a": np.ones(2, np.float32), "b": np.ones(1)})


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": np.ones(2)}, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"a": np.zeros(2)}, 2)
    assert checkpoint.load(path)[1] == 1
    monkeypatch.undo()
    (tmp_path / f".x.safetensors.{os.getpid()}.new").write_text("of a killed process")
    checkpoint.save(path, {"a": np.zeros(2)}, 3)  # process numbers begin anew in a container
    assert checkpoint.load(path)[1] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


# ------------------------------------------------------------ results


def test_results_survive_json_and_hold_no_nan(tmp_path):
    results = made_up(seeds=2)
    results.seeds[0].entries[0].matrix[0][0] = float("nan")
    text = results.to_json(tmp_path / "results.json")
    json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} in strict JSON"))
    again = Results.from_json(tmp_path / "results.json")
    assert again.seeds[0].entries[0].matrix[0][0] is None
    results.seeds[0].entries[0].matrix[0][0] = None
    assert again == results


def test_results_of_another_shape_are_refused():
    data = json.loads(made_up(seeds=1).to_json())
    with pytest.raises(ValueError, match="schema 'other/1'"):
        Results.from_json(json.dumps({**data, "schema": "other/1"}))
    data["seeds"][0]["speed"] = 1
    del data["seeds"][0]["order"]
    with pytest.raises(
        ValueError, match=r"seeds\[0\]\.order: field required; seeds\[0\]\.speed: there is no"
    ):
        Results.from_json(json.dumps(data))
