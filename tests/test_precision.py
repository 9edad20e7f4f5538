"""Products that methods make are of full precision on every accelerator.

A CPU multiplies float32 exactly whatever is asked: programs are looked at, not results.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import laws
import pytest
from laws import on_device
from tiny_streams import KEY, setup, split

from jaxmerge.continual import stages
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import methods

HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
NAMES = [name for name, _ in laws.stages()]


def products(jaxpr) -> list:
    """The precision of every matrix product of a program, also inside the programs it calls."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append(equation.params["precision"])
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            found += products(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_multiplies_at_full_precision(name):
    case = laws.case_of(name).few()
    run = lambda base, models, extras, key: case.merge(base, models, extras=extras or None, key=key)
    program = jax.make_jaxpr(run)(
        on_device(case.base), on_device(case.models), on_device(case.extras or []), case.key
    )
    assert set(products(program.jaxpr)) <= {HIGHEST}


def test_the_programs_are_looked_into():
    case = laws.case_of("opcm").few()
    program = jax.make_jaxpr(lambda base, models: case.merge(base, models))(
        on_device(case.base), on_device(case.models)
    )
    assert products(program.jaxpr)


SEEN: dict[str, set] = {}  # hook -> the precisions that it traced a product with


def note(hook, out):
    def run(*args):
        program = jax.make_jaxpr(lambda x: x @ x)(jnp.eye(2))
        SEEN.setdefault(hook, set()).update(products(program.jaxpr))
        return out(*args)

    return run


@methods.register
def hooks_noted() -> Method:
    """Notes how every hook multiplies."""
    return Method(
        init=lambda *args: jnp.zeros(()),
        begin=note("begin", lambda model, params, memory, place: (params, memory)),
        end=note("end", lambda model, params, memory, place: (params, memory)),
        loss=note("loss", lambda model, step: 0.0),
        perturb=note("perturb", lambda model, step, trained, at: trained),
        gradient=note("gradient", lambda model, step, grads, at: grads),
        update=note("update", lambda model, step, updates: (updates, step.memory)),
        observe=note("observe", lambda model, step: step.memory),
    )


def test_hooks_multiply_at_full_precision_and_losses_as_the_model_does():
    stream, how = split(), setup(hooks_noted())
    state = stages.create(how, stream, KEY)
    for stage in (stages.begin, stages.end):
        state = stage(how, stream, state, jnp.int32(0))
    stages.train(how, stream, state, jnp.int32(0))
    assert SEEN.pop("loss") == {None}
    assert sorted(SEEN) == ["begin", "end", "gradient", "observe", "perturb", "update"]
    assert all(found == {HIGHEST} for found in SEEN.values())
