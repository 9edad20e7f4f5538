"""Which kernels methods project, that no two project one, and that their bases stay orthonormal."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_streams import KEY, split

import jaxmerge as jm
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
from jaxmerge.continual.methods.fot import join, sketch
from jaxmerge.continual.methods.osft import FREE, FROZEN, cut, free_part, rebuilt
from jaxmerge.continual.optimisers import adamw, by_name, sgd
from jaxmerge.continual.parts import build
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import methods, models
from jaxmerge.continual.stages import create, train
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.wraps.layers import layers_apart
from jaxmerge.continual.wraps.scales import SPACE
from jaxmerge.models.mlp.learner import mlp

of_fot = sys.modules[join.__module__]
SPACES = ("gpm", "trgp", "cuber", "fot", "coso", "osft")
WRAPS = ("lora", "olora", "supsup")


@models.register
def network(names: tuple = ("w1", "w2", "out"), stack: int = 0, inputs: int = 6) -> Model:
    """A convolution of 2 x 2 over `inputs` = height x 3, a dense layer, a head, of any names."""
    conv, dense, head = names

    def init(key):
        a, b, c = jax.random.split(key, 3)
        draw = lambda k, *shape: jax.random.normal(k, shape) / np.sqrt(np.prod(shape[:-1]))
        inner = draw(b, stack, 10, 10) if stack else draw(b, 10, 10)
        return {
            conv: draw(a, 2, 2, 1, 5), dense: inner, head: draw(c, 10, 6),
            "text/position": jnp.zeros((4, 5)), "norm/scale": jnp.ones(10),
        }  # fmt: skip

    def apply(params, x, task):
        picture = x.reshape(x.shape[0], -1, 3, 1)
        h = jax.lax.conv_general_dilated(
            picture, params[conv], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(x.shape[0], -1)  # fmt: skip
        if stack:
            h, _ = jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), h, params[dense])
        else:
            h = jax.nn.relu(h @ params[dense])
        return Outputs((h * params["norm/scale"]) @ params[head], h)

    return Model(init, apply)


def own(name, pattern=".*", **more):
    """A method by name, of kernels of a pattern."""
    argument = "project" if name in ("gpm", "trgp", "cuber", "fot") else "target"
    if name in ("gpm", "trgp", "cuber"):
        more = {"examples": 12, "threshold": 0.9, **more}
    if name == "coso":
        more = {"rank": 2, "sketch": 4, **more}
    if name == "fot":
        more = {"clients": 2, "batch": 2, **more}
    return methods.get(name)(**{argument: pattern}, **more)


@models.register
def taken_apart(stack: int = 4, scanned: bool = True) -> Model:
    """`network` with a leaf for every layer, which it reads as a stack in a scan or one by one."""
    apart = layers_apart(network(("conv", "layers", "head"), stack).build(), "layers")
    if scanned:
        return apart

    def apply(params, x, task):
        picture = x.reshape(x.shape[0], -1, 3, 1)
        h = jax.lax.conv_general_dilated(
            picture, params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(x.shape[0], -1)  # fmt: skip
        for i in range(stack):
            h = jax.nn.relu(h @ params[f"layers/{i}"])
        return Outputs((h * params["norm/scale"]) @ params["head"], h)

    return Model(apart.init, apply)


def setting(*chosen, model=None, optimiser=None):
    if optimiser is None:  # fot averages, coso makes its steps of gradients
        names = [m.factory.__name__ for m in chosen]
        optimiser = sgd(1.0 if {"fot", "coso"} & {*names} else 0.05)
    return Setup(model or network(), classification(), optimiser, chosen)


def orthonormal(columns, rank):
    """The largest deviation of M'M from the identity on so many columns, zero elsewhere."""
    there = np.diag((np.arange(columns.shape[1]) < rank).astype(float))
    columns = np.asarray(columns, float)
    return np.abs(columns.T @ columns - there).max()


def inputs_of(rng, n, d, rank, span=None):
    """Rows [n, d] of low rank whose directions differ in strength by a factor 1,000."""
    span = rng.normal(size=(rank, d)) if span is None else span
    return jnp.float32((rng.normal(size=(n, rank)) * np.geomspace(1, 1e-3, rank)) @ span)


