"""Which kernels methods project, and that no two project one."""

from __future__ import annotations

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from projected_networks import SPACES, WRAPS, network, own, setting
from tiny_streams import KEY, split

from jaxmerge.continual.drivers import program
from jaxmerge.continual.memories import basis
from jaxmerge.continual.methods import (
    coso,
    cuber,
    fot,
    gpm,
    lora,
    olora,
    osft,
    supsup,
    trgp,
)
from jaxmerge.continual.methods.fot import join
from jaxmerge.continual.methods.osft import FREE, cut, free_part, rebuilt
from jaxmerge.continual.optimisers import adamw, by_name, sgd
from jaxmerge.continual.parts import build
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import methods, models
from jaxmerge.continual.stages import create, train
from jaxmerge.models.mlp.learner import mlp

of_fot = sys.modules[join.__module__]

# -- which kernels ---------------------------------------------------------------------------------

NAMES = [("w1", "w2", "out"), ("conv/kernel", "fc/kernel", "head/kernel"), ("w1", "w2", "h/kernel")]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("name", SPACES)
def test_what_is_a_kernel_does_not_depend_on_its_name_or_axes(name, names):
    chosen, stream = setting(own(name), model=network(names)), split(batch=6)
    state = jax.eval_shape(program, chosen, stream, KEY).state
    cut = {n for n in names if f"{n}{FREE}scale" in state.params}
    assert (cut if name == "osft" else set(state.memory[0])) == set(names)
    assert "text/position" in state.params
    whole = jax.eval_shape(build(chosen, 3).model.weights, state.params, 2)
    assert whole[names[0]].shape == (2, 2, 1, 5)


def test_osft_of_a_convolution_is_osft_of_its_matrix():
    kernel = jax.random.normal(KEY, (3, 2, 4, 7))
    four, two = cut("k", kernel, 0.5), cut("k", kernel.reshape(24, 7), 0.5)
    np.testing.assert_allclose(rebuilt("k", four), kernel, atol=1e-5)
    for n, p in four.items():
        np.testing.assert_array_equal(p.reshape(two[n].shape), two[n])
        if FREE in n:
            x = jax.random.normal(KEY, p.shape)
            matrix = free_part(n, two, x.reshape(two[n].shape))
            np.testing.assert_allclose(free_part(n, four, x), matrix.reshape(x.shape), atol=1e-5)


def test_coso_moves_a_convolution_outside_old_gradients():
    states = []
    stream = split(tasks=3, steps=4, batch=6)
    for tasks in (2, 3):
        first = {k: getattr(stream, k)[:tasks] for k in ("rows", "origin", "weight")}
        cut = stream._replace(**first, info={"own": stream.info["own"][:tasks]})
        config = setting(own("coso", threshold=1.0))
        states.append(jax.jit(program)(config, cut, KEY).state)
    before, after = states
    for n, space in after.memory[0].items():
        change = (after.params[n] - before.params[n]).reshape(-1, after.params[n].shape[-1])
        assert int(space.history.rank) > 0
        inside = jnp.linalg.norm(change @ space.history.vectors)
        assert float(inside) < 1e-6 < float(jnp.linalg.norm(change)) / 100, n  # of weights near 1


@pytest.mark.parametrize("name", SPACES)
def test_stacks_of_layers_are_refused_by_name(name):
    model = network(("conv", "layers", "head"), stack=4)
    with pytest.raises(ValueError, match=rf"^{name}: .*found layers \[4, 10, 10\]\. If that is a "):
        program(setting(own(name), model=model), split(steps=4, batch=6), KEY)
    create(setting(own(name, "conv|head"), model=model), split(steps=4, batch=6), KEY)


READINGS = {  # of a kernel w [6, 6], whose inputs no trace shows
    "cond": lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: x @ w, w),
    "while": lambda x, w: jax.lax.while_loop(lambda h: h[0, 0] > 0, lambda h: h @ w, x),
    "a matrix of it": lambda x, w: x @ jnp.tanh(w),
    "groups": lambda x, w: jax.lax.conv_general_dilated(
        x.reshape(-1, 1, 1, 6), w.reshape(6, 1, 1, 6)[:1].repeat(1, 0), (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6,
    ).reshape(-1, 6),
}  # fmt: skip


