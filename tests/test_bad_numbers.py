"""Numbers of a stream or a call that are out of range: refused, or at least flagged."""

from __future__ import annotations

import logging

import clouds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import both, of, refused, warm  # noqa: F401
from tiny_streams import KEY, blobs, setup, split, tiny

import jaxmerge as jm
from jaxmerge.continual.drivers import program, run
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import evaluators, methods
from jaxmerge.continual.seeds import stacked
from jaxmerge.continual.stream_records import Evaluator, Setup
from jaxmerge.continual.streams import permuted
from jaxmerge.continual.streams import split as dealt
from jaxmerge.studies.loop import Stream as Loop


def put(array, value, at=0):
    """A copy with one number replaced."""
    array = np.array(array)
    array.reshape(-1)[at] = value
    return array


GOOD = split()
of_stream = lambda **changes: GOOD._replace(**changes)
of_groups = lambda **changes: GOOD._replace(groups=GOOD.groups._replace(**changes))
WRONG = {
    "weight": (of_stream(weight=put(GOOD.weight, np.nan)), r"weights are numbers from 0 .* nan"),
    "negative": (of_stream(weight=put(GOOD.weight, -1)), r"found -1.0 at \[0, 0, 0\]"),
    "origin": (of_stream(origin=put(GOOD.origin, 3)), "origins are tasks, 0 to 2, .* 0 to 3"),
    "floats": (of_stream(rows=GOOD.rows * 1.0), "rows are whole numbers; found float"),
    "targets": (of_stream(targets=put(GOOD.targets, 6)), "targets are 0 to 5, training has 0 to 6"),
    "below": (of_stream(targets=put(GOOD.targets, -1)), "targets are 0 to 5, training has -1 to 5"),
    "lengths": (of_stream(targets=GOOD.targets[1:]), r"found inputs \[120, 6\], targets \[119\]"),
    "more": (of_stream(info={"own": np.ones((4, 6), bool)}), r"own'\] is \[3 tasks, columns\]"),
    "fewer": (of_stream(info={**GOOD.info, "level": np.zeros(2)}), r"level'\] is \[3 tasks.* \[2"),
    "sample": (of_stream(sample=np.int32([[0, 1], [120, 1], [2, -1]])), "0 to 119, .* -1 to 120"),
    "none": (of_stream(sample=GOOD.rows[:, 0] - GOOD.rows[:, 0] - 1), "sample of task 0 has no"),
    "promise": (of_stream(promise="once"), r"promise is a Static, such as .* found 'once'"),
    "no group": (of_stream(groups=()), "groups is empty"),
    "rows": (of_groups(rows=put(GOOD.groups.rows, 500)), "rows of groups are .* 0 to 500"),
    "task": (of_groups(task=np.int32([0, 1, 3])), "tasks of groups are 0 to 2; found 0 to 3"),
    "nan": (of_groups(weight=put(GOOD.groups.weight, np.nan)), "weights of groups are .* nan"),
    "labels": (of_groups(targets=put(GOOD.groups.targets, 9)), "groups has 0 to 9"),
    "info": (of_groups(info={"own": np.ones((2, 6), bool)}), r"\['own'\] has one entry for each"),
    "fractions": (
        of_stream(targets=GOOD.targets + 0.5), "targets are whole numbers, those of training .* fl"
    ),
    "flags": (of_groups(targets=GOOD.groups.targets > 2), "those of groups are bool"),
    "columns": (
        of_stream(info={"own": np.ones((3, 5), bool)}), r"the model has 6 columns, .* has 5"
    ),
    "columns of groups": (of_groups(info={"own": np.ones((3, 8), bool)}), "of groups has 8"),
    "own": (of_stream(info={"own": np.ones((3, 6), np.float32)}), "as bool; found float32"),
    "no groups": (of_stream(groups=None), "groups is empty"),
    "missing": (of_groups(info={}), "aware reads 'own' of a group's info, which has n"),
}  # fmt: skip


@both
@pytest.mark.parametrize("what", WRONG)
def test_numbers_of_a_stream_are_out_of_range(drive, what, caplog):
    refused(drive, setup(), *WRONG[what], caplog)


@pytest.mark.parametrize("what", ["origin", "rows", "nan", "sample", "more"])
def test_streams_that_are_mapped_over_are_looked_at_before(what):
    stream, words = WRONG[what]
    with pytest.raises(ValueError, match=words):
        stacked([GOOD, stream])


def test_where_numbers_are_traced_their_forms_are_looked_at():
    wrong, words = WRONG["lengths"]
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(program, setup(), wrong, KEY)
    assert jax.eval_shape(program, setup(), WRONG["origin"][0], KEY).finite.shape == (3,)


def test_a_program_is_compiled_once_for_a_form(caplog):
    drive = lambda rate: program(setup(optimiser=sgd(rate)), split(seed=int(10 * rate)), KEY)
    first = drive(0.1)
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        caplog.clear()
        second = drive(0.2)
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]
    assert (first.losses != second.losses).any()


@both
@pytest.mark.parametrize("label", ["last model", "last", "base"])
def test_a_merge_has_the_label_of_something_else(drive, label, caplog):
    config = setup(merges={label: jm.mean()})
    refused(drive, config, GOOD, f"no merge can be labelled '{label}'", caplog)