grow, space = jax.jit(basis.grow), jax.jit(basis.space)


@jax.jit
def joined(m, x, z):
    """The basis with what the sketch of one client adds, at a threshold of 1."""
    y, ratio = sketch(m, x, z)
    return join(m, y[None], ratio[None], jnp.ones(1), 1.0)


# -- bases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d", "rank"), [(20, 6, 2), (40, 60, 8), (2000, 33, 5)])
@pytest.mark.parametrize("way", ["grow", "space", "join"])
def test_no_rounding_joins_a_basis_at_a_threshold_of_one(way, n, d, rank):
    rng = np.random.default_rng(n + d)
    common = rng.normal(size=(rank, d))
    m = basis.empty(d)
    for t in range(6):
        x = inputs_of(rng, n, d, rank, common if t < 4 else None)
        before = int(m.rank)
        if way == "grow":
            m = grow(m, x, basis.due(0.97, 0.1, t + 1), False)
        elif way == "space":
            m, s = space(m, x, basis.due(1.0, 0.003, t), False, False)
            taken = int(jnp.sum(jnp.linalg.norm(s, axis=0) > 0.5))
            assert orthonormal(s, taken) < 1e-5
        else:
            z = jnp.float32(rng.normal(size=(n, d)))
            m = joined(m, x, z)
        assert orthonormal(m.vectors, int(m.rank)) < 1e-5, t
        new = {True: rank, False: 0}[t == 0 or t >= 4]
        assert int(m.rank) == min(before + new, d), t
        rest = x - (x @ m.vectors) @ m.vectors.T
        assert jnp.linalg.norm(rest) < 1e-4 * jnp.linalg.norm(x)


def test_a_threshold_that_grows_stops_at_one():
    x = inputs_of(np.random.default_rng(0), 30, 12, 4)
    for growth in (0.003, 0.1, 5.0):
        share = basis.due(0.97, growth, jnp.int32(11))
        assert float(share) <= 1
        assert int(basis.grow(basis.empty(12), x, share, False).rank) == 4


def test_beyond_the_capacity_the_weakest_directions_are_left_out():
    x = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    m = basis.grow(basis.empty(3, 2), x, 1.0, False)
    np.testing.assert_allclose(np.abs(m.vectors), np.eye(3)[:, :2], atol=1e-6)
    later = basis.grow(m, jnp.eye(3) * 5, 1.0, False)
    assert int(later.rank) == 2
    np.testing.assert_allclose(later.vectors, m.vectors)


@pytest.mark.parametrize("name", SPACES)
def test_bases_of_a_stream_of_low_rank_are_orthonormal(name):
    rng = np.random.default_rng(3)
    turn = rng.normal(size=(6, 60))
    stream = split(tasks=4, steps=6, batch=6, classes=20)
    stream = stream._replace(
        inputs=np.float32(stream.inputs @ turn),
        groups=stream.groups._replace(inputs=np.float32(stream.groups.inputs @ turn)),
    )
    optimiser = sgd(1.0) if name in ("fot", "coso") else adamw(0.01)
    more = {"threshold": 1.0} if name in ("gpm", "trgp", "cuber", "fot", "coso") else {"ratio": 0.4}
    network = mlp(60, (40,), 20, bias=False)
    state = jax.jit(program)(
        Setup(network, classification(), optimiser, (own(name, **more),)), stream, KEY
    ).state
    if name == "osft":
        for n in ("layer_0/kernel", "head/kernel"):
            held, free = (state.params[n + f"{p}left"] for p in (FROZEN, FREE))
            assert held.shape[1] == {"l": 16, "h": 8}[n[0]]
            assert orthonormal(held, held.shape[1]) < 1e-5
            assert jnp.abs(held.T @ free).max() < 1e-5
            held, free = (state.params[n + f"{p}right"].T for p in (FROZEN, FREE))
            assert orthonormal(held, held.shape[1]) < 1e-5
            assert jnp.abs(held.T @ free).max() < 1e-5
        return
    is_basis = lambda x: isinstance(x, basis.Basis)
    bases = [x for x in jax.tree.leaves(state.memory, is_leaf=is_basis) if is_basis(x)]
    assert len(bases) == 2
    for m in bases:
        assert int(m.rank) > 0
        assert orthonormal(m.vectors, int(m.rank)) < 1e-5
        if m.vectors.shape[0] == 60:
            assert int(m.rank) <= 6
    if name in ("trgp", "cuber"):
        for n in ("layer_0/kernel", "head/kernel"):
            for s in state.params[n + SPACE]:
                assert orthonormal(s, int(jnp.sum(jnp.linalg.norm(s, axis=0) > 0.5))) < 1e-5
    if name == "cuber":
        for m in state.memory[0].values():
            for off in m.off:
                gram = np.asarray(off.T @ off)
                assert np.abs(gram - np.diag(np.round(np.diag(gram)))).max() < 1e-5


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