@models.register
def read_as(how: str, said: bool = False, shape: tuple = (6, 6)) -> Model:
    """w is read in one of `READINGS`, or as heads [in, heads, size]; the model may say its taps."""

    def init(key):
        ones = {"trunk/w": jnp.ones(shape), "trunk/bias": jnp.zeros(6)}
        return ones | {"head/kernel": jnp.ones((6, 6))}

    def apply(params, x, task):
        w = params["trunk/w"]
        h = READINGS[how](x, w) if how in READINGS else (x @ w.reshape(6, 6))
        h = h + params["trunk/bias"]
        return Outputs(h @ params["head/kernel"], h, {"taps": {"trunk/w": x}} if said else None)

    return Model(init, apply)


@pytest.mark.parametrize("name", ["gpm", "trgp", "cuber", "fot"])
@pytest.mark.parametrize("how", READINGS)
def test_a_kernel_whose_inputs_are_not_found_is_refused_by_name(name, how):
    made = lambda pattern, **more: jax.eval_shape(
        create, setting(own(name, pattern), model=read_as(how, **more)), split(batch=6), KEY
    )
    for pattern in (".*", "^trunk"):
        with pytest.raises(ValueError, match=rf"^{name}: no inputs were found .* for trunk/w\. "):
            made(pattern)
    assert set(made("^head").memory[0]) == {"head/kernel"}
    assert set(made(".*", said=True).memory[0]) == {"head/kernel", "trunk/w"}


@pytest.mark.parametrize("name", SPACES)
def test_heads_with_an_axis_of_their_own_are_told_what_helps_them_too(name):
    model = read_as("heads", shape=(6, 2, 3))
    with pytest.raises(
        ValueError, match=rf"^{name}: .*found trunk/w \[6, 2, 3\].* as a matrix and"
    ):
        jax.eval_shape(create, setting(own(name), model=model), split(batch=6), KEY)


@pytest.mark.parametrize("name", ["gpm", "trgp", "cuber"])
def test_leaves_that_are_to_stay_free_are_there(name):
    made = lambda free: jax.eval_shape(
        create, setting(own(name, "^head", free=free), model=read_as("heads")), split(batch=6), KEY
    )
    with pytest.raises(
        ValueError, match=rf"^{name}: no leaf that trains matches free='\^nothing'; "
    ):
        made("^nothing")
    for free in (".", "^head", "bias$"):
        made(free)


def test_fot_takes_a_threshold_a_kernel_in_the_order_of_the_network(monkeypatch):
    joined, stream = {}, split(steps=2, batch=6)
    model = mlp(6, (7,), 6, bias=False)  # whose kernels have 6 and 7 inputs
    monkeypatch.setattr(basis, "due", lambda threshold, growth, task: threshold)
    note = lambda space, rows, ratios, counts, energy: joined.update({len(space[0]): energy})
    monkeypatch.setattr(of_fot, "join", lambda space, *sent: note(space, *sent) or space)

    def trained(shares):
        chosen = setting(own("fot", threshold=shares), model=model)
        last = lambda key: train(chosen, stream, create(chosen, stream, key), jnp.int32(0))
        jax.eval_shape(last, KEY)
        return dict(joined)

    assert trained((0.1, 0.9)) == {6: 0.1, 7: 0.9}
    assert trained(0.5) == {6: 0.5, 7: 0.5}
    with pytest.raises(
        ValueError, match=r"^fot: threshold has 3 numbers, for the 2 kernels layer_0/"
    ):
        trained((0.1, 0.2, 0.3))


@pytest.mark.parametrize("name", SPACES + WRAPS)
def test_a_pattern_that_matches_nothing_names_the_method(name):
    with pytest.raises(
        ValueError, match=rf"^o?{name}: no kernel matches 'zz'; the model has: .*w2"
    ):
        program(setting(own(name, "zz")), split(steps=4, batch=6), KEY)


