"""Any registered model in the loop: trained heads, problems, methods that read the model."""

import dataclasses

import clouds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_streams

import jaxmerge as jm
from jaxmerge.continual import methods, optimisers
from jaxmerge.continual.deploys import LAST, Deploy
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models, problems
from jaxmerge.continual.stream_records import Problem
from jaxmerge.data.sources import Source
from jaxmerge.data.splits import stratified
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.evaluation.predict import evaluators_of, probe
from jaxmerge.models.mlp.learner import mlp
from jaxmerge.studies import resident
from jaxmerge.studies.loop import Stream
from jaxmerge.studies.seed import Plan
from jaxmerge.training.how import Training
from jaxmerge.training.model_learner import from_model

HOW = Training(epochs=1, batch=8, chunk=3, optimiser=optimisers.sgd(0.05, momentum=0.9))


@models.register
def normed(classes: int = 6, merged: bool = True) -> Model:
    """One layer over inputs that are normalised by running means, which each step rewrites."""

    def apply(params, x, task):
        features = x - params["mean"][None]
        logits = features @ params["head/kernel"]
        return Outputs(logits, features, {"image": features, "text": features})

    def train(params, x, task, key):
        out = apply(params, x, task)
        new = 0.9 * params["mean"] + 0.1 * jnp.mean(x, 0)
        return out._replace(aux={**out.aux, "statistics": {"mean": new}})

    statistic = lambda name: name == "mean"
    init = lambda key: {
        "mean": jnp.zeros(clouds.WIDTH),
        "head/kernel": jax.random.normal(key, (clouds.WIDTH, classes)) / 4,
    }
    own = lambda params, task: {n: p for n, p in params.items() if merged or not statistic(n)}
    return Model(
        init, apply, train=train, trainable=lambda n: not statistic(n), statistics=statistic,
        weights=own,
    )  # fmt: skip


@problems.register
def mirrored() -> Problem:
    """Task 1 sees its inputs with the other sign."""
    plain = classification("own").build()

    def view(stored, info, task, key):
        return jnp.where((task == 1)[:, None], -stored, stored)

    return plain._replace(view=view)


@pytest.fixture(scope="module")
def scenario():
    return clouds.scenario(clouds.source())


@pytest.fixture(scope="module")
def learner(scenario):
    return from_model({"mlp": {"inputs": 12, "hidden": [8], "classes": 6}}, scenario, seed=5)


def test_theta_0_is_what_the_model_draws_from_the_seed(scenario, learner):
    own = mlp(12, (8,), 6).build().init(jax.random.key(5))
    assert all((learner.params[n] == own[n]).all() for n in own)
    other = from_model(mlp(12, (8,), 6), scenario)
    assert not (other.params["head/kernel"] == own["head/kernel"]).any()
    x = jnp.ones((2, 12))
    assert learner.features(own, x).shape == (2, 8)
    assert learner.model("bfloat16") == mlp(12, (8,), 6, dtype="bfloat16")


