"""Strategies: every term against its formula, and what it does to a stream."""

import clouds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clouds import TRAINING, features

from jaxmerge.continual.distillation import feature, lwf
from jaxmerge.continual.loop import Deploy, Stream
from jaxmerge.continual.regularisers import ewc, importance, l2, mas
from jaxmerge.continual.strategies import STRATEGIES, strategy
from jaxmerge.continual.strategy import Strategy, View

LAST = (Deploy("last model"),)


def moved(params, seed=0):
    rng = np.random.default_rng(seed)
    return {
        n: p + rng.normal(scale=0.1, size=p.shape).astype(np.float32) for n, p in params.items()
    }


def view(learner, params, inputs, memory, own):
    found = features(params, inputs)
    logits = learner._replace(params=params).logits(params, inputs)
    return View(params, inputs, np.zeros(len(inputs), np.int32), found, logits, own, memory)


def run(scenario, learner, chosen, **options):
    options = {"training": TRAINING, "deploys": LAST, "seed": 7, "batch": 32, **options}
    return Stream(scenario, learner, strategy=chosen, **options)


@pytest.fixture(scope="module")
def source():
    return clouds.source()


@pytest.fixture(scope="module")
def learner():
    return clouds.learner()


@pytest.fixture(scope="module")
def scenario(source):
    return clouds.scenario(source)


@pytest.fixture(scope="module")
def inputs(source):
    return source.inputs[:20]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ------------------------------------------------------------ formulas


def test_l2_is_half_the_squared_distance(learner, inputs):
    term, params = l2(3.0), moved(learner.params)
    distance = sum(float(jnp.sum((params[n] - p) ** 2)) for n, p in learner.params.items())
    memory = term.start(learner)
    loss = term.loss(view(learner, params, inputs, memory, None), learner)
    assert float(loss) == pytest.approx(1.5 * distance, rel=1e-5)
    towards_last = l2(3.0, "last")
    memory = towards_last.start(learner)
    assert float(towards_last.loss(view(learner, params, inputs, memory, None), learner)) == 0
    memory = towards_last.end(memory, learner, params, None, None)
    assert float(towards_last.loss(view(learner, params, inputs, memory, None), learner)) == 0
    back = view(learner, learner.params, inputs, memory, None)
    assert float(towards_last.loss(back, learner)) == pytest.approx(1.5 * distance, rel=1e-5)


@pytest.mark.parametrize("kind", ["true", "predicted"])
def test_fisher_is_the_mean_square_of_the_gradients_of_log_probabilities(
    learner,
    inputs,
    kind,
):
    columns = np.array([1, 4, 5])
    found = importance(learner, learner.params, inputs, columns, kind, chunk=8)

    def log_probs(params, x):
        return jax.nn.log_softmax(learner.logits(params, x[None])[0, columns])

    expected = {n: np.zeros(p.shape) for n, p in learner.params.items()}
    for x in inputs:
        p = np.exp(log_probs(learner.params, x))
        rows = jax.jacobian(log_probs)(learner.params, x)
        weight = p if kind == "true" else np.eye(3)[p.argmax()]
        for n in expected:
            expected[n] += np.tensordot(weight, np.asarray(rows[n]) ** 2, 1) / len(inputs)
    for n in expected:
        np.testing.assert_allclose(found[n], expected[n], rtol=2e-3, atol=1e-6, err_msg=n)


def test_released_fisher_squares_the_running_sum_of_batch_gradients(learner, inputs):
    columns = np.array([0, 2])
    found = importance(learner, learner.params, inputs, columns, "released", chunk=8)

    def mean_log_prob(params, x):
        return jax.nn.log_softmax(learner.logits(params, x)[:, columns]).max(1).mean()

    running = {n: np.zeros(p.shape) for n, p in learner.params.items()}
    expected = {n: np.zeros(p.shape) for n, p in learner.params.items()}
    for part in (inputs[:8], inputs[8:16], inputs[16:]):
        gradient = jax.grad(mean_log_prob)(learner.params, part)
        for n in expected:
            running[n] += np.asarray(gradient[n])
            expected[n] += running[n] ** 2 / 3
    for n in expected:
        np.testing.assert_allclose(found[n], expected[n], rtol=2e-3, atol=1e-7, err_msg=n)


def test_mas_is_the_mean_size_of_the_gradient_of_the_squared_logits(learner, inputs):
    found = importance(learner, learner.params, inputs, np.array([0]), "mas", chunk=8)
    square = lambda params, x: jnp.sum(learner.logits(params, x[None]) ** 2)
    expected = {n: np.zeros(p.shape) for n, p in learner.params.items()}
    for x in inputs:
        gradient = jax.grad(square)(learner.params, x)
        for n in expected:
            expected[n] += np.abs(np.asarray(gradient[n])) / len(inputs)
    for n in expected:
        np.testing.assert_allclose(found[n], expected[n], rtol=2e-3, atol=1e-5, err_msg=n)


