"""Methods on the loop that reads its examples from the host: what they do to a stream."""

import clouds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clouds import TRAINING

import jaxmerge as jm
from jaxmerge.continual import methods
from jaxmerge.continual.records import Batch, Border, Method
from jaxmerge.continual.registry import methods as registry
from jaxmerge.studies.loop import Deploy, Stream
from jaxmerge.studies.settings import methods_of

LAST = (Deploy("last model"),)


def run(scenario, learner, *chosen, **options):
    options = {"training": TRAINING, "deploys": LAST, "seed": 7, "batch": 32, **options}
    return Stream(scenario, learner, methods=chosen, **options)


@pytest.fixture(scope="module")
def learner():
    return clouds.learner()


@pytest.fixture(scope="module")
def scenario():
    return clouds.scenario(clouds.source())


def test_the_release_of_magmax_squares_the_running_sum_of_batch_gradients(learner):
    inputs, columns = clouds.source().inputs[:20], np.array([0, 2])
    spec = methods.ewc_magmax(strength=10.0)
    model, method = learner.model(params=True).build(), spec.build()

    def objective(out, batch):
        logits = jnp.where(jnp.isin(jnp.arange(6), columns)[None], out.logits, -jnp.inf)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[:, None], 1)[:, 0]

    data = Batch(inputs, np.zeros(20, np.int32), np.zeros(20, np.int32), np.ones(20, np.float32))
    read = lambda count: jax.tree.map(lambda x: x[:count], data)
    params = dict(learner.params)
    border = Border(0, params, None, jax.random.key(0), read, objective)
    memory = method.init(model, params, data, inputs)
    _, memory = method.end(model, params, memory, border)

    def mean_log_prob(params, x):
        return jax.nn.log_softmax(learner.logits(params, x)[:, columns]).max(1).mean()

    running = {n: np.zeros(p.shape) for n, p in params.items()}
    expected = {n: np.zeros(p.shape) for n, p in params.items()}
    for part in (inputs[:8], inputs[8:16], inputs[16:]):
        gradient = jax.grad(mean_log_prob)(params, part)
        for n in expected:
            running[n] += np.asarray(gradient[n])
            expected[n] += 0.5 * running[n] ** 2 / 3  # decay 0.5, from zero
    for n in expected:
        actual = memory["importance"][n]
        np.testing.assert_allclose(actual, expected[n], rtol=2e-3, atol=1e-7, err_msg=n)