@pytest.mark.parametrize(
    ("network", "what"),
    [
        ({"mlp": {"inputs": 12}}, "logits [2, 10] of 2 examples; the scenario has 6 classes"),
        ({"mlp": {"inputs": 13, "classes": 6}}, "does not read the prepared examples of 'clouds'"),
        ("mpl", "No model is named 'mpl': did you mean mlp"),
        ({"mlp": {"hiden": [3]}}, "mlp has no setting 'hiden': did you mean hidden"),
        ({"mlp": 3}, "the settings of mlp are key: value pairs, got 3"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(scenario, network, what):
    with pytest.raises(ValueError) as error:
        from_model(network, scenario)
    assert what in str(error.value)


def test_another_stream_and_another_precision_are_refused(scenario, learner):
    renamed = class_incremental(dataclasses.replace(clouds.source(), classes=tuple("abcdef")), 3)
    with pytest.raises(ValueError, match="column 0 of its head"):
        learner.check(renamed)
    with pytest.raises(ValueError, match="has no bfloat16 form"):
        from_model(normed(), scenario).model("bfloat16")


def test_a_kill_within_a_task_and_between_tasks_changes_nothing(scenario, tmp_path):
    """The running statistics, the moments of SGD and a merge are part of what goes on."""
    learner = from_model(normed(), scenario)
    make = lambda **options: Stream(
        scenario, learner, training=HOW, methods=["er"], deploys=["last model", "magmax"], **options
    )
    whole = make().run()
    steps = []

    def watch(phase, many, loss):
        steps.append(many if phase == "training" else 0)
        if sum(steps) > 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(store=tmp_path, every=0, watch=watch).run()
    again = make(store=tmp_path, every=0)
    assert again.done == 1
    again.run()
    for n, p in whole.last.items():
        np.testing.assert_array_equal(p, again.last[n], err_msg=n)
    assert whole.outcomes == again.outcomes
    assert np.abs(np.asarray(whole.last["mean"])).max() > 0.1


def test_seeds_as_one_program_are_those_of_runs_whatever_hooks_do_at_borders(scenario, learner):
    """Alignment at the end of a task moves the head; a model that is given back is not aligned
    again."""
    added = (methods.slca(slow=0.5, per_class=4, epochs=1),)
    plan = Plan("slca", training=lambda task=None: HOW, methods=added)
    assert resident.obstacle(plan, scenario, learner) == ""
    (one,) = resident.train(plan, [scenario], learner, (3,))
    given = Stream(scenario, learner, training=HOW, methods=added, seed=3)
    for t in given.tasks_left():
        given.learn(t, known=one.get(scenario[t].name, learner.params), whole=one.whole)
    for n, p in one.get(scenario[2].name, {}).items():
        np.testing.assert_array_equal(p, given.last[n])


def test_leaves_that_merges_do_not_see_keep_a_stream_out_of_one_program(scenario):
    plan = Plan("x", training=lambda task=None: HOW)
    why = lambda network: resident.obstacle(plan, scenario, from_model(network, scenario))
    assert why(normed()) == ""
    assert "leaves that merges do not see" in why(normed(merged=False))


def small(method):
    """The methods that ask for a head's own leaves or towers, in a small size."""
    return {
        "slca": lambda: methods.slca(per_class=4, epochs=1),
        "onpro": lambda: methods.onpro(size=16, projection=3, rotations=False),
        "ctp": lambda: methods.ctp(queue=8),
        "prd": lambda: methods.prd(projection=4),
        "gpm": methods.gpm,
    }[method]()


@pytest.mark.parametrize("method", ["slca", "ctp", "prd", "gpm"])
def test_methods_that_read_the_model_itself_run_in_the_loop(scenario, method):
    learner = from_model(tiny_streams.tiny(12, 8, 6), scenario)
    stream = Stream(scenario, learner, training=HOW, methods=[small(method)])
    stream.learn(0)
    stream.learn(1)
    assert np.isfinite(stream.losses[1]).all()


@pytest.mark.slow  # compiles long
def test_onpro_runs_in_the_loop(scenario):
    learner = from_model(tiny_streams.tiny(12, 8, 6), scenario)
    stream = Stream(scenario, learner, training=HOW, methods=[small("onpro")]).run()
    assert np.isfinite(stream.losses[2]).all()


def answers(stream, params, scenario, t):
    """(logits, columns) of the test examples of a task."""
    task = scenario[t]
    rows = task.rows["test"]
    return (
        np.asarray(stream.learner.logits(params, task.source.inputs[rows])),
        task.offset + task.source.labels[rows],
    )


@pytest.mark.parametrize("columns", ["own", "all", "seen"])
def test_r_is_accuracy_whatever_columns_compete_in_training(scenario, learner, columns):
    problem = {"classification": {"columns": columns}}
    stream = Stream(scenario, learner, training=HOW, problem=problem)
    stream.learn(0)
    stream.learn(1)
    for t in range(3):
        logits, right = answers(stream, stream.last, scenario, t)
        own = np.where(scenario.mask(t), logits, -np.inf)
        outcome = stream.outcomes["last model"]
        assert outcome.matrix[1][t] == pytest.approx((logits.argmax(-1) == right).mean())
        assert outcome.aware[1][t] == pytest.approx((own.argmax(-1) == right).mean())
    assert np.isfinite(stream.losses[1]).all()


def test_another_metric_takes_the_place_of_accuracy(scenario, learner):
    """`met`: among the columns of the tasks so far, so that after one task two compete."""
    problem = classification("seen", metrics=("met", "aware"))
    stream = Stream(scenario, learner, training=HOW, problem=problem)
    stream.learn(0)
    logits, right = answers(stream, stream.last, scenario, 0)
    among = np.where(scenario.mask(0), logits, -np.inf)
    expected = (among.argmax(-1) == right).mean()
    assert stream.outcomes["last model"].matrix[0][0] == pytest.approx(expected)
    assert stream.outcomes["last model"].matrix[0][1] == 0  # its columns are not met


@pytest.mark.parametrize("problem", ["next_token", "pairs"])
def test_a_problem_whose_figures_are_no_shares_of_right_answers_is_refused(problem):
    with pytest.raises(ValueError, match="measures shares of right answers from logits"):
        evaluators_of(problems.from_settings(problem).build(), 6)


def test_a_view_is_that_of_each_example_s_task_in_training_and_in_tests(scenario, learner):
    """Stored inputs that the view mirrors once more are learnt as those that are not mirrored."""
    source = scenario[0].source
    plain = Stream(scenario, learner, training=HOW).run()
    sign = np.where(np.isin(source.labels, scenario[1].columns), -1, 1)[:, None].astype(np.float32)
    mirror = dataclasses.replace(source, inputs=source.inputs * sign)
    turned = class_incremental(mirror, 3, (4, 1, 0, 5, 2, 3))
    viewed = Stream(turned, learner, training=HOW, problem="mirrored", batch=7).run()
    assert plain.losses == viewed.losses
    assert plain.outcomes["last model"].matrix == viewed.outcomes["last model"].matrix
    assert plain.outcomes["last model"].aware == viewed.outcomes["last model"].aware


@pytest.mark.slow  # compiles long
def test_a_resnet_learns_images():
    """Batch norms move within a task, and are merged."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4, dtype=np.int32), 10)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    splits = stratified(labels, {"val": 2, "test": 2})
    source = Source("noise", images, labels, tuple("abcd"), ("{}",), splits)
    scenario = class_incremental(source, 2)
    network = {"resnet18": {"classes": 4, "width": 2, "blocks": [1, 1]}}
    learner = from_model(network, scenario)
    how = Training(epochs=1, batch=6, chunk=2, optimiser="sgd")
    stream = Stream(
        scenario, learner, training=how, deploys=[Deploy("average", jm.average)], keep=True
    )
    stream.learn(0)
    moved = [n for n in learner.params if "mean" in n or "var" in n]
    assert moved
    assert all(not np.array_equal(stream.last[n], learner.params[n]) for n in moved)
    stream.learn(1)
    mean = np.mean([m[moved[0]] for m in stream.models], axis=0)
    np.testing.assert_allclose(stream.deployed["average"][moved[0]], mean, rtol=1e-5, atol=1e-6)


def test_probe_asks_the_learner_for_its_columns(scenario, learner):
    with pytest.raises(ValueError, match="has 5 columns, the scenario 6 classes"):
        probe(learner._replace(columns=5), scenario, "test")


def test_deployments_are_merges_of_the_trained_head_too(scenario, learner):
    options = {"deploys": [LAST, Deploy("average", jm.average)], "start": "base", "keep": True}
    stream = Stream(scenario, learner, training=HOW, **options).run()
    mean = np.mean([m["head/kernel"] for m in stream.models], axis=0)
    merged = stream.deployed["average"]["head/kernel"]
    np.testing.assert_allclose(merged, mean, rtol=1e-5, atol=1e-6)
