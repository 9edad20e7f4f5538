"""Hooks and setups that are not what they should be: the error names method and hook."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import both, of, refused, warm  # noqa: F401
from tiny_streams import KEY, setup, split

import jaxmerge as jm
from jaxmerge.continual.drivers import program
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import methods
from jaxmerge.continual.stream_records import Setup

GOOD = split()
two_of = lambda *given: lambda *_: given
HOOKS = {
    "update": (lambda model, step, updates: updates, r"`update` gives \(updates, memory\)"),
    "end": (lambda model, params, memory, border: params, r"`end` gives \(params, memory\); .*d"),
    "begin": (two_of(None, ()), r"`begin` gives \(params, memory\); its params are nothing"),
    "loss": (lambda model, step: step.batch.weight, r"`loss` gives a scalar; found float32\[5\]"),
    "objective": (lambda *_: jnp.zeros(()), r"`objective` gives a loss for each ex.*\[\]"),
    "gradient": (lambda model, step, grads, at: None, "`gradient` changes the form of the gr"),
    "spans": (lambda memory: None, "`spans` gives a mapping of kernels; found nothing"),
    "stops": (lambda model, memory, name: None, "`stops` says True or False; found nothing for"),
    "wrap": (lambda model, tasks: None, "`wrap` gives a `Model`; found nothing"),
    "observe": (lambda model, step: float(step.count), "`observe` reads the numbers of an array"),
}  # fmt: skip


@both
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_gives_what_it_should_not(drive, hook, caplog):
    function, words = HOOKS[hook]
    refused(drive, setup(of(**{hook: function})), GOOD, f"bad: {words}", caplog)


@both
def test_a_hook_needs_the_host_and_does_not_say_so(drive, caplog):
    end = lambda model, params, memory, border: ({n: np.asarray(p) for n, p in params.items()}, ())
    words = r"bad: `end` reads the numbers of an array.* `Method\(host=True\)` and use `run`"
    refused(drive, setup(of(end=end)), GOOD, words, caplog)


def test_what_fails_in_a_hook_says_in_which():
    def loss(model, step):
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        program(setup(of(loss=loss)), GOOD, KEY)
    assert caught.value.__notes__.count("in bad: `loss`") == 1


SETUPS = {
    "record": (lambda: setup(Method()), "method 0 is what a function.*register.*found a Method"),
    "name": (
        lambda: setup(merges={"M": "magmax"}),
        "merge 'M' is a jaxmerge method.*'magmax'",
    ),
    "no merge": (
        lambda: setup(merges={"M": jm.trim(0.5)}),
        "merge 'M' is a jaxmerge .*Transform",
    ),
    "letters": (lambda: Setup(None, None, None, "ewc"), r"methods are a list; found 'ewc' alone"),
    "builds": (lambda: setup(methods.record(two_of())()), "a `Method`; found a tuple of 0"),
    "none": (lambda: setup(accumulate=0), "accumulate is a whole number from 1 on, got 0"),
    "three": (lambda: setup(accumulate=3), "accumulate=3 does not divide batches of 5"),
}


@both
@pytest.mark.parametrize("what", SETUPS)
def test_a_setup_holds_what_it_should_not(drive, what, caplog):
    make, words = SETUPS[what]
    refused(lambda _, stream, key: drive(make(), stream, key), None, GOOD, words, caplog)