def test_the_first_task_is_plain_fine_tuning(scenario, learner):
    plain, other = run(scenario, learner), run(scenario, learner, methods.lwf())
    plain.learn(0)
    other.learn(0)
    for n in plain.last:
        np.testing.assert_allclose(other.last[n], plain.last[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "chosen",
    [
        methods.l2(0.5, towards="base"),
        methods.ewc(150.0, "expected", slots="sum"),
        methods.ewc_magmax(strength=3e3, labels="sampled", running=False),
        methods.feat_kd(30.0, unit=True, first=False),
    ],
    ids=repr,
)
def test_strong_methods_keep_the_model_nearer_than_fine_tuning(scenario, learner, chosen):
    free = run(scenario, learner, keep=True).run()
    constrained = run(scenario, learner, chosen, keep=True).run()
    far = lambda s: sum(float(np.sum((s.models[-1][n] - s.models[0][n]) ** 2)) for n in s.models[0])
    assert far(constrained) < 0.5 * far(free)


def test_replay_keeps_earlier_tasks_known(scenario, learner):
    free = run(scenario, learner).run()
    replayed = run(scenario, learner, methods.replay(6)).run()
    early = lambda s: np.mean(s.outcomes["last model"].matrix[-1][:2])
    assert early(replayed) > early(free) + 0.1
    data, fresh = replayed._examples(2), len(scenario[2].rows["train"])
    assert len(data.columns) == fresh + 6 * 4
    assert set(data.columns[fresh:].tolist()) == {*scenario[0].classes, *scenario[1].classes}
    assert set(data.task.tolist()) == {0, 1, 2}


def test_a_buffer_is_filled_from_host_fed_batches(scenario, learner):
    free = run(scenario, learner).run()
    replayed = run(scenario, learner, methods.er(size=40)).run()
    early = lambda s: np.mean(s.outcomes["last model"].matrix[-1][:2])
    assert int(replayed.memory[0]["met"]) > 40
    assert early(replayed) >= early(free)


@pytest.mark.parametrize("name", ["ewc", "er"])
def test_memory_survives_a_kill(scenario, learner, tmp_path, name):
    chosen = registry.get(name)()
    whole = run(scenario, learner, chosen).run()
    run(scenario, learner, registry.get(name)(), store=tmp_path).learn(0)
    again = run(scenario, learner, registry.get(name)(), store=tmp_path).run()
    for n in whole.last:
        np.testing.assert_array_equal(again.last[n], whole.last[n], err_msg=n)


@registry.register
def counts_ends():
    return Method(
        init=lambda model, params, batch, stored: jnp.int32(0),
        end=lambda model, params, memory, border: (params, memory + 1),
    )


def test_a_model_at_hand_passes_the_hooks_at_the_end(scenario, learner):
    stream = run(scenario, learner, counts_ends())
    stream.learn(0, known=learner.params)
    stream.learn(1)
    assert int(stream.memory[0]) == 2


@registry.register
def shift_per_task():
    """A module per task: a shift of the features, in a slot."""

    def wrap(model, tasks):
        def apply(params, x, task):
            out = model.apply({n: p for n, p in params.items() if n != "shift"}, x, task)
            return model.from_features(params, out.features + params["shift"][task][None], task)

        return model._replace(
            init=lambda key: {**model.init(key), "shift": jnp.zeros((tasks, 8))},
            apply=apply,
            predict=lambda params, x, seen: apply(params, x, seen),
            trainable=lambda n: n == "shift",
            slots=lambda n: n == "shift",
            weights=lambda params, task: {n: p for n, p in params.items() if n != "shift"},
        )

    return Method(wrap=wrap)


def test_a_module_per_task_on_the_loop(scenario, learner):
    stream = run(scenario, learner, shift_per_task(), deploys=(*LAST, Deploy("MagMax", jm.magmax)))
    stream.run()
    actual = np.array(stream.outcomes["last model"].aware)
    assert (actual[2, :2] == [actual[0, 0], actual[1, 1]]).all()  # earlier slots do not move
    assert (np.asarray(stream.last["shift"]) != 0).any(axis=1).all()
    np.testing.assert_array_equal(stream.deployed["MagMax"]["a/bias"], learner.params["a/bias"])


def test_a_deployment_without_a_factor_has_its_methods_own():
    assert repr(Deploy("MagMax", jm.magmax).merge()) == repr(jm.magmax())


def test_methods_from_settings():
    assert methods_of({}) == ()
    asked = ["si", {"method": "er", "size": 5}], {"si": {}, "er": {"size": 5}}
    for one in asked:
        assert methods_of({"methods": one}) == (methods.si(), methods.er(5))
    with (
        pytest.warns(FutureWarning, match="strategy and settings of a stream are now methods"),
        pytest.warns(FutureWarning, match="feature is now feat_kd"),
    ):
        actual = methods_of({"strategy": "feature", "settings": {"strength": 2}})
    assert actual == (methods.feat_kd(2.0),)
    for settings, message in (
        ({"methods": [{"method": "ewc", "strength": -1, "batch": 0}]}, "strength .* got -1.*batch"),
        ({"methods": [{"method": "ewc", "strength": "big"}]}, "a number from 0 on, got 'big'"),
        ({"methods": [{"method": "lwf", "temperature": 0}]}, "lwf: temperature must be a positive"),
        (
            {"methods": [{"method": "replay", "per_class": 1.5}]},
            "a whole number from 1 on, got 1.5",
        ),
        ({"methods": ["lfw"]}, "No method is named 'lfw': did you mean lwf"),
        ({"methods": [["l2"]]}, "No method is named"),
        ({"methods": 3}, "methods are names with their settings"),
        ({"methods": {"si": 3}}, "the settings of si are key: value pairs, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            methods_of(settings)
