"""Seeds of a stream trained as one program, as `jaxmerge sweep` does where they fit."""

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
