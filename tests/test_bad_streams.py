"""Bad input of a stream: one clear error each, before anything is compiled; three ways to run."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import both, of, refused, warm  # noqa: F401
from tiny_streams import KEY, setup, split

from jaxmerge.continual import streams
from jaxmerge.continual.checks import check
from jaxmerge.continual.drivers import joint, program, run
from jaxmerge.continual.federated import federated
from jaxmerge.continual.methods import (
    clib,
    coso,
    derpp,
    er,
    fedavg,
    fot,
    gpm,
    lingocl,
    lora,
    olora,
    pl_fms,
    prd,
    refresh,
    slca,
    slcapp,
)
from jaxmerge.continual.problems import classification
from jaxmerge.continual.registry import evaluators
from jaxmerge.continual.rehearsed import rehearsed
from jaxmerge.continual.rotated import rotated
from jaxmerge.continual.stream_records import Evaluator
from jaxmerge.continual.streams import permuted
from jaxmerge.core.specs import Static
from jaxmerge.data.digits import digits
from jaxmerge.data.splits import few, stratified
from jaxmerge.data.streams import builders
from jaxmerge.data.streams.scenario import class_order

two = lambda *_: jnp.zeros(2)
ZERO = lambda out, batch, info, task: jnp.zeros(batch.weight.shape)
GROWS = {
    "begin": lambda model, params, memory, border: (params, jnp.zeros(3)),
    "observe": lambda model, step: jnp.zeros(3),
    "end": lambda model, params, memory, border: (params, jnp.zeros(2, int)),
}
SHRINKS = lambda model, params, memory, border: ({n: p[:1] for n, p in params.items()}, memory)


def test_a_good_stream_compiles_and_is_seen_to(caplog):
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        jax.jit(lambda x: x + 1)(jnp.zeros(7))
    assert any("Compiling" in r.getMessage() for r in caplog.records)


@both
def test_two_methods_claim_the_objective(drive, caplog):
    words = "both replace the objective; use one of them in a stream"
    refused(drive, setup(of(objective=ZERO), of(objective=ZERO)), split(), words, caplog)


@both
def test_two_methods_replace_the_gradient(drive, caplog):
    words = "fedavg and fot both replace the gradient; use one of them in a stream"
    config = setup(fedavg(clients=2), fot(0.9, clients=2, batch=2))
    refused(drive, config, split(), words, caplog)


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ((er(), er(select="herding")), "er and er 2 both replace the mean over the stream's batch"),
        ((clib(), er()), "clib and er both replace the mean over the stream's batch"),
        ((clib(), pl_fms()), "clib and pl_fms both replace the mean over the stream's batch"),
        ((slca(), lingocl([[1.0]])), "slca and lingocl both replace the head"),
        ((lingocl([[1.0]]), prd()), "lingocl and prd both replace the head"),
        ((slca(), slcapp()), "slca and slcapp both replace the head"),
    ],
)
def test_two_methods_that_replace_the_same(methods, words):
    with pytest.raises(ValueError, match=words):
        check(setup(*methods), split())


def test_a_buffer_that_only_adds_stands_beside_another():
    check(setup(er(), er(strength=1.0), derpp()), split())


@both
@pytest.mark.parametrize("hook", GROWS)
def test_a_memory_changes_its_shape(drive, hook, caplog):
    config = setup(
        of(init=lambda model, params, batch, stored: jnp.zeros(2), **{hook: GROWS[hook]})
    )
    refused(drive, config, split(), rf"`{hook}` changes the form of its memory", caplog)


@both
def test_params_change_their_shape(drive, caplog):
    refused(drive, setup(of(end=SHRINKS)), split(), "`end` changes the form of", caplog)


def test_a_hook_needs_the_host_inside_a_program(caplog):
    config = setup(of(host=True, end=lambda model, params, memory, border: (params, memory)))
    refused(program, config, split(), "needs the host at the borders of tasks: use `run`", caplog)
    assert np.isfinite(run(config, split(), KEY).losses).all()


@both
def test_slots_do_not_suffice(drive, caplog):
    def wrap(model, tasks):
        init = lambda key: {**model.init(key), "extra": jnp.zeros((2, 3))}
        return model._replace(init=init, slots=lambda n: n == "extra")

    refused(drive, setup(of(wrap=wrap)), split(), "3 tasks, but extra has 2 slots", caplog)


@both
def test_a_group_is_without_its_evaluator(drive, caplog):
    stream = split()
    with_metrics = lambda m: stream._replace(groups=stream.groups._replace(metrics=m))
    none = np.array([[1, 1], [0, 0], [1, 0]], bool)
    words = "group 1 chooses none of the evaluators accuracy, aware"
    refused(drive, setup(), with_metrics(none), words, caplog)
    words = r"metrics is bool \[groups, evaluators\] = \[3, 2\] .* got \[3, 1\]"
    refused(drive, setup(), with_metrics(none[:, :1]), words, caplog)


def planned(rows, promise, sample=None, base=None):
    base = base or split(tasks=1, steps=3, batch=2)
    rows = np.asarray(rows, np.int32).reshape(1, -1, 2)
    like = {"origin": np.zeros_like(rows), "weight": np.ones(rows.shape, np.float32)}
    sample = None if sample is None else np.int32([sample])
    return base._replace(rows=rows, sample=sample, promise=Static(promise), **like)


@both
@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (planned([0, 1, 2, 0], "once"), r"at most once, 1 come again \(row 0, 2 times\)"),
        (planned([0, 0, 1, 1], "epochs"), "in task 0 row 0 comes again before row 1"),
        (planned([0, 1, 0, 1, 2, 2], "epochs"), "row 0 comes again before row 2"),
        (planned([0, 1, 0, 1], "epochs", [0, 1, 2]), "row 0 comes again before row 2"),
        (planned([0, 1, 2, 3], "epochs", [3, 1, 5, -1]), "row 5 of its sample never come"),
        (planned([0, 1, 2, 999], "nothing"), "rows are 0 to 119, the plan has 0 to 999"),
        (planned([0, 1, -1, 2], "nothing"), "the plan has -1 to 2"),
        (planned([3, 1, 2, 0], "once", [0, 7]), "each example once, but in task 0 row 7 of its"),
    ],
)
def test_a_plan_repeats_or_drops_what_it_promises_not_to(drive, stream, words, caplog):
    refused(drive, setup(), stream, words, caplog)


@pytest.mark.parametrize(
    "stream",
    [
        planned([3, 1, 2, 0, 1, 3], "epochs"),  # a last pass may end early
        planned([3, 1, 2, 0], "once", [0]),
        planned([0, 0, 0, 0], "nothing"),
    ],
)
def test_plans_that_hold_what_they_promise(stream):
    check(setup(), stream)


@pytest.mark.parametrize("make", [permuted, rotated])
def test_a_stream_that_no_view_permutes(make):
    data = np.zeros((12, 6, 1), np.uint8), np.arange(12, dtype=np.int32) % 6
    stream, config = make(data, data, 3, batch=3), setup()
    object.__setattr__(config, "problem", classification())
    with pytest.raises(ValueError, match=r"view does not read info.*classification\(view="):
        check(config, stream)


def test_a_method_of_own_steps_beside_one_that_moves_weights():
    words = "coso makes steps of its own, of gradients alone, and refresh moves weights before"
    with pytest.raises(ValueError, match=words):
        check(setup(coso(2, 3), refresh()), split())


@pytest.mark.parametrize("batch", [3, 10])
def test_drawn_streams_are_passes_and_joint_ones_need_not_be(batch):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 255, (40, 6), np.uint8), np.arange(40, dtype=np.int32) % 6
    stream = permuted(data, data, 3, batch=batch, epochs=2, examples=31)
    view = lambda stored, info, task, key: stored.astype(jnp.float32)
    config = setup()
    object.__setattr__(config, "problem", classification(view=view))
    check(config, stream)
    check(config, joint(stream, KEY))


@evaluators.register
def whole_batch():
    """A number for the batch, where one for each example is asked for."""
    return Evaluator(lambda out, y, info: jnp.mean(out.logits))


@both
def test_a_metric_is_without_a_value(drive, caplog):
    stream = split()
    empty = stream.groups._replace(weight=stream.groups.weight * np.float32([[1], [0], [1]]))
    words = "group 1 has no example, so its metrics have no value"
    refused(drive, setup(), stream._replace(groups=empty), words, caplog)
    config = setup()
    object.__setattr__(config, "problem", classification(metrics=("accuracy", "whole_batch")))
    words = r"An evaluator gives one float for each of 40 examples; whole_batch gives float32\[\]"
    refused(drive, config, stream, words, caplog)


def test_a_pattern_of_leaves_that_train_and_match_nothing():
    for method in (lora(train="zzz"), olora(train="zzz")):
        with pytest.raises(ValueError, match="lora: no leaf that trains matches train='zzz'"):
            check(setup(method), split())


def test_thresholds_as_an_array_are_those_of_a_tuple():
    check(setup(gpm(np.array([0.9, 0.95]))), split())
    with pytest.raises(ValueError, match="threshold has 3 numbers, for the 2 kernels"):
        check(setup(gpm(np.array([0.9, 0.95, 0.9]))), split())


def test_what_cannot_be_dealt_out_to_clients():
    with pytest.raises(ValueError, match=r"federated deals out a `Stream`.*, got a tuple"):
        federated((np.zeros((12, 3)), np.arange(12)), 2, 2, 3)


@pytest.mark.parametrize("seed", [-1, 1.5, "zero", None])
def test_seeds_are_whole_numbers_from_0_on(seed):
    data = np.zeros((12, 3), np.float32), np.arange(12) % 4
    source = digits()
    calls = [
        lambda: permuted(data, data, tasks=2, batch=4, seed=seed),
        lambda: streams.split(data, data, [[0, 1], [2, 3]], seed=seed),
        lambda: federated(split(), 2, 2, 3, seed=seed),
        lambda: rehearsed(split(), 4, seed=seed),
        lambda: stratified(source.labels, {"val": 1}, seed=seed),
        lambda: few(source, {"train": 3}, seed=seed),
        lambda: builders.data_incremental(source, 2, seed),
        lambda: builders.recurring(source, 2, 3, seed),
    ]
    if seed is not None:  # classes as they are
        calls.append(lambda: class_order(10, seed))
    for call in calls:
        with pytest.raises(ValueError, match="seed must be a whole number from 0 on, got "):
            call()
