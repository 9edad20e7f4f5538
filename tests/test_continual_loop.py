"""The loop on a tiny CLIP: learning happens, merges are those of jm.merge, kills lose nothing."""

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import clouds
import jax
import numpy as np
import pytest
from clouds import TRAINING, features
from safetensors.numpy import save as dump

import jaxmerge as jm
from jaxmerge.continual import methods, schedule
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.evaluation import predict
from jaxmerge.studies.loop import LAST, Deploy, Stream
from jaxmerge.studies.provenance import Cost
from jaxmerge.studies.seed import Plan, run_seed, steps_of
from jaxmerge.training import checkpoint
from jaxmerge.training.fit import Training, fit
from jaxmerge.training.mid_task import Halfway

MERGES = (
    Deploy("MagMax", jm.magmax, (0.25, 0.5, 1.0)),
    Deploy("RandMix", jm.randmix, (1.0,), always=False),
    Deploy("TIES", lambda f: jm.ties(0.5, f), (0.5, 1.0), always=False),
)


@pytest.fixture(scope="module")
def source():
    return clouds.source()


@pytest.fixture(scope="module")
def learner():
    return clouds.learner()


@pytest.fixture(scope="module")
def scenario(source):
    return clouds.scenario(source)


def stream(scenario, learner, **options):
    options = {"training": TRAINING, "deploys": (Deploy("last model"), *MERGES), **options}
    return Stream(scenario, learner, seed=7, batch=32, **options)


@pytest.fixture(scope="module")
def whole(scenario, learner):
    return stream(scenario, learner, keep=True).run()


def same(a, b):
    assert a.keys() == b.keys()
    for n in a:
        np.testing.assert_array_equal(np.asarray(a[n]), np.asarray(b[n]), err_msg=n)


# ------------------------------------------------------------ training


def test_a_task_is_learnt_by_the_loop(whole, learner):
    for t, losses in enumerate(whole.losses):
        assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3]), f"task {t} was not learnt"
    _, aware = whole.measure(whole.last, whole.test)
    assert aware[2] > 0.9


def test_tasks_of_other_sizes_compile_nothing_new(scenario, learner, source):
    from jaxmerge.training.fit import run_chunk

    task = scenario[0]
    inputs, columns = source.inputs[task.rows["train"]], task.labels("train")
    fit(learner, learner.params, inputs, columns, scenario.mask(0), TRAINING)
    before = run_chunk._cache_size()
    for count, mask in ((len(columns), 1), (11, 0), (3, 2)):
        options = Training(epochs=3, batch=8, rate=0.01, chunk=3)
        own = scenario.mask(0) | scenario.mask(mask)
        fit(learner, learner.params, inputs[:count], columns[:count], own, options)
    assert run_chunk._cache_size() == before


def test_training_is_adamw_step_by_step(scenario, learner, source):
    """The compiled chunks against plain optax in a Python loop."""
    import optax

    from jaxmerge.training.fit import Chunks

    task = scenario[1]
    inputs, columns = source.inputs[task.rows["train"]], task.labels("train")
    own = scenario.mask(1)
    actual, losses = fit(learner, learner.params, inputs, columns, own, TRAINING, seed=(3, 1))
    total = TRAINING.steps(len(columns))
    warm = TRAINING.warmup * total

    def rate(count):
        k = count + 1
        cosine = 0.5 * (1 + np.cos(np.pi * (k - warm) / (total - warm + 1)))
        return TRAINING.rate * (k / warm if k <= warm else cosine)

    adam = optax.scale_by_adam()
    params, moments = dict(learner.params), adam.init(learner.params)
    small = np.flatnonzero(own)

    def loss_of(params, x, y):
        f = features(params, x)
        unit = f / jax.numpy.linalg.norm(f, axis=-1, keepdims=True)
        logits = 10 * unit @ learner.head[:, small]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    for k, rows in enumerate(Chunks(len(columns), TRAINING, (3, 1)).order):
        labels = np.searchsorted(small, columns[rows])
        loss, gradient = jax.value_and_grad(loss_of)(params, inputs[rows], labels)
        assert float(loss) == pytest.approx(losses[k], rel=1e-4)
        size = max(1.0, np.sqrt(sum(float((g**2).sum()) for g in gradient.values())))
        gradient = {n: g / size for n, g in gradient.items()}
        update, moments = adam.update(gradient, moments)
        params = {
            n: p - rate(k) * (update[n] + TRAINING.weight_decay * p) for n, p in params.items()
        }
    for n in params:
        np.testing.assert_allclose(actual[n], params[n], rtol=2e-4, atol=2e-5, err_msg=n)


