"""Projections hold what they promise under any optimiser, and only behind it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_streams import KEY, split

from jaxmerge.continual import projection, stages
from jaxmerge.continual.drivers import program
from jaxmerge.continual.methods import cuber, fot, gpm, l2, trgp
from jaxmerge.continual.optimisers import adamw, sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.projection import Span
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import methods
from jaxmerge.continual.stream_records import Setup
from jaxmerge.models.mlp.learner import mlp
from jaxmerge.models.resnet.learner import resnet18
from jaxmerge.numerics.subspaces import outside


@methods.register
def gpm_before(threshold: float = 0.9):
    """GPM as a rule for gradients: what the optimiser makes of them is not looked at."""
    after = gpm(threshold, examples=20).build()

    def gradient(model, step, grads, grad_at):
        off = lambda n, g: outside(g, step.memory[n].vectors) if n in step.memory else g
        return {n: off(n, g) for n, g in grads.items()}

    return after._replace(spans=None, gradient=gradient)


@methods.register
def pushed(by: float = 0.1):
    """A move of every weight before the gradient is taken."""
    move = lambda model, step, trained, at: jax.tree.map(lambda p: p + by, trained)
    return Method(perturb=move)


@methods.register
def nudged(by: float = 0.1):
    """A move of every weight behind the optimiser."""
    add = lambda updates: jax.tree.map(lambda u: u + by, updates)
    return Method(update=lambda model, step, updates: (add(updates), step.memory))


def learnt(optimiser, method, tasks=3, bias=False):
    """The state after so many tasks of three, of a method or of several."""
    stream = split(tasks=3, steps=12, batch=6)
    first = {k: getattr(stream, k)[:tasks] for k in ("rows", "origin", "weight")}
    stream = stream._replace(**first, info={"own": stream.info["own"][:tasks]})
    setup = Setup(
        mlp(stream.inputs.shape[-1], (16, 16), 6, bias=bias), classification("seen"), optimiser,
        method if isinstance(method, tuple) else (method,),
    )  # fmt: skip
    return jax.jit(program)(setup, stream, KEY).state


def moved(optimiser, method):
    """How far kernels went inside the span of the tasks before, of how far they went at all."""
    one, both = learnt(optimiser, method, tasks=1), learnt(optimiser, method, tasks=2)
    inside, whole = 0.0, 0.0
    for n, space in one.memory[0].items():
        change = both.params[n] - one.params[n]
        vectors = getattr(space, "basis", space).vectors
        inside += jnp.sum((vectors.T @ change) ** 2)
        whole += jnp.sum(change**2)
    return float(jnp.sqrt(inside / whole))


@pytest.mark.parametrize("optimiser", [sgd(0.1, momentum=0.9), adamw(0.01, weight_decay=0.1)])
def test_old_inputs_feel_nothing_of_any_optimiser(optimiser):
    assert moved(optimiser, gpm(0.9, examples=20)) < 1e-5


@pytest.mark.parametrize("other", [pushed, nudged])
@pytest.mark.parametrize(
    "method", [gpm(0.9, examples=20), cuber(0.9, examples=20, correlation=1.0)]
)
def test_old_inputs_feel_nothing_of_what_another_method_moves(method, other):
    assert moved(sgd(0.1), (method, other())) < 1e-5


@pytest.mark.parametrize("other", [pushed, nudged])
@pytest.mark.parametrize("method", [gpm, trgp, cuber])
def test_leaves_that_stop_do_so_whatever_another_method_moves(method, other):
    stopping = method(0.9, examples=20), other()
    one, both = (learnt(sgd(0.1), stopping, tasks, bias=True).params for tasks in (1, 2))
    biases = [n for n in one if n.endswith("bias")]
    assert len(biases) == 3
    for n in biases:
        assert jnp.abs(one[n]).max() > 0
        np.testing.assert_array_equal(one[n], both[n])


def test_statistics_that_go_on_moving_are_refused():
    images = np.zeros((60, 32, 32, 3), np.float32)
    stream = split(steps=4, batch=6, data=(images, np.arange(60, dtype=np.int32) % 6))

    def begun(method, **more):
        network = resnet18(6, width=2, blocks=(1, 1), **more)
        setup = Setup(network, classification(), sgd(0.1), (method,))
        return jax.eval_shape(stages.create, setup, stream, KEY)

    for method in (gpm, trgp, cuber):
        with pytest.raises(ValueError, match=r"rewrites the running statistics .*mean.*running=F"):
            begun(method())
        begun(method(free="norm/(mean|variance)$"))
        begun(method(free=""))  # is found in every name
        begun(method(), running=False)
    federated = fot(0.9, clients=3, batch=2)
    with pytest.raises(
        ValueError, match=r"fot: every step rewrites .*with running=False\.\nin fot"
    ):
        begun(federated)
    begun(federated, running=False)


def test_adam_leaks_where_the_gradient_alone_is_projected():
    assert moved(sgd(0.1), gpm_before()) < 1e-5
    assert moved(adamw(0.01), gpm_before()) > 0.05


@pytest.mark.parametrize(
    "method",
    [gpm(0.9, examples=20), trgp(0.9, examples=20), cuber(0.9, examples=20),
     fot(0.9, clients=3, batch=2)],
)  # fmt: skip
def test_bases_are_orthonormal_after_a_whole_stream(method):
    state = learnt(sgd(1.0) if "fot" in repr(method) else sgd(0.1), method)
    bases = [x for x in jax.tree.leaves(state.memory, is_leaf=is_basis) if is_basis(x)]
    assert len(bases) == 3
    for space in bases:
        assert int(space.rank) > 0
        there = jnp.diag((jnp.arange(space.vectors.shape[1]) < space.rank).astype(jnp.float32))
        assert float(jnp.abs(space.vectors.T @ space.vectors - there).max()) < 1e-5


def is_basis(x):
    return hasattr(x, "vectors") and hasattr(x, "rank")


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_gradients_of_projected_rows_are_projected_updates(momentum, monkeypatch):
    method, rows = gpm(0.9, examples=18), []  # not compiled before
    monkeypatch.setattr(projection, "rows_outside", noted(projection.rows_outside, rows))
    cheap = learnt(sgd(0.1, momentum=momentum), method)
    assert rows
    monkeypatch.setattr(projection, "is_linear", lambda optimiser: False)
    plain = learnt(sgd(0.1, momentum=momentum, clip=1e9), method)  # a clip compiles anew
    for n, p in plain.params.items():
        assert float(jnp.abs(p - cheap.params[n]).max()) < 1e-5, n


def noted(f, calls):
    """The function, which says when it is traced."""

    def called(*args):
        calls.append(f)
        return f(*args)

    return called


def test_what_other_methods_add_is_projected_too():
    setting = gpm(0.9, examples=20), l2(0.1)
    one, both = (learnt(sgd(0.1), setting, tasks) for tasks in (1, 2))
    for n, space in one.memory[0].items():
        change = both.params[n] - one.params[n]
        inside = jnp.linalg.norm(space.vectors.T @ change)
        assert float(inside) < 1e-5 * max(float(jnp.linalg.norm(change)), 1e-3), n


def test_two_methods_do_not_project_one_kernel():
    with pytest.raises(ValueError, match="gpm and fot both decide how head/kernel, layer_0"):
        learnt(sgd(0.1), (gpm(0.9), fot(0.9, clients=3, batch=2)))


@methods.register
def lost(name: str = "layer_9/kernel", inputs: int = 5):
    """A span that fits no kernel."""
    memory = lambda model, params, batch, stored: {name: jnp.zeros((inputs, 2))}
    return Method(init=memory, spans=lambda memory: memory)


@methods.register
def squares(name: str, inputs: int = 5):
    """A projector of the inputs that it names."""
    memory = lambda model, params, batch, stored: {name: jnp.eye(inputs)}
    return Method(init=memory, spans=lambda memory: {n: Span(None, p) for n, p in memory.items()})


@methods.register
def nothing(name: str):
    """A span of nothing."""
    return Method(init=lambda *_: {}, spans=lambda memory: {name: Span()})


@methods.register
def odd(what: str):
    """What is no span."""
    there = {"list": [[1.0]], "complex": jnp.zeros((16, 2), complex), "text": Span(None, "text")}
    return Method(init=lambda *_: {}, spans=lambda memory: {"head/kernel": there[what]})


def test_a_span_may_be_a_projector():
    all_of_it = learnt(sgd(0.1), squares("head/kernel", 16))
    changed = {n: bool((p - all_of_it.base[n]).any()) for n, p in all_of_it.params.items()}
    assert changed == {"head/kernel": False, "layer_0/kernel": True, "layer_1/kernel": True}


@pytest.mark.parametrize(
    ("method", "message"),
    [(lost(), "a span of 'layer_9/kernel', which is no kernel that trains"),
     (lost("head/kernel"), r"span of 'head/kernel' is \[5, 2\], expected real numbers \[16, k\]"),
     (squares("head/kernel"), r"projector of 'head/kernel' is \[5, 5\], expected .* \[16, 16\]"),
     (odd("list"), r"the span of 'head/kernel' is a list, expected real numbers \[16, k\]"),
     (odd("complex"), r"the span of 'head/kernel' is complex64\[16, 2\], expected real numbers"),
     (odd("text"), "the projector of 'head/kernel' is .*text.*, expected real numbers"),
     (nothing("head/kernel"), "span of 'head/kernel' is empty, expected vectors or a projector")],
)  # fmt: skip
def test_spans_that_do_not_fit(method, message):
    with pytest.raises(ValueError, match=message):
        learnt(sgd(0.1), method)