def test_ewc_weighs_the_distance_by_the_fisher_and_averages_it(
    learner,
    scenario,
    source,
    inputs,
):
    term, params = ewc(10.0, "true", decay=0.5), moved(learner.params)
    memory = term.start(learner)
    assert float(term.loss(view(learner, params, inputs, memory, None), learner)) == 0
    memory = term.end(memory, learner, params, scenario[0], (inputs, None))
    new = importance(learner, params, inputs, scenario[0].columns, "true")
    further = moved(params, 1)
    expected = sum(
        10.0 / 2 * float(jnp.sum(0.5 * new[n] * (further[n] - params[n]) ** 2)) for n in params
    )
    loss = term.loss(view(learner, further, inputs, memory, None), learner)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_lwf_is_the_cross_entropy_of_softened_old_columns(learner, scenario, inputs):
    term, params = lwf(0.3, temperature=2.0), moved(learner.params)
    memory = term.end(term.start(learner), learner, learner.params, scenario[0], None)
    memory = term.end(memory, learner, learner.params, scenario[2], None)
    old = np.sort(np.concatenate([scenario[0].columns, scenario[2].columns]))
    p = softmax(np.asarray(learner.logits(learner.params, inputs))[:, old] / 2)
    q = softmax(np.asarray(learner.logits(params, inputs))[:, old] / 2)
    expected = 0.3 * np.mean(-np.sum(p * np.log(q), axis=1))
    loss = term.loss(view(learner, params, inputs, memory, None), learner)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_feature_distillation_is_the_squared_distance_of_unit_features(
    learner,
    scenario,
    inputs,
):
    term, params = feature(2.0), moved(learner.params)
    memory = term.end(term.start(learner), learner, learner.params, scenario[0], None)
    unit = lambda p: features(p, inputs) / np.linalg.norm(features(p, inputs), axis=1)[:, None]
    expected = 2 * np.mean(np.sum((unit(params) - unit(learner.params)) ** 2, axis=1))
    loss = term.loss(view(learner, params, inputs, memory, None), learner)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("term", [lwf(), feature(), ewc(1.0), mas(1.0), l2(1.0, "last")])
def test_before_the_first_task_there_is_nothing_to_keep(term, learner, inputs):
    memory = term.start(learner)
    loss = lambda p: term.loss(view(learner, p, inputs, memory, None), learner)
    value, gradient = jax.value_and_grad(loss)(moved(learner.params))
    assert float(value) == 0
    for n, g in gradient.items():
        np.testing.assert_array_equal(g, 0, err_msg=n)


# ------------------------------------------------------------ on a stream


def test_the_first_task_is_plain_fine_tuning(scenario, learner):
    plain = run(scenario, learner, Strategy())
    plain.learn(0)
    other = run(scenario, learner, strategy("lwf"))
    other.learn(0)
    for n in plain.last:
        np.testing.assert_allclose(other.last[n], plain.last[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "chosen",
    [
        strategy("l2", strength=1.0),
        strategy("l2", strength=3.0, anchor="last"),
        strategy("ewc", strength=300.0, decay=None),
        strategy("mas", strength=1.0),
        strategy("feature", strength=30.0),
    ],
    ids=lambda s: s.name,
)
def test_strong_terms_keep_the_model_nearer_than_fine_tuning(scenario, learner, chosen):
    free = run(scenario, learner, Strategy(), keep=True).run()
    held = run(scenario, learner, chosen, keep=True).run()
    far = lambda s: sum(float(np.sum((s.models[-1][n] - s.models[0][n]) ** 2)) for n in s.models[0])
    assert far(held) < 0.5 * far(free)


def test_replay_keeps_earlier_tasks_known(scenario, learner):
    free = run(scenario, learner, Strategy()).run()
    kept = run(scenario, learner, strategy("replay", per_class=6)).run()
    early = lambda s: np.mean(s.outcomes["last model"].matrix[-1][:2])
    assert early(kept) > early(free) + 0.1
    _, columns, own = kept._examples(2)
    fresh = len(scenario[2].rows["train"])
    assert len(columns) == fresh + 6 * 4
    assert set(columns[fresh:].tolist()) == {*scenario[0].classes, *scenario[1].classes}
    assert own.all()


@pytest.mark.parametrize("name", ["ewc", "lwf"])
def test_memory_survives_a_kill(scenario, learner, tmp_path, name):
    whole = run(scenario, learner, strategy(name)).run()
    run(scenario, learner, strategy(name), store=tmp_path).learn(0)
    again = run(scenario, learner, strategy(name), store=tmp_path).run()
    for n in whole.last:
        np.testing.assert_array_equal(again.last[n], whole.last[n], err_msg=n)


def test_names_and_wrong_arguments():
    assert {s().name for k, s in STRATEGIES.items()} == set(STRATEGIES)
    with pytest.raises(ValueError, match="anchor must be"):
        l2(1.0, "nowhere")
    with pytest.raises(ValueError, match="kind must be"):
        ewc(1.0, "wrong")
    for name, settings, message in (
        ("ewc", {"strength": -1, "decay": 3}, "strength .* got -1; decay .* got 3"),
        ("ewc", {"strength": "big"}, "a number from 0 on, got 'big'"),
        ("lwf", {"temperature": 0}, "temperature of lwf is a positive number, got 0"),
        ("replay", {"per_class": 1.5}, "a whole number from 1 on, got 1.5"),
        ("l2", {"kind": "true"}, "l2 has no setting 'kind': expected one of anchor, strength"),
        (["l2"], {}, "No strategy is named"),
    ):
        with pytest.raises(ValueError, match=message):
            strategy(name, **settings)