@pytest.mark.parametrize("name", SPACES)
def test_a_stack_taken_apart_has_a_subspace_a_layer(name):
    chosen, stream = setting(own(name), model=taken_apart(4)), split(batch=6)
    state = jax.eval_shape(program, chosen, stream, KEY).state
    cut = {n.removesuffix(f"{FREE}scale") for n in state.params if n.endswith(f"{FREE}scale")}
    layers = {f"layers/{i}" for i in range(4)}
    assert (cut if name == "osft" else set(state.memory[0])) == {"conv", "head", *layers}


def test_a_stack_taken_apart_learns_and_merges_as_layers_do():
    stream, ended = split(steps=4, batch=6), []
    for scanned in (True, False):
        chosen = setting(own("gpm", "layers", free="."), model=taken_apart(2, scanned))
        result = jax.jit(program)(
            dataclasses.replace(chosen, merges={"MagMax": jm.magmax()}), stream, KEY
        )
        ended.append((result.state.params, result.state.memory, result.R))
    assert int(ended[0][1][0]["layers/1"].rank) > 0
    for one, other in zip(*map(jax.tree.leaves, ended), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_what_is_no_stack_is_refused_by_name():
    model = Model(lambda key: {"w": jnp.ones((2, 2)), "s": jnp.float32(1)}, lambda p, x, t: x)
    with pytest.raises(ValueError, match=r"^layers_apart: 'q' .*found none of \['s', 'w'\]\."):
        layers_apart(model, "q")
    with pytest.raises(ValueError, match=r"found s without layers\."):
        layers_apart(model, ".*")


def shaped(**shapes):
    """A model of leaves of these shapes."""
    return Model(lambda key: {n.replace("_", "/"): jnp.ones(s) for n, s in shapes.items()}, len)


@pytest.mark.parametrize(
    ("model", "pattern", "message"),
    [
        (shaped(layers_kernel=(3, 4, 4), text_kernel=(2, 4, 4)), "kernel", r", of different numb"),
        (shaped(one_kernel=(8, 16), two_kernel=(8, 16)), ".*", r"\[8, 16\], no stack of kernels"),
        (shaped(w=(8, 16)), "(", r"stacks must be a regular expression, got '\('\.$"),
        (mlp(8, (16, 16), 3), "layer", r"layer_0/kernel \[8, 16\].*, of different numbers\.$"),
    ],
)
def test_what_cannot_be_stacks_is_one_line(model, pattern, message):
    with pytest.raises(ValueError, match=r"^layers_apart: .*" + message) as error:
        layers_apart(model, pattern)
    assert "\n" not in str(error.value)


def test_stacks_of_vectors_are_taken_apart_beside_kernels_and_alone():
    model = shaped(layers_kernel=(3, 4, 5), layers_bias=(3, 5), layers_gain=(3, 4), head=(5, 2))
    for pattern, many in (("^layers", 9), ("bias", 3), ("kernel|gain", 6)):
        params = jax.eval_shape(layers_apart(model, pattern).init, KEY)
        assert sum(n[-1] in "012" for n in params) == many


def test_a_registered_model_is_taken_apart_as_one():
    spec = layers_apart(network(("conv", "layers", "head"), 4), "^layers")
    assert spec == layers_apart(network(("conv", "layers", "head"), 4), "^layers")
    assert repr(spec).startswith("layers_apart(model=network(")
    state = jax.eval_shape(create, setting(own("gpm", "layers"), model=spec), split(batch=6), KEY)
    assert set(state.memory[0]) == {f"layers/{i}" for i in range(4)}


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
