"""What a stream holds while it learns: in copies of a model that is large beside all else."""

import gc

import clouds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clouds import TRAINING

import jaxmerge as jm
from jaxmerge.continual.deploys import LAST, Deploy
from jaxmerge.studies.loop import Stream
from jaxmerge.training import checkpoint
from jaxmerge.training.fit import fit

SIZE = 200_000  # entries of the model


def features(params, inputs):
    """Those of the toy, beside a leaf that is large."""
    return clouds.features(params, inputs) + 0 * params["large"][0]


@pytest.fixture(scope="module")
def learner():
    small = clouds.learner()
    params = {**small.params, "large": jnp.zeros(SIZE)}
    return small._replace(params=params, features=features)


@pytest.fixture(scope="module")
def scenario():
    return clouds.scenario(clouds.source())


def held() -> float:
    """Copies of the model that are in memory."""
    gc.collect()
    found = {x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays() if x.nbytes}
    return sum(found.values()) / (4 * SIZE)


def held_in_training(scenario, learner, deploys, store) -> list[float]:
    """The most while a task is learnt, beyond what was there before, task after task."""
    before, most = held(), {}

    def watch(phase, steps, value):
        if phase == "training":
            t = stream.done
            most[t] = max(most.get(t, 0.0), held() - before)

    stream = Stream(
        scenario, learner, deploys=deploys, training=TRAINING, store=store, watch=watch, seed=7
    )
    stream.run()
    return [most[t] for t in range(len(scenario))]


def test_the_folds_of_merges_are_on_the_disk_while_a_task_is_learnt(scenario, learner, tmp_path):
    few = held_in_training(scenario, learner, (LAST,), tmp_path / "few")
    merges = [LAST, "magmax", "average", Deploy("TIES", jm.ties, (0.5, 1.0)), "karcher"]
    many = held_in_training(scenario, learner, merges, tmp_path / "many")
    assert np.array(many) == pytest.approx(np.array(few), abs=0.2)


@pytest.mark.parametrize("more", [1, 3])
def test_one_fold_at_a_time_is_in_memory_while_merges_are_evaluated(
    scenario, learner, tmp_path, more
):
    most, before = [], held()
    deploys = [Deploy(f"TIES {k}", jm.ties, (0.5, 1.0)) for k in range(more)]
    watch = lambda phase, steps, value: phase == "training" or most.append(held() - before)
    Stream(
        scenario, learner, deploys=deploys, training=TRAINING, store=tmp_path, watch=watch, seed=7
    ).run()
    assert max(most) < 3.8  # a state that keeps three models, what merges see of the base


def test_nothing_is_held_twice_while_a_model_is_fitted(scenario, learner):
    rows, most = scenario[0].rows["train"], []
    inputs, columns = scenario[0].source.inputs[rows], scenario[0].labels("train")
    before = held()
    watch = lambda steps, loss: most.append(held() - before)
    fit(learner, learner.params, inputs, columns, scenario.mask(0), TRAINING, watch=watch)
    assert max(most) < 3.3  # the weights and two moments of AdamW


def test_a_stream_that_goes_on_reads_its_folds_when_they_are_needed(scenario, learner, tmp_path):
    deploys = ("magmax", "average", Deploy("TIES", jm.ties, (0.5, 1.0)))
    new = lambda: Stream(scenario, learner, deploys=deploys, training=TRAINING, store=tmp_path)
    new().learn(0)
    before = held()
    stream = new()
    assert held() - before < 1.3  # the last model
    assert int(stream.states["magmax"].step) == 1


@pytest.mark.parametrize("stored", [True, False])
def test_merges_that_keep_every_model_go_on_after_a_kill(scenario, tmp_path, stored):
    learner = clouds.learner()
    options = {"deploys": ("karcher", "model_stock", "opcm"), "training": TRAINING, "seed": 3}
    whole = Stream(scenario, learner, **options).run()
    store = tmp_path if stored else None
    stream = Stream(scenario, learner, store=store, **options)
    for t in range(2):
        stream.learn(t)
    if stored:
        stream = Stream(scenario, learner, store=store, **options)
    stream.run()
    assert stream.outcomes == whole.outcomes
    for row, model in whole.deployed.items():
        for n, leaf in model.items():
            np.testing.assert_array_equal(leaf, stream.deployed[row][n], err_msg=f"{row} {n}")


