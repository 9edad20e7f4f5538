"""The mechanism of continual learning: drivers, composition, bad input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_streams import KEY, blobs, setup, split, tiny

import jaxmerge as jm
from jaxmerge.continual import buffers
from jaxmerge.continual.drivers import program, run
from jaxmerge.continual.methods import l2, lora, osft, supsup, trgp
from jaxmerge.continual.optimisers import by_name, cosine, sgd
from jaxmerge.continual.records import LAST, Method
from jaxmerge.continual.registry import Count, NonNegative, methods
from jaxmerge.continual.seeds import alike, over, stacked
from jaxmerge.continual.streams import split as dealt
from jaxmerge.core.specs import Static


@methods.register
def plain_replay(size: Count = 20, strength: NonNegative = 1.0):
    def loss(model, step):
        one, two, three = jax.random.split(step.key, 3)
        batch, weight = buffers.draw(step.memory, one, 5)
        inputs = step.view(batch.inputs, batch.task, two)
        out = model.learn(step.params, inputs, step.task, three)
        return strength * jnp.mean(weight * step.objective(out, batch._replace(inputs=inputs)))

    def observe(model, step):
        rows = step.batch._replace(inputs=step.stored)
        return buffers.reservoir(step.memory, rows, rows.weight, step.key)

    def init(model, params, batch, stored):
        return buffers.empty(size, batch._replace(inputs=stored))

    return Method(
        init=init,
        loss=loss,
        observe=observe,
    )


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def figures(result):
    return result.R, result.losses, result.state.params, result.state.memory


@pytest.mark.parametrize("accumulate", [1, 5])
def test_a_program_is_a_run(accumulate):
    config = setup(
        plain_replay(), merges={"MagMax": jm.magmax(0.5)}, start="MagMax", accumulate=accumulate
    )
    same(figures(jax.jit(program)(config, split(), KEY)), figures(run(config, split(), KEY)))


def test_specs_are_compared_printed_and_read_from_settings():
    assert plain_replay(strength=3) == plain_replay(20, 3.0)
    assert plain_replay(strength=3) != plain_replay(strength=4)
    assert repr(plain_replay(strength=3)) == "plain_replay(strength=3.0)"
    actual = methods.from_settings({"method": "plain_replay", "size": 5})
    assert actual == plain_replay(5)
    with pytest.raises(
        ValueError, match=r"plain_replay: size must be a whole number from 1 on.*strength"
    ):
        plain_replay(0, -1.0)
    with pytest.raises(ValueError, match="did you mean plain_replay"):
        methods.from_settings("plain_reply")


def test_scoring_at_any_time_and_now_and_then():
    config = setup(optimiser=by_name((("head/.*", sgd(0.1)), (".*", cosine(0.01)))))
    parts = jax.jit(lambda *x: program(*x, anytime=3, score_every=2))  # of 8 steps: 3, 3 and 2
    actual = parts(config, split(), KEY)
    R = actual.R[LAST]["accuracy"]
    assert R.shape == (3, 3, 3)
    assert actual.losses.shape == (3, 8)
    assert (actual.losses != 0).all()
    assert np.isnan(R[0]).all()
    assert np.isfinite(R[1:]).all()
    assert actual.finite.all()


@pytest.mark.parametrize("order", [[[0, 1], [2, 3], [4, 5]], [[0, 1, 2, 3], [4], [5]]])
def test_the_last_mark_of_a_task_is_taken_when_it_has_ended_and_is_folded(order):
    config = setup(merges={"mean": jm.mean(), "EMA": jm.ema(0.3)})
    stream = dealt(blobs(), blobs(seed=1), order, batch=3)
    whole = jax.jit(program)(config, stream, KEY)
    parts = jax.jit(lambda *x: program(*x, anytime=4))(config, stream, KEY)
    steps = np.asarray(stream.weight).any(-1).sum(-1)
    size = -(-stream.rows.shape[1] // 4)
    for label, figures in whole.R.items():
        marks, expected = parts.R[label]["accuracy"], figures["accuracy"]
        for t, used in enumerate(steps):
            last = -(-used // size) - 1  # later ones are of a task that is over
            for mark in marks[t, last:]:
                np.testing.assert_allclose(mark, expected[t], atol=1e-6, err_msg=label)
            if label != LAST and t and last:  # within a task merges are those of the tasks before
                np.testing.assert_allclose(marks[t, 0], expected[t - 1], atol=1e-6)
                assert not np.allclose(marks[t, 0], expected[t])


@pytest.mark.parametrize("sharded", [False, True])
def test_seeds_in_one_program_are_the_runs_of_each(sharded):
    data = blobs()
    streams = [split(seed=k, data=data) for k in range(8)]
    keys = jax.random.split(KEY, 8)
    one = lambda stream, key: program(setup(), stream, key).R[LAST]["accuracy"]
    many, axes = stacked(streams)
    actual = jax.jit(lambda s, k: over(one, axes, s, k, sharded=sharded))(many, keys)
    np.testing.assert_allclose(actual[3], jax.jit(one)(streams[3], keys[3]), atol=1e-6)


def test_streams_of_several_seeds_have_one_form():
    data = blobs()
    one, other = (
        dealt(data, data, order, batch=7, seed=seed)
        for seed, order in enumerate(([[0, 1, 2], [3, 4, 5]], [[5], [0, 1, 2, 3, 4]]))
    )
    filled = alike([one, other], every=3)
    assert len({str(jax.tree.map(np.shape, s)) for s in filled}) == 1
    assert filled[0].rows.shape == (2, 15, 7)
    for before, after in zip((one, other), filled, strict=True):
        for t in range(2):
            steps = before.rows.shape[1]
            assert (after.rows[t, :steps] == before.rows[t]).all()
            assert (after.weight[t, :steps] == before.weight[t]).all()
            assert not after.weight[t, steps:].any()
            drawn = lambda x, t=t: x[t][x[t] >= 0].tolist()
            assert drawn(after.sample) == drawn(before.sample)
        assert after.groups.weight.sum() == before.groups.weight.sum()


def test_divergence_is_reported():
    actual = jax.jit(program)(setup(optimiser=sgd(1e9)), split(), KEY)
    assert not actual.finite.all()


def test_a_reservoir_gives_a_place_to_the_later_of_two():
    buffer = buffers.empty(2, {"x": jnp.zeros((1,))})
    rows, weight = {"x": jnp.arange(1.0, 5.0)}, jnp.array([1.0, 1, 0, 1])
    actual = buffers.write(buffer, rows, jnp.array([0, 0, 0, 1]), weight)
    assert actual["rows"]["x"].tolist() == [2, 4]
    assert int(actual["met"]) == 3


def test_a_reservoir_holds_every_example_as_often():
    def stay(key):
        buffer = buffers.empty(5, jnp.zeros((1,), jnp.int32))
        step = lambda b, x: (buffers.reservoir(b, x[0], jnp.ones(4), x[1]), None)
        rows = jnp.arange(20).reshape(5, 4)
        buffer, _ = jax.lax.scan(step, buffer, (rows, jax.random.split(key, 5)))
        return jnp.bincount(buffer["rows"], length=20)

    counts = jax.jit(jax.vmap(stay))(jax.random.split(KEY, 4000)).mean(0)
    np.testing.assert_allclose(counts, 0.25, atol=0.03)


# ------------------------------------------------------------------ bad input


def hook(**fields):
    def bad():
        return Method(**fields)

    return methods.record(bad)()


zero = lambda out, batch, info, task: jnp.zeros(batch.weight.shape)
GROW = {
    "init": lambda model, params, batch, stored: jnp.zeros(2),
    "observe": lambda model, step: jnp.zeros(3),
}


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        (lambda: setup(*[hook(objective=zero)] * 2), {}, "both replace the objective"),
        (lambda: setup(hook(**GROW)), {}, r"`observe` changes the form of its memory.*2.*3"),
        (lambda: setup(hook(host=True, end=lambda m, p, x, b: (p, x))), {}, "needs the host"),
        (lambda: setup(start="Magmax", merges={"MagMax": jm.magmax()}), {}, "did you mean MagMax"),
        (lambda: setup(merges={"SLERP": jm.slerp(0.5)}), {}, "this stream has 3 tasks"),
        (setup, {"promise": Static("once")}, "at most once"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_compiled(config, change, words):
    with pytest.raises(ValueError, match=words):
        program(config(), split(steps=9)._replace(**change), KEY)


def test_groups_must_have_an_evaluator_and_an_example():
    stream = split()
    none = stream.groups._replace(metrics=np.zeros((3, 2), bool))
    with pytest.raises(ValueError, match="group 0 chooses none of the evaluators accuracy, aware"):
        run(setup(), stream._replace(groups=none), KEY)
    empty = stream.groups._replace(weight=stream.groups.weight * np.float32([[1], [0], [1]]))
    with pytest.raises(ValueError, match="group 1 has no example"):
        run(setup(), stream._replace(groups=empty), KEY)
    groups = stream.groups._replace(metrics=np.array([[1, 0], [1, 1], [0, 1]], bool))
    actual = run(setup(), stream._replace(groups=groups), KEY).R[LAST]
    assert np.isnan(actual["aware"][:, 0]).all()
    assert np.isnan(actual["accuracy"][:, 2]).all()
    assert np.isfinite(actual["aware"][:, 1:]).all()


def test_slots_must_suffice():
    def wrap(model, tasks):
        init = lambda key: {**model.init(key), "extra": jnp.zeros((2, 3))}
        return model._replace(init=init, slots=lambda n: n == "extra")

    with pytest.raises(ValueError, match="3 tasks, but extra has 2 slots"):
        program(setup(hook(wrap=wrap)), split(), KEY)


def test_a_model_may_choose_the_slot_that_a_task_trains():
    """Growth by novelty: `begin` writes which slot a task trains, here the first for all."""

    def wrap(model, tasks):
        def init(key):
            table = jnp.full(tasks, 99)
            return {**model.init(key), "shift": jnp.zeros((tasks, 6)), "table": table}

        def apply(params, x, task):
            out = model.apply(params, x, task)
            return out._replace(logits=out.logits + params["shift"][params["table"][task]][None])

        return model._replace(
            init=init,
            apply=apply,
            trainable=lambda n: n == "shift",
            slots=lambda n: n == "shift",
            slot=lambda params, task: params["table"][task],
            weights=lambda params, task: model.weights(
                {n: p for n, p in params.items() if n not in ("shift", "table")}, task
            ),
        )

    def begin(model, params, memory, border):
        return {**params, "table": params["table"].at[border.index].set(0)}, memory

    config = setup(hook(wrap=wrap, begin=begin), merges={"mean": jm.mean()})
    params = jax.jit(program)(config, split(), KEY).state.params
    assert (params["shift"][0] != 0).any()
    assert (params["shift"][1:] == 0).all()
    assert params["table"].tolist() == [0, 0, 0]


def test_statistics_are_written_by_the_steps():
    def wrap(model, tasks):
        def train(params, x, task, key):
            out = model.apply(params, x, task)
            return out._replace(
                aux={"statistics": {"mean": 0.9 * params["mean"] + 0.1 * x.mean(0)}}
            )

        return model._replace(
            init=lambda key: {**model.init(key), "mean": jnp.zeros(6)},
            train=train,
            trainable=lambda n: n != "mean",
            statistics=lambda n: n == "mean",
        )

    for accumulate in (1, 5):
        params = run(setup(hook(wrap=wrap), accumulate=accumulate), split(), KEY).state.params
        assert (params["mean"] != 0).all()


def test_an_optimiser_by_name_must_cover_all_leaves():
    with pytest.raises(ValueError, match=r"no rule matches 2 leaves, such as 'hidden/"):
        run(setup(optimiser=by_name((("head/.*", sgd(0.1)),))), split(), KEY)
    assert isinstance(sgd(0.1).build(), optax.GradientTransformation)


@pytest.mark.parametrize("method", [lora(2), osft(0.5), supsup(), trgp()])
def test_a_wrap_reads_its_weights_in_training_and_from_features_too(method):
    plain = tiny().build()
    model = plain._replace(train=lambda params, x, task, key: plain.apply(params, x, task))
    wrapped = method.build().wrap(model, 2)
    key = lambda k: jax.random.fold_in(KEY, k)
    params = wrapped.init(KEY)
    params = {
        n: p + 0.3 * jax.random.normal(key(k), p.shape) if wrapped.trainable(n) else p
        for k, (n, p) in enumerate(params.items())
    }
    x = jax.random.normal(KEY, (5, 6))
    actual = wrapped.apply(params, x, 1)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    close(wrapped.train(params, x, 1, KEY).logits, actual.logits)
    close(wrapped.from_features(params, actual.features, 1).logits, actual.logits)
    assert float(jnp.abs(plain.apply(plain.init(KEY), x, 1).logits - actual.logits).max()) > 1e-3


def test_a_step_without_weight_in_the_middle_of_a_task_is_not_taken():
    whole = split()
    weight = np.array(whole.weight)
    weight[:, 2] = 0
    gap = whole._replace(weight=weight, promise=Static("nothing"))
    rest = np.delete(np.arange(weight.shape[1]), 2)
    short = gap._replace(**{k: getattr(gap, k)[:, rest] for k in ("rows", "origin", "weight")})
    one, two = (program(setup(), s, KEY) for s in (gap, short))
    assert (one.losses[:, 2] == 0).all()
    np.testing.assert_array_equal(one.losses[:, rest], two.losses)
    for n, p in one.state.params.items():
        np.testing.assert_array_equal(p, two.state.params[n])


def test_a_stream_is_differentiable_by_its_floats_both_ways(x64):
    data = split()
    doubles = data._replace(inputs=np.float64(data.inputs), weight=np.float64(data.weight))

    def loss(rate, strength):
        result = program(setup(l2(strength), optimiser=sgd(rate)), doubles, KEY)
        return jnp.sum(result.losses[-1])

    at, step = (0.1, 0.5), 1e-5
    backward = jax.grad(loss, (0, 1))(*at)
    for i in range(2):
        along = tuple(float(i == k) for k in range(2))
        _, forward = jax.jvp(loss, at, along)
        up, down = (loss(*(a + s * step * d for a, d in zip(at, along, strict=True)))
                    for s in (1, -1))  # fmt: skip
        np.testing.assert_allclose(backward[i], forward, rtol=1e-6)
        np.testing.assert_allclose(forward, (up - down) / (2 * step), rtol=1e-3)