@pytest.mark.parametrize(
    ("drive", "words"),
    [
        (lambda: run(setup(), GOOD, KEY, score_every=0), "score_every is a whole number from 1 on"),
        (lambda: program(setup(), GOOD, KEY, score_every=-1), "from 0 on, got -1"),
        (lambda: program(setup(), GOOD, KEY, score_every=2.5), "from 0 on, got 2.5"),
        (lambda: program(setup(), GOOD, KEY, anytime=0), "anytime is a whole number from 1 on"),
        (lambda: program(setup(), GOOD, KEY, anytime=9), "anytime=9 is more than the 8 steps of a"),
        (lambda: run(setup(), GOOD, KEY, first=3), "first is a task, 0 to 2, got 3"),
        (lambda: run(setup(), GOOD, KEY, first=1), "takes the state after the one before it"),
        (lambda: dealt(blobs(), blobs(), [[0, 1]], batch=0), "batch must be a whole number from 1"),
        (lambda: dealt(blobs(), blobs(), [[0, 7], [1]]), "No training example is of class 7"),
        (lambda: dealt(blobs(), blobs(), [[0], []]), "a task has one"),
        (lambda: permuted(blobs(), (blobs()[0][1:], blobs()[1])), "119 inputs and 120 labels"),
        (lambda: permuted(blobs(), blobs(), 0, epochs=0), "tasks must be .*; epochs must be"),
    ],
)
def test_numbers_of_a_call_are_out_of_range(drive, words):
    with pytest.raises(ValueError, match=words):
        drive()


def test_a_state_is_of_another_setup():
    wider = Setup(tiny(hidden=9), classification(), sgd(0.1))
    with pytest.raises(ValueError, match="a state of another setup changes the form of the base"):
        run(setup(), GOOD, KEY, state=run(wider, GOOD, KEY).state, first=1)


@evaluators.register
def no_number():
    """NaN for one class."""
    return Evaluator(lambda out, y, info: jnp.where(y == 0, jnp.nan, 1.0))


def test_an_evaluator_gives_nan_for_real_examples():
    config = Setup(tiny(), classification(metrics=("no_number",)), sgd(0.1))
    group = int(np.argmax(np.asarray(GOOD.info["own"])[:, 0]))
    with pytest.raises(ValueError, match=f"After task 0 .* no_number gives NaN for group {group}"):
        run(config, GOOD, KEY)
    assert not program(config, GOOD, KEY).finite.any()
    assert program(config, GOOD, KEY, score_every=3).finite.tolist() == [True, True, False]


def novel(slot):
    """Growth by novelty: `begin` writes which slot a task trains."""

    def wrap(model, tasks):
        init = lambda key: {
            **model.init(key), "shift": jnp.zeros((tasks, 6)), "table": jnp.zeros(tasks, jnp.int32),
        }  # fmt: skip

        def apply(params, x, task):
            out = model.apply(params, x, task)
            return out._replace(logits=out.logits + params["shift"][params["table"][task]][None])

        return model._replace(
            init=init, apply=apply, trainable=lambda n: n == "shift", slots=lambda n: n == "shift",
            slot=lambda params, task: params["table"][task],
        )  # fmt: skip

    def begin(model, params, memory, border):
        return {**params, "table": params["table"].at[border.index].set(slot)}, memory

    return of(wrap=wrap, begin=begin)


@pytest.mark.parametrize("slot", [17, -1, 3])
def test_a_task_is_to_train_a_slot_that_is_not_there(slot):
    words = f"Task 0 is to train slot {slot}, but shift has 0 to 2"
    with pytest.raises(ValueError, match=words):
        run(setup(novel(slot)), GOOD, KEY)
    assert not program(setup(novel(slot)), GOOD, KEY).finite.any()


def test_slots_of_the_loop():
    loop = lambda **given: Loop(scenario, clouds.learner(), training=clouds.TRAINING, **given)
    scenario = clouds.scenario(clouds.source())
    with pytest.raises(ValueError, match="3 tasks, but extra has 1 slots"):
        loop(methods=[short_of_slots()])
    with pytest.raises(ValueError, match="Task 0 is to train slot 17, but extra has 0 to 2"):
        loop(methods=[short_of_slots(3, 17)]).run()
    with pytest.raises(ValueError, match="methods are a list; found 'ewc' alone"):
        loop(methods="ewc")


@methods.record
def short_of_slots(slots: int = 1, slot: int = 0):
    """A leaf of so many slots, of which one is trained."""

    def wrap(model, tasks):
        init = lambda key: {**model.init(key), "extra": jnp.zeros((slots, 3))}
        own = lambda n: n == "extra"
        return model._replace(
            init=init, slots=own, slot=lambda params, task: task + slot,
            weights=lambda params, task: {n: p for n, p in params.items() if not own(n)},
        )  # fmt: skip

    return Method(wrap=wrap)


def test_labels_of_merges_are_texts_and_methods_a_list():
    with pytest.raises(ValueError, match="a label is a text; found 3"):
        setup(merges={3: jm.magmax()})
    with pytest.raises(ValueError, match=r"methods are a list; found None: write \(\)"):
        Setup(tiny(), classification(), sgd(0.1), None)
