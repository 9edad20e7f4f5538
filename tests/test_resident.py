"""Seeds of a stream trained as one program, as `jaxmerge sweep` does where they fit."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import clouds
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.continual import methods, schedule
from jaxmerge.continual.deploys import LAST, Deploy
from jaxmerge.studies import resident
from jaxmerge.studies.loop import Stream
from jaxmerge.studies.seed import Plan

TRAINING = lambda task=None: clouds.TRAINING


@pytest.fixture(scope="module")
def learner():
    return clouds.learner()


@pytest.fixture(scope="module")
def scenarios():
    from jaxmerge.data.streams.scenario import class_incremental

    source = clouds.source()
    return [class_incremental(source, 3, order) for order in ((4, 1, 0, 5, 2, 3), range(6))]


@pytest.mark.parametrize("added", [(), (methods.si(),)], ids=["plain", "SI"])
def test_the_models_are_those_of_runs(learner, scenarios, added):
    plan = Plan("sequential", training=TRAINING, methods=added)
    assert resident.obstacle(plan, scenarios[0], learner) == ""
    trained = resident.train(plan, scenarios, learner, (3, 4))
    for scenario, seed, models_ in zip(scenarios, (3, 4), trained, strict=True):
        run = Stream(
            scenario, learner, training=clouds.TRAINING, methods=added, seed=seed, keep=True
        ).run()
        for task, model in zip(scenario, run.models, strict=True):
            for n, p in models_.get(task.name, model).items():
                np.testing.assert_allclose(p, model[n], rtol=1e-3, atol=1e-4, err_msg=n)


def test_seeds_whose_tasks_are_of_other_sizes(learner):
    """One class is large: a task has more steps in one order of the classes than in another."""
    from jaxmerge.data.streams.scenario import class_incremental

    source = clouds.source()
    rows = source.splits["train"]
    fewer = rows[(source.labels[rows] < 2) | (np.arange(len(rows)) % 2 == 0)]
    source = dataclasses.replace(source, splits={**source.splits, "train": fewer})
    unequal = [class_incremental(source, 3, order) for order in (range(6), (0, 4, 1, 5, 2, 3))]
    plan = Plan("sequential", training=TRAINING)
    steps = [resident.stream_of(s, learner, TRAINING, 0).rows.shape[1] for s in unequal]
    assert len(set(steps)) == 2
    for scenario, seed, own in zip(
        unequal, (3, 4), resident.train(plan, unequal, learner, (3, 4)), strict=True
    ):
        run = Stream(scenario, learner, training=clouds.TRAINING, seed=seed, keep=True).run()
        for task, model in zip(scenario, run.models, strict=True):
            for n, p in own.get(task.name, model).items():
                np.testing.assert_allclose(p, model[n], rtol=1e-3, atol=1e-4, err_msg=n)


def test_a_member_that_diverges_is_named_and_the_others_are_not(learner, scenarios):
    broken = learner._replace(prepare=lambda x: np.asarray(x) * np.float32(np.inf))
    plan = Plan("sequential", training=TRAINING)
    (one,) = resident.train(plan, scenarios[:1], broken, (0,))
    assert isinstance(one, FloatingPointError)
    assert "stream 'sequential': the loss is not finite in task 1" in str(one)


def test_what_is_in_the_way_is_said(learner, scenarios):
    why = lambda **plan: resident.obstacle(
        Plan("x", training=TRAINING, **plan), scenarios[0], learner
    )
    magmax = (Deploy("MagMax", jm.magmax), LAST)
    assert "start from a merge" in why(start=schedule.from_running, deploys=magmax)
    assert "needs the host" in why(methods=(methods.replay(2),))
    packed = learner._replace(collate=lambda x: x)
    assert "packed on the host" in resident.obstacle(Plan("x"), scenarios[0], packed)
    assert "there is room for" in resident.obstacle(Plan("x"), scenarios[0], learner, room=10)


TWO_DEVICES = """
import os, sys
sys.path.insert(0, {tests!r})
import clouds, jax, numpy as np
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.studies import resident
from jaxmerge.studies.seed import Plan

asked, whole = [], resident.over
def over(one, axes, streams, keys, *, sharded=False):
    asked.append((sharded, keys.shape))
    return whole(one, axes, streams, keys, sharded=sharded)
resident.over = over

source, learner = clouds.source(), clouds.learner()
orders = (4, 1, 0, 5, 2, 3), range(6), (5, 4, 3, 2, 1, 0)
scenarios = [class_incremental(source, 3, o) for o in orders]
plan = Plan("sequential", training=lambda task=None: clouds.TRAINING)
many = resident.train(plan, scenarios, learner, (3, 4, 5))
os.environ["JAXMERGE_DEVICES"] = "1"
alone = resident.train(plan, scenarios, learner, (3, 4, 5))
assert asked == [(2, (4,)), (False, (3,))], asked
for scenario, one, other in zip(scenarios, many, alone, strict=True):
    for task in scenario:
        for n, p in one.get(task.name, {{}}).items():
            np.testing.assert_allclose(p, other.get(task.name, {{}})[n], rtol=1e-5, atol=1e-6)
print(jax.device_count(), len(many))
"""


def test_two_devices_share_three_seeds_and_give_what_one_device_gives():
    """In a process of its own, for the number of devices is read once."""
    tests = Path(__file__).parent
    env = {k: v for k, v in os.environ.items() if k != "JAXMERGE_DEVICES"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES.format(tests=str(tests))], capture_output=True,
        text=True, env=env, cwd=tests.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["2", "3"]