def test_leaves_that_no_rule_trains_stay_bit_by_bit(scenario, learner, source):
    task = scenario[0]
    inputs, columns = source.inputs[task.rows["train"]], task.labels("train")
    own, only = scenario.mask(0), [methods.train_only("^b/")]
    actual, _ = fit(learner, learner.params, inputs, columns, own, TRAINING, methods=only)
    for n in ("a/kernel", "a/bias"):
        np.testing.assert_array_equal(actual[n], learner.params[n])
    assert np.abs(np.asarray(actual["b/kernel"] - learner.params["b/kernel"])).max() > 1e-3
    with pytest.raises(ValueError, match="'nothing' matches none of the 3 leaves"):
        stream(scenario, learner, methods=[methods.train_only("nothing")])


def test_a_loss_that_explodes_is_an_error(scenario, learner, source):
    task = scenario[0]
    inputs, columns = source.inputs[task.rows["train"]], task.labels("train")
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fit(learner, learner.params, inputs * np.float32(np.inf), columns, scenario.mask(0),
            TRAINING)  # fmt: skip


# ------------------------------------------------------------ merging and evaluation


def test_deployed_models_are_those_of_the_batch_driver(whole, learner):
    for d in MERGES:
        factor = whole.outcomes[d.label].factors[-1]
        assert factor in d.factors
        key = jax.random.key(7) if d.label == "RandMix" else None
        expected = jm.merge(d.method(factor), learner.params, whole.models, key=key)
        for n in expected:
            np.testing.assert_allclose(
                whole.deployed[d.label][n], expected[n], rtol=1e-6, atol=1e-7, err_msg=n
            )


def test_the_factor_is_the_best_on_the_validation_split(whole, learner):
    for label in ("MagMax", "TIES"):
        sweep = whole.outcomes[label].sweep
        assert sweep["chosen"] == sweep["factors"][int(np.argmax(sweep["accuracy"]))]
    method = jm.magmax(whole.outcomes["MagMax"].factors[-1])
    merged = jm.merge(method, learner.params, whole.models)
    free, _ = whole.measure(merged, whole.val)
    assert max(whole.outcomes["MagMax"].sweep["accuracy"]) == pytest.approx(free.mean())


def test_factors_past_the_list_and_factors_of_a_fold_are_chosen_too(
    scenario, learner, whole, tmp_path
):
    """Of models at hand; stopped after the first task, the same."""
    far = Deploy("MagMax", "magmax", (0.1, 0.15), beyond=8)
    ties = partial(jm.continual_ties, 0.4)
    own = Deploy("TIES", ties, (0.05, 0.3, 1.0))
    last = len(scenario) - 1
    for _ in range(2):
        run = stream(scenario, learner, deploys=(far, own), store=tmp_path)
        for t in run.tasks_left()[:1] if run.done == 0 else run.tasks_left():
            run.learn(t, known=whole.models[t])
    for d, method in ((far, jm.magmax), (own, ties)):
        sweep = run.outcomes[d.label].sweep
        assert set(d.factors) <= set(sweep["factors"])
        merged = {f: jm.merge(method(f), learner.params, whole.models) for f in sweep["factors"]}
        found = [run.measure(merged[f], run.val)[0].mean() for f in sweep["factors"]]
        assert sweep["accuracy"] == pytest.approx(found)
        chosen = sweep["chosen"]
        assert chosen == sweep["factors"][int(np.argmax(found))]
        assert run.outcomes[d.label].factors[last] == chosen
        free, _ = run.measure(merged[chosen], run.test)
        assert run.outcomes[d.label].matrix[last] == free.tolist()
        for n, x in merged[chosen].items():
            np.testing.assert_allclose(run.deployed[d.label][n], x, rtol=1e-6, atol=1e-7)
    assert run.outcomes["MagMax"].sweep["chosen"] > 0.15
    assert run.outcomes["TIES"].sweep["factors"] == list(own.factors)


def test_factors_see_only_validation_examples_of_tasks_seen(scenario, learner):
    """Other test images, and other validation images of later tasks, choose the same factor."""
    first = stream(scenario, learner, deploys=MERGES[:1])
    first.learn(0)
    changed = stream(scenario, learner, deploys=MERGES[:1])
    zero = [np.zeros_like(c) for c in changed.test.chunks]
    changed.test = changed.test._replace(chunks=zero)
    chunk = np.array(changed.val.chunks[0])
    chunk[changed.val.task[: len(chunk)] > 0] = 0
    changed.val = changed.val._replace(chunks=[jax.numpy.asarray(chunk), *changed.val.chunks[1:]])
    changed.learn(0)
    assert changed.outcomes["MagMax"].sweep == first.outcomes["MagMax"].sweep


