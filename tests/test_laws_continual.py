"""The laws that every registered continual method obeys, on a tiny stream of ten short tasks.

A method added later is checked by being registered: its arguments, where the defaults are too
large for the toy, are in `EXAMPLES`; those that are fine-tuning at strength 0 are found by their
signature (a `strength`), save those that change the network or are named in `OTHERWISE`, with why.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_streams import KEY, setup, split

import jaxmerge as jm
from jaxmerge.continual import methods as package
from jaxmerge.continual import scoring, stages
from jaxmerge.continual.drivers import compiled, program, run
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.parts import build
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST, Method
from jaxmerge.continual.registry import methods

EXAMPLES = {
    "agem": {"size": 12, "examples": 4},
    "clib": {"size": 12},
    "coso": {"rank": 2, "sketch": 4, "rate": 0.01},
    "ctp": {"queue": 10},
    "cuber": {"examples": 8},
    "der": {"size": 20},
    "derpp": {"size": 20},
    "er": {"size": 20},
    "ewc": {"examples": 8},
    "ewc_magmax": {"examples": 8, "strength": 1.0},
    "fedavg": {"clients": 5, "batch": 1},
    "fot": {"clients": 5, "batch": 1},
    "gem": {"examples": 4, "tasks": 3},
    "gpm": {"examples": 8},
    "lingocl": {"embeddings": np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)},
    "mas": {"examples": 8},
    "onpro": {"size": 20, "replay": 8, "projection": 4, "rotations": False},
    "pl_fms": {"size": 12, "period": 2, "total": 60},
    "prd": {"projection": 4},
    "refresh": {"examples": 8},
    "train_only": {"pattern": "^head/"},
    "trgp": {"examples": 8},
    "slca": {"epochs": 1, "per_class": 4},
    "slcapp": {"epochs": 1, "per_class": 4},
}
OPTIMISERS = {"coso": sgd(1.0)}  # others would not show it the gradient
MANY = {"lingocl": {"embeddings": np.eye(20, 5, dtype=np.float32)}}  # of twenty classes
SIGMOID = classification(columns="seen", loss="sigmoid")
PLAIN = {"pred_kd": SIGMOID}  # what fine-tuning is under the objective of the method's own
OTHERWISE = {
    "er": "strength is a form of ours beside the authors' joint mean, which has none",
}


def names() -> list[str]:
    """The methods of the package that a drawn stream takes, not those that tests register."""
    return sorted(n for n in package.__all__ if of(n).build().examples is None)


def arguments(name: str) -> dict:
    known = inspect.signature(methods.get(name)).parameters
    return {k: v for k, v in EXAMPLES.get(name, {}).items() if k in known}


def of(name: str, **more):
    return methods.get(name)(**{**arguments(name), **more})


def figures(result):
    return result.R, result.losses, result.state.params, result.state.memory


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@functools.cache
def stream():
    return split(tasks=3, steps=4)


@functools.cache
def ran(name: str):
    return run(
        setup(of(name), optimiser=OPTIMISERS.get(name), merges={"MagMax": jm.magmax()}),
        stream(),
        KEY,
    )


# One of each kind; the others are slow in laws whose seconds were not recorded for all methods.
QUICK = ("er", "ewc", "gpm", "supsup")
slow = lambda n: n if n in QUICK else pytest.param(n, marks=pytest.mark.slow)
every = pytest.mark.parametrize("name", [slow(n) for n in names()])


@pytest.mark.parametrize("name", sorted(set(package.__all__) - set(names())))
def test_what_chooses_examples_is_refused_on_a_drawn_stream(name):
    with pytest.raises(ValueError, match=rf"{name} chooses examples before the batches"):
        program(setup(of(name)), stream(), KEY)


FUSED = {
    "osft": "XLA rounds the product of its factors once where MagMax's difference follows it",
}  # methods whose merges differ by the last bit between a program and a run, and why


@every
def test_a_program_is_a_run_and_its_memory_keeps_shapes_and_dtypes(name):
    """To the bit: figures, losses, weights, what methods keep; and merges, but for `FUSED`."""
    config = setup(of(name), optimiser=OPTIMISERS.get(name), merges={"MagMax": jm.magmax()})
    if any(m.host for m in build(config, 3).methods):
        with pytest.raises(ValueError, match="needs the host"):
            program(config, stream(), KEY)
        return
    actual, other = jax.jit(program)(config, stream(), KEY), ran(name)
    before = jax.eval_shape(lambda: stages.create(config, stream(), KEY)).memory
    form = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
    assert form(actual.state.memory) == form(before)
    assert actual.finite.all()
    same(figures(actual), figures(other))
    merges = [arrays(r.state.merges) for r in (actual, other)]
    if name in FUSED:  # the last bit is that of the weights whose difference it is
        weights = build(config, 3).model.weights(other.state.params, 2).values()
        bit = np.spacing(np.float32(max(np.abs(w).max() for w in weights)))
        for one, two in zip(*merges, strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=bit)
    else:
        same(*merges)


def arrays(state) -> list[np.ndarray]:
    """A state as a checkpoint has it: no key, no structure, no array of a device."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    plain = lambda x: np.array(jax.random.key_data(x) if is_key(x) else x)
    return [plain(x) for x in map(jnp.asarray, jax.tree.leaves(state))]