def test_folds_in_the_place_of_others_are_refused(scenario, tmp_path):
    new = lambda: Stream(
        scenario, clouds.learner(), deploys=("magmax",), training=TRAINING, store=tmp_path
    )
    first = new()
    first.learn(0)
    other = new()
    other.learn(1)
    with pytest.raises(ValueError, match="is gone: another run has written into this folder"):
        first.learn(1)


def test_a_task_whose_checkpoint_failed_is_not_lost(scenario, tmp_path, monkeypatch):
    """The folds go on in memory where the disk does not have them."""
    options = {"deploys": ("magmax", "average"), "training": TRAINING, "seed": 3, "keep": True}
    whole = Stream(scenario, clouds.learner(), **options).run()
    stream = Stream(scenario, clouds.learner(), store=tmp_path, **options)
    stream.learn(0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            stream.learn(1)
    stream.run()
    assert stream.outcomes == whole.outcomes
    again = Stream(scenario, clouds.learner(), store=tmp_path, **options)
    assert (again.done, len(again.models)) == (len(scenario), len(scenario))


@pytest.mark.parametrize("start", ["base", "last"])
def test_a_task_that_broke_off_is_not_folded_twice(scenario, tmp_path, start):
    options = {"deploys": ("average",), "training": TRAINING, "seed": 3, "start": start}
    whole = Stream(scenario, clouds.learner(), **options).run()

    def watch(phase, steps, value):
        if phase == "average" and stream.done == 1:
            raise KeyboardInterrupt

    stream = Stream(scenario, clouds.learner(), store=tmp_path, watch=watch, **options)
    with pytest.raises(KeyboardInterrupt):
        stream.run()
    with pytest.raises(ValueError, match="Task 1 broke off after its training: begin a new Stream"):
        stream.run()
    stream = Stream(scenario, clouds.learner(), store=tmp_path, **options)
    assert stream.run().outcomes == whole.outcomes


def test_files_of_folds_that_do_not_fit_are_refused_at_once(scenario, tmp_path):
    new = lambda *deploys: Stream(
        scenario, clouds.learner(), deploys=deploys, training=TRAINING, store=tmp_path
    )
    merges = Deploy("X", jm.magmax), Deploy("Y", jm.average)
    new(*merges).learn(0)
    assert new(*merges).done == 1
    with pytest.raises(ValueError, match=r"safetensors is of another model or method"):
        new(Deploy("X", jm.ties), merges[1])
    path, _ = sorted((tmp_path / "folds").iterdir())
    path.write_bytes(path.read_bytes()[:-9])
    advice = f"; delete {tmp_path} to begin again"
    with pytest.raises(ValueError, match=rf"{path.name}: not a complete checkpoint .*{advice}\.$"):
        new(*merges)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name} is gone: .*{advice}\.$"):
        new(*merges)


def test_a_kill_between_any_two_files_of_a_checkpoint_loses_nothing(
    scenario, tmp_path, monkeypatch
):
    """The folds of a task are written before the record that says it is done."""
    options = {"deploys": ("magmax", "average"), "training": TRAINING, "seed": 3}
    whole = Stream(scenario, clouds.learner(), **options).run()
    save = checkpoint.save
    for calls in range(8):  # two folds and the record a task
        left = [calls]

        def killed(*given, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            save(*given)

        store = tmp_path / str(calls)
        first = Stream(scenario, clouds.learner(), store=store, **options)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                first.run()
        stream = Stream(scenario, clouds.learner(), store=store, **options)
        assert stream.done == calls // 3
        assert stream.run().outcomes == whole.outcomes
        kept = sorted(path.name[:2] for path in (store / "folds").iterdir())
        assert kept == [f"{len(scenario):02d}"] * 2