def test_accuracies_from_the_definition(scenario, learner, source):
    data = predict.probe(learner, scenario, "test", batch=8)
    assert len(data.chunks) == 5  # 36 examples
    actual = predict.logits(learner, [learner.params], data)
    free, aware = predict.accuracies(actual, data)
    for t, task in enumerate(scenario):
        rows = task.rows["test"]
        logits = np.asarray(learner.logits(learner.params, source.inputs[rows]))
        labels = source.labels[rows]
        assert free[0, t] == np.mean(logits.argmax(1) == labels)
        own = np.asarray(task.classes)
        assert aware[0, t] == np.mean(own[logits[:, own].argmax(1)] == labels)
    upto = data.upto(2)
    assert set(upto.task.tolist()) == {0, 1}


def test_methods_evaluated_at_the_end_have_no_earlier_rows(whole):
    rows = whole.outcomes["TIES"].matrix
    assert rows[0] == rows[1] == [None] * 3
    assert all(x is not None for x in rows[2])
    assert all(x is not None for row in whole.outcomes["MagMax"].matrix for x in row)


# ------------------------------------------------------------ schedules


def test_starts_differ_where_they_should(scenario, learner, whole):
    alone = stream(scenario, learner, start=schedule.from_base, keep=True).run()
    same(alone.models[0], whole.models[0])
    task = scenario[2]
    data = task.source.inputs[task.rows["train"]], task.labels("train")
    expected, _ = fit(learner, learner.params, *data, scenario.mask(2), TRAINING, seed=(7, 2))
    same(alone.models[2], expected)
    running = stream(scenario, learner, start=schedule.from_running, deploys=MERGES[:1], keep=True)
    running.learn(0)
    deployed = running.deployed["MagMax"]
    running.learn(1)
    task = scenario[1]
    data = task.source.inputs[task.rows["train"]], task.labels("train")
    expected, _ = fit(learner, deployed, *data, scenario.mask(1), TRAINING, seed=(7, 1))
    for n in expected:
        np.testing.assert_allclose(running.models[1][n], expected[n], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------ kills


@pytest.mark.parametrize("after", [1, 2])
def test_a_killed_stream_goes_on_with_the_same_figures(scenario, learner, whole, tmp_path, after):
    first = stream(scenario, learner, keep=True, store=tmp_path)
    for t in range(after):
        first.learn(t)
    del first
    second = stream(scenario, learner, keep=True, store=tmp_path)
    assert list(second.tasks_left()) == list(range(after, 3))
    second.run()
    same(second.last, whole.last)
    for label, outcome in whole.outcomes.items():
        assert second.outcomes[label] == outcome
    for label in whole.deployed:
        same(second.deployed[label], whole.deployed[label])


@pytest.mark.parametrize("added", [(), (methods.er(20),)], ids=["plain", "ER"])
def test_a_stream_killed_within_a_task_goes_on_there(
    scenario, learner, tmp_path, monkeypatch, added
):
    """Stopped in the middle of task 1: optimiser, position and losses come back as they were."""
    options = {"methods": added, "keep": True}
    undisturbed = stream(scenario, learner, **options).run()
    save, left = Halfway.save, [9]

    def interrupted(self, state, losses):
        save(self, state, losses)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Halfway, "save", interrupted)
        first = stream(scenario, learner, store=tmp_path, every=0.0, **options)
        with pytest.raises(KeyboardInterrupt):
            first.run()
    assert first.done == 1
    steps = []
    second = stream(
        scenario, learner, store=tmp_path, watch=lambda p, n, v: steps.append((p, n)), **options
    ).run()
    assert steps[0][0] == "resumed"
    assert steps[1] == ("training", TRAINING.chunk * (9 - -(-len(second.losses[0]) // 3)))
    assert second.losses == undisturbed.losses
    assert second.outcomes == undisturbed.outcomes
    for a, b in zip(second.models, undisturbed.models, strict=True):
        same(a, b)
    assert not list(tmp_path.glob("training_*"))


def test_a_state_of_another_model_is_refused(tmp_path):
    state = {"w": jax.numpy.arange(4.0)}
    assert Halfway(tmp_path / "t").load(state) is None
    Halfway(tmp_path / "t", 0).save(state, [1.0, 2.0])
    restored, losses = Halfway(tmp_path / "t").load(state)
    same(restored, state)
    assert losses == [1.0, 2.0]
    with pytest.raises(ValueError, match="holds a state of another model or training"):
        Halfway(tmp_path / "t").load({"w": state["w"], "v": state["w"]})


@pytest.mark.slow
def test_a_full_disk_within_a_task_leaves_the_last_checkpoint(tmp_path):
    """A file system of two megabytes, for real."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    try:
        state = {"w": jax.random.normal(jax.random.key(0), (384, 1024))}
        folder = tmp_path / "t"
        Halfway(folder, 0).save(state, [1.0, 2.0])
        with pytest.raises(OSError, match="No space left on device; the checkpoint before stays"):
            Halfway(folder, 0).save({"w": state["w"] + 1}, [1.0, 2.0, 3.0])
        restored, losses = Halfway(folder).load(state)
        same(restored, state)
        assert losses == [1.0, 2.0]
        assert not list(folder.glob("*tmp*"))  # what the failed one took is free again
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_writes_beside_a_failed_one_print_no_traces(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    for _ in range(2):
        assert Halfway(tmp_path).load({"w": np.zeros(2)}) is None
    for text in ("Event loop is closed", "another"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    assert [str(what.exc_value) for what in shown] == ["another"]


def test_a_stream_of_other_tasks_does_not_go_on(scenario, learner, source, tmp_path):
    stream(scenario, learner, store=tmp_path).learn(0)
    with pytest.raises(ValueError, match="the checkpoint is of the tasks"):
        stream(class_incremental(source, 3), learner, store=tmp_path)


DAMAGE = {
    "no record": lambda r: {},
    "more tasks done than there are": lambda r: r | {"done": 99},
    "a number as text": lambda r: r | {"done": "1"},
    "another field": lambda r: r | {"x": 1},
    "no outcomes": lambda r: r | {"outcomes": {}},
    "figures of another shape": lambda r: r | {
        "outcomes": {k: o | {"matrix": [[0.5]]} for k, o in r["outcomes"].items()}
    },
    "figures that are none": lambda r: r | {
        "outcomes": {k: o | {"matrix": "x"} for k, o in r["outcomes"].items()}
    },
    "losses of no task": lambda r: r | {"losses": 3},
    "a list": lambda r: [r],
}  # fmt: skip


def test_a_damaged_record_is_one_line_that_names_the_file(scenario, learner, tmp_path):
    stream(scenario, learner, store=tmp_path).learn(0)
    path = tmp_path / "state.safetensors"
    flat, record = checkpoint.load(path)
    for what, damaged in DAMAGE.items():
        path.write_bytes(dump(flat, {checkpoint.RECORD: json.dumps(damaged(record))}))
        with pytest.raises(
            ValueError, match=r"state\.safetensors (is damaged|does not fit)"
        ) as caught:
            stream(scenario, learner, store=tmp_path)
        assert "NoneType" not in str(caught.value), what
    checkpoint.save(path, flat, record)
    assert stream(scenario, learner, store=tmp_path).done == 1
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is a pipe"):
        stream(scenario, learner, store=tmp_path)


def test_a_damaged_cost_of_earlier_attempts_is_one_line(tmp_path):
    (tmp_path / "cost.json").write_text('{"seconds": "x"}')
    with pytest.raises(ValueError, match=r"cost\.json does not fit: seconds"):
        Cost(tmp_path)


def test_tasks_come_in_order(scenario, learner):
    with pytest.raises(ValueError, match="Task 0 comes next, got 1"):
        stream(scenario, learner).learn(1)


# ------------------------------------------------------------ a whole seed


def test_one_seed_has_every_row_and_counts_its_steps(scenario, learner, tmp_path):
    steps = []
    how = lambda task=None: TRAINING
    plans = (
        Plan("sequential", deploys=(LAST, *MERGES), training=how),
        Plan("independent", schedule.from_base, MERGES, training=how, vectors=True),
    )
    run, merged = run_seed(
        scenario, learner, plans, seed=7, how=how, store=tmp_path, batch=32,
        watch=lambda stream, phase, n, loss: steps.append(n),
    )  # fmt: skip
    assert sum(steps) == steps_of(scenario, plans, how)
    rows = [(e.label, e.finetunes) for e in run.entries]
    assert rows == [
        ("zero-shot", "none"), ("last model", "sequential"),
        *((d.label, "sequential") for d in MERGES), *((d.label, "independent") for d in MERGES),
        ("joint", "joint"),
    ]  # fmt: skip
    assert set(merged) == {(d.label, k) for d in MERGES for k in ("sequential", "independent")}
    by_name = dict(zip(rows, run.entries, strict=True))
    joint = by_name["joint", "joint"]
    assert joint.metrics["accuracy"] > by_name["zero-shot", "none"].metrics["accuracy"]
    assert joint.metrics["bwt"] is None
    assert by_name["last model", "sequential"].factors is None
    assert by_name["last model", "sequential"].metrics["bwt"] is not None
    phases = set()
    one = (MERGES[0].label, "independent")
    again, given = run_seed(
        scenario, learner, plans, seed=7, how=how, store=tmp_path, batch=32, keep=[one],
        watch=lambda stream, phase, n, value: phases.add(phase),
    )  # fmt: skip
    assert again.entries == run.entries
    assert set(given) == {one}
    same(given[one], merged[one])
    assert phases == {"resumed"}