def restored(saved: list[np.ndarray], fresh):
    """The state of a new process, with what was saved."""
    leaves, tree = jax.tree.flatten(fresh)
    is_key = lambda x: jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key)
    back = lambda x, old: jax.random.wrap_key_data(x) if is_key(old) else jnp.asarray(x)
    return tree.unflatten([back(x, old) for x, old in zip(saved, leaves, strict=True)])


@pytest.mark.parametrize("name", names())
def test_a_kill_at_any_step_and_a_resume_give_the_same_bits(name):
    """Killed after every step of every task, and at every stage of a border; merges too."""
    config = setup(
        of(name), optimiser=OPTIMISERS.get(name), merges={"MagMax": jm.magmax(), "EMA": jm.ema(0.5)}
    )
    s, tasks, steps = jax.tree.map(jnp.asarray, stream()), 3, 4
    host = any(m.host for m in build(config, tasks).methods)
    at_border = (lambda f: f) if host else compiled.__getitem__
    part = lambda t, k: tuple(x[t, k : k + 1] for x in (s.rows, s.origin, s.weight))
    learn = compiled[stages.train]
    step = lambda k: lambda c, s, now, t: learn(c, s, now, t, part(t, k), jnp.int32(steps))[0]
    border = [at_border(stages.end), compiled[stages.fold]]
    task = [at_border(stages.begin), *map(step, range(steps)), *border]
    fresh = compiled[stages.create](config, s, KEY)
    whole = killed = fresh
    for t in range(tasks):
        index = np.int32(t) if host else jnp.int32(t)
        for stage in task:
            whole = stage(config, s, whole, index)
            killed = stage(config, s, restored(arrays(killed), fresh), index)
            same(arrays(killed), arrays(whole))


@every
def test_ten_tasks_compile_every_stage_once(name):
    config, ten = (
        setup(of(name, **MANY.get(name, {})), optimiser=OPTIMISERS.get(name)),
        split(tasks=10, steps=1, classes=20),
    )
    from tiny_streams import tiny

    config = jax.tree.map(lambda x: x, config)
    object.__setattr__(config, "model", tiny(classes=20))
    sizes = lambda: {f: compiled[f]._cache_size() for f in compiled}
    before = sizes()
    run(config, ten, KEY, score_every=5)
    host = any(m.host for m in build(config, 10).methods)
    for stage, count in sizes().items():
        new = count - before[stage]
        assert new <= 1, (name, stage.__name__, new)
        assert new == 1 or (host and stage in (stages.begin, stages.end))


@methods.register
def bystander():
    """Draws much, and changes nothing."""

    def init(model, params, batch, stored):
        return jnp.zeros(())

    def observe(model, step):
        return step.memory + jax.random.uniform(step.key)

    return Method(init=init, observe=observe)


@every
def test_a_method_placed_beside_another_changes_none_of_its_draws(name):
    other = run(
        setup(
            bystander(), of(name), optimiser=OPTIMISERS.get(name), merges={"MagMax": jm.magmax()}
        ),
        stream(),
        KEY,
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, other.state.params, ran(name).state.params)
    jax.tree.map(close, other.state.memory[1], ran(name).state.memory[0])


@every
def test_prediction_without_the_task_never_reads_it(name):
    """Groups that are said to be of other tasks have the same task-agnostic figures."""
    s = stream()
    wrong = s._replace(groups=s.groups._replace(task=s.groups.task[::-1].copy()))
    state = ran(name).state
    config = setup(of(name), optimiser=OPTIMISERS.get(name), merges={"MagMax": jm.magmax()})
    score = lambda s: compiled[scoring.score](config, s, state, jnp.int32(2))[LAST]["accuracy"]
    np.testing.assert_array_equal(score(s), score(wrong))


def with_strength() -> list[str]:
    has = lambda n: "strength" in inspect.signature(methods.get(n)).parameters
    same = lambda n: of(n).build().wrap is None  # a wrap's strength weighs a term, as in O-LoRA
    return [n for n in names() if has(n) and n not in OTHERWISE and same(n)]


@pytest.mark.parametrize("name", with_strength())
def test_with_strength_0_it_is_fine_tuning(name):
    config, fine = setup(of(name, strength=0.0)), setup()
    fine = dataclasses.replace(fine, problem=PLAIN.get(name, fine.problem))
    plain = run(fine, stream(), KEY).state.params
    actual = run(config, stream(), KEY).state.params
    for n, p in plain.items():
        np.testing.assert_allclose(actual[n], p, rtol=1e-5, atol=1e-6, err_msg=n)