# -- two methods, one kernel -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [*itertools.product(SPACES, SPACES), *itertools.product(("osft", "gpm"), WRAPS), ("lora",) * 2],
)
def test_two_methods_that_decide_one_kernel_are_one_clear_line(names):
    a, b = names
    other = f"{b} 2" if a == b else b
    with pytest.raises(ValueError) as error:
        program(setting(own(a), own(b)), split(steps=4, batch=6), KEY)
    text = str(error.value)
    if names == ("fot", "fot"):  # found before kernels are looked at
        assert text.startswith("fot and fot 2 both replace the gradient")
    else:
        assert text.startswith(f"{a} and {other} both decide how "), text
        assert "w2" in text
    assert "\n" not in text


TOGETHER = ("gpm osft", "osft gpm", "trgp cuber", "osft trgp", "coso osft", "fot coso", "gpm gpm")


@pytest.mark.parametrize("names", [x.split() for x in TOGETHER])
def test_methods_of_different_kernels_go_together(names):
    stream = split(steps=4, batch=6)
    chosen = setting(own(names[0], "w1"), own(names[1], "w2|out"))
    jax.eval_shape(program, chosen, stream, KEY)


# -- settings --------------------------------------------------------------------------------------


def test_every_regular_expression_is_checked_where_settings_are():
    from inspect import signature

    words = ("project", "target", "leaves", "free", "train", "pattern")
    found = 0
    for name in methods:
        for argument in words:
            if argument not in signature(methods[name]).parameters:
                continue
            found += 1
            with pytest.raises(ValueError, match=rf"^{name}: {argument} must be a regular expr"):
                methods[name](**{argument: "("})
    assert found > 15


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: cuber(correlation=5), r"cuber: correlation must be a number in \[-1, 1\], got 5"),
        (lambda: gpm(project=3), "gpm: project must be a regular expression, got 3"),
        (lambda: osft(target=None), "osft: target must be a regular expression, got None"),
        (
            lambda: lora(ranks=[("(", 4)]),
            r"lora: ranks must be a list, each \(a regular expression",
        ),
        (lambda: lora(alphas=[("a", 0)]), "lora: alphas must be a list"),
    ],
)
def test_settings_out_of_their_ranges(given, message):
    with pytest.raises(ValueError, match=message):
        given()


def test_settings_within_their_ranges():
    lora(ranks=[("mlp", 4), ["attn/.*", 2]], alphas=(("(a|b)", 0.5),))
    assert cuber(correlation=-1) == cuber(correlation=-1.0)
    gpm(free=None), trgp(free="^head/"), olora(train=None), supsup(), fot(), coso()


SGD = sgd(1.0)


@pytest.mark.parametrize(
    ("optimiser", "fits"),
    [
        (SGD, True),
        (sgd(0.1), False),
        (sgd(1.0, momentum=0.9), False),
        (sgd(1.0, weight_decay=0.1), False),
        (sgd(1.0, clip=1.0), False),
        (adamw(1.0), False),
        (by_name((("w.", SGD), (".*", adamw()))), True),
        (by_name((("w.", {"sgd": {"rate": 1}}), (".*", "adam"))), True),
        (by_name((("w1", SGD), (".*", adamw()))), False),
        (by_name(((".*", adamw()), ("w.", SGD))), False),
        (by_name(((".*", by_name((("w.", SGD), (".*", sgd(0.1))))),)), True),
    ],
)
def test_coso_takes_the_gradient_and_no_proposal_of_another_optimiser(optimiser, fits):
    chosen = setting(own("coso", "^w"), optimiser=optimiser)
    made = lambda: jax.eval_shape(lambda key: create(chosen, split(batch=6), key), KEY)
    if fits:
        assert set(made().memory[0]) == {"w1", "w2"}
        return
    with pytest.raises(
        ValueError, match=r"^coso makes the steps of (w1, )?w2 itself\. .* sgd\(1"
    ) as e:
        made()
    assert "\n" not in str(e.value)
    assert "Tracer" not in str(e.value)
