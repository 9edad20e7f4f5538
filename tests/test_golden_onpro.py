"""OnPro against the authors' code: terms, mixtures, weights over two tasks; 1e-11, slots exact."""

from __future__ import annotations

import contextlib
import importlib
import itertools
from functools import partial
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_streams import close, given, load

from jaxmerge.continual import buffers, contrast, stages
from jaxmerge.continual.memories import feedback
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.registry import optimisers
from jaxmerge.continual.stream_records import Groups, Setup, Stream
from jaxmerge.continual.streams import split

module = importlib.import_module("jaxmerge.continual.methods.onpro")  # the name is the method's too


@pytest.mark.parametrize("shape", [(6,), (4, 2), (2, 4, 3), (4, 4)])
def test_what_can_be_turned(shape):
    x, y = np.zeros((12, *shape), np.float32), np.arange(12) % 4
    stream = split((x, y), (x, y), [[0, 1], [2, 3]])
    network = given((np.ones((5, x[0].size)), np.ones((4, 5))))
    flat = classification(view=lambda stored, info, task, key: stored.reshape(len(stored), -1))
    create = lambda *methods: jax.eval_shape(
        stages.create, Setup(network, flat, sgd(0.1), methods), stream, jax.random.key(0)
    )
    create(module.onpro(9, projection=3, rotations=False))
    if shape == (4, 4):
        assert create(module.onpro(9, projection=3)).memory[0].buffer["rows"].inputs.shape[0] == 9
    else:
        found = rf"\[B, n, n, ...\]; found \[10, {shape[0]}.*\]: give rotations=False"
        with pytest.raises(ValueError, match=found):
            create(module.onpro(9, projection=3))


@pytest.mark.parametrize("case", range(4))
def test_prototype_contrast(case, x64):
    z = load("onpro", "losses")
    of = lambda name: z[f"ope{case}_{name}"]
    labels, classes = jnp.asarray(of("labels")), int(of("n_classes_so_far"))

    def loss(one, two):
        means = [contrast.prototypes(x, labels, jnp.ones(len(labels)), classes) for x in (one, two)]
        value = contrast.between(means[0][0], means[1][0], means[0][1], float(of("temperature")))
        return value, (means[0][0], means[1][0])

    (value, means), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        jnp.asarray(of("z1")), jnp.asarray(of("z2"))
    )
    close(value, of("loss"), 1e-12)
    for k in (0, 1):
        close(means[k], of(f"proto{k + 1}"), 1e-12)
        close(grads[k], of(f"grad_z{k + 1}"), 1e-12)


@pytest.mark.parametrize("case", range(4))
def test_instance_contrast(case, x64):
    z = load("onpro", "losses")
    of = lambda name: z[f"ins{case}_{name}"]
    labels, t = jnp.asarray(of("labels")), float(of("temperature"))
    for kind, new in (("excl_diag", True), ("incl_diag", False)):
        loss = lambda s, new=new: module.instance(s, labels, jnp.ones(len(labels)), t, new)
        value, grad = jax.value_and_grad(loss)(jnp.asarray(of("sim")))
        close(value, of(f"{kind}_loss"), 1e-11)
        close(grad, of(f"{kind}_grad"), 1e-9)


def test_rotations(x64):
    z = load("onpro", "losses")
    images = np.moveaxis(z["rotation_x"], 1, -1)
    close(module.rotated(jnp.asarray(images)), np.moveaxis(z["rotation_out"], 1, -1), 0)


REAL = feedback.feedback


def fed(values, *given):
    """`feedback.feedback` itself, what it draws replaced by `values`, one for each of its keys."""
    drawn = lambda k, shape=(): jnp.broadcast_to(jnp.asarray(values[k], float), shape)
    with (
        mock.patch.object(jax.random, "split", lambda key, many: list(range(many))),
        mock.patch.object(jax.random, "uniform", drawn),
        mock.patch.object(jax.random, "beta", lambda k, a, b, shape: drawn(k, shape)),
    ):
        return REAL(*given)


def draws(n, partner, by, rank, wanted, pair, examples, mixes, labels):
    """What has to be drawn for the mixtures of a file.

    Args:
        n: size of a replay batch, of which the first len(by) are not of pairs.
        partner: of each of these, which of them it is mixed with; by: by how much.
        rank: [P], of all pairs of classes.
        wanted, examples: [pairs, 2], for each mixture of pairs the classes, and the examples.
        pair: [pairs], which of all pairs it is of; mixes: [pairs], by how much.
        labels: [M], of the memory.
    """
    order, most = np.full(n, 2.0), len(by)
    order[partner] = np.arange(most) / n
    wide = lambda x, first: np.concatenate([np.zeros(first), x, np.zeros(n - first - len(x))])

    def place(k):
        u = np.zeros(len(examples))
        for i, (kind, example) in enumerate(zip(wanted[:, k], examples[:, k], strict=True)):
            members = np.flatnonzero(labels == kind)
            members = members if len(members) else np.arange(len(labels))
            u[i] = (np.flatnonzero(members == example)[0] + 0.5) / len(members)
        return wide(u, most)

    no = np.ones(len(rank))
    no[pair[mixes > 0]] = 0
    return [
        order, 0.0 if np.any(by) else 1.0, wide(1.0 * (by == 0), 0), wide(by / 0.6, 0), rank,
        place(0), place(1), no if len(no) else np.ones(1), wide(mixes, most),
    ]  # fmt: skip


@pytest.mark.parametrize("case", range(4))
def test_mixtures(case, x64):
    z = load("onpro", "prototypical_feedback")
    of = lambda name: z[f"c{case}_{name}"]
    size, base, p = int(of("batch_size")), float(of("base_rate")), float(of("mixup_p"))
    first, prototypes = of("draw_base_index").astype(int), of("prototypes")
    there = (prototypes != 0).any(1)
    a, b = feedback.pairs(len(prototypes))
    rank, pair, lam = np.full(len(a), 99.0), np.zeros(0, int), np.zeros(0)
    wanted = examples = np.zeros((0, 2), int)
    if len(first) < size:
        real = np.flatnonzero(there[a] & there[b])
        assert np.array_equal(np.stack([a, b], 1)[real], of("pair_classes"))
        if int(of("pair_count_difference")):
            able = real[of("pair_count_rounded") > 0]
            rank[able[of("draw_fix_permutation").astype(int)]] = np.arange(len(able))
        counts = feedback.pair_counts(
            jnp.asarray(prototypes), jnp.asarray(there), size - len(first), jnp.asarray(rank)
        )
        close(counts[real], of("pair_count"), 0)
        assert int(counts.sum()) == size - len(first)
        many = of("pair_count").astype(int)
        pair, wanted = np.repeat(real, many), np.repeat(of("pair_classes"), many, 0)
        examples = np.stack([of(f"draw_{k}_index") for k in ("first", "second")], 1).astype(int)
        lam = of("draw_pair_lambda")
    mixed = of("draw_mixup_pairs").astype(int)
    partner = mixed if len(mixed) else np.arange(len(first))
    values = draws(
        size, partner, of("draw_mixup_lambda"), rank, wanted, pair, examples, lam, of("buffer_y")
    )
    held = len(of("buffer_y"))  # the batch stands behind the memory: no pair is taken from it
    rest = np.setdiff1d(np.arange(size), first)
    out = fed(
        values, *(jnp.asarray(np.concatenate([of(f"buffer_{k}"), of(f"batch_{k}")])) for k in "xy"),
        jnp.asarray(1.0 * (np.arange(held + size) < held)),
        jnp.asarray(held + np.concatenate([first, rest])), jnp.int32(size), jnp.int32(size),
        jnp.asarray(prototypes), jnp.asarray(there), None, base, p,
    )  # fmt: skip
    assert out.weight.tolist() == [1] * size
    close(out.inputs, of("out_x"), 1e-12)
    close(np.stack([out.one, out.two, out.by], 1), of("out_y_mix"), 1e-12)
    close((1 - out.by) * out.one + out.by * out.two, of("out_y"), 1e-12)


def test_counts_are_made_up_where_they_lack():
    """Three equal pairs, 4 mixtures: one each, and one more for the first in the random order."""
    points = jnp.asarray(np.vstack([np.eye(3), np.zeros(3)]))
    there = jnp.array([True, True, True, False])
    rank = jnp.array([0.7, 0.2, 0.0, 0.9, 0.0, 0.0])  # of pairs (0, 3), (1, 3), (2, 3): not there
    counts = feedback.pair_counts(points, there, 4, rank)
    assert counts.tolist() == [1, 2, 0, 1, 0, 0]


@pytest.mark.parametrize("case", range(3))
def test_reservoir_of_batches(case):
    z = load("onpro", "reservoir_batchwise")
    of = lambda name: z[f"c{case}_{name}"]
    size, batch, many = int(of("capacity")), int(of("batch")), len(of("labels"))
    buffer = buffers.empty(size, jnp.zeros((1,), int))
    for k, first in enumerate(range(0, many, batch)):
        u = of("draw_uniform")[k]
        highs = []

        def drawn(key, shape, low, high, u=u, highs=highs):
            highs.append(np.asarray(high))
            return jnp.asarray(np.floor(np.nan_to_num(u)).astype(int))

        with mock.patch.object(jax.random, "randint", drawn):
            rows = jnp.arange(first, first + batch)
            buffer = buffers.reservoir(buffer, rows, jnp.ones(batch), jax.random.key(0), True)
        assert (np.nan_to_num(u) < highs[0]).all()
        held = np.where(np.arange(size) < int(buffer["met"]), buffer["rows"], -1)
        close(held, of("content_after_each_batch")[k], 0)


@optimisers.register
def adam_with_decay(rate: float, b1: float, b2: float, decay: float):
    return optax.chain(optax.add_decayed_weights(decay), optax.adam(rate, b1, b2))


def view(stored, info, task, key):
    x = stored.reshape(len(stored), -1)
    return x if key is None else 0.8 * x + 0.1


def holding(memory, x, y):
    """The memory with these examples in its buffer."""
    rows = memory.buffer["rows"]
    put = lambda old, new: old.at[: len(new)].set(new)
    rows = rows._replace(
        inputs=put(rows.inputs, x), targets=put(rows.targets, y), weight=put(rows.weight, 0 * y + 1)
    )
    return memory._replace(buffer={"rows": rows, "met": jnp.int32(len(y))})


def found(x, y, mixed, three, classes, base=0.75):
    """The places that were drawn from a memory [x, y], and `draws` that lead to `mixed`."""
    flat, n = x.reshape(len(x), -1), len(mixed)
    made = lambda i, j, by: (1 - by) * flat[i] + by * flat[j]
    pairs = [
        next(
            (i, j)
            for i, j in itertools.product(range(len(x)), repeat=2)
            if (y[i], y[j]) == (one, two) and np.allclose(made(i, j, by), row, rtol=0, atol=1e-12)
        )
        for row, (one, two, by) in zip(mixed.reshape(n, -1), three, strict=True)
    ]
    kept = int(base * n)
    first, partner = np.array(pairs[:kept]).T
    order = np.concatenate([first, np.setdiff1d(np.arange(len(x)), first)])
    a, b = feedback.pairs(classes)
    examples = np.array(pairs[kept:])
    wanted = y[examples]
    pair = np.array([np.flatnonzero((a == i) & (b == j))[0] for i, j in wanted])
    values = draws(
        n, np.argsort(first)[np.searchsorted(np.sort(first), partner)], three[:kept, 2],
        np.zeros(len(a)), wanted, pair, examples, three[kept:, 2], y,
    )  # fmt: skip
    return (jnp.asarray(order), jnp.ones(len(x), bool)), values


def test_two_tasks(x64):
    z = load("onpro", "two_task_run")
    images = lambda x: np.moveaxis(x, 1, -1)
    xs = np.stack([[images(z[f"t{t}_b{b}_x"]) for b in range(3)] for t in range(2)])
    ys = np.stack([[z[f"t{t}_b{b}_y"] for b in range(3)] for t in range(2)])
    rows = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    own = np.repeat(np.eye(2, dtype=bool), 2, axis=1)
    x = xs.reshape(24, *xs.shape[3:])
    groups = Groups(x[:1], ys.reshape(-1)[:1], np.zeros((1, 1), np.int32), np.ones((1, 1)),
                    np.zeros(1, np.int32), {"own": own[:1]})  # fmt: skip
    origin = np.broadcast_to(np.arange(2, dtype=np.int32)[:, None, None], rows.shape)
    stream = Stream(x, ys.reshape(-1), rows, origin, np.ones(rows.shape), {"own": own}, groups)
    model = given((z["init_f_weight"], z["init_linear_weight"]),
                  (z["init_f_bias"], z["init_linear_bias"]), "tanh")  # fmt: skip
    method = module.onpro(
        int(z["buffer_capacity"]), int(z["buffer_batch"]), temperature=float(z["ins_t"]),
        prototype_temperature=float(z["proto_t"]), similarity=float(z["sim_lambda"]),
        projection=3,
    )  # fmt: skip
    betas = float(z["beta1"]), float(z["beta2"]), float(z["weight_decay"])
    setup = Setup(model, classification(metrics=("accuracy",), view=view),
                  adam_with_decay(float(z["lr"]), *betas), (method,))  # fmt: skip
    state = stages.create(setup, stream, jax.random.key(0))
    start = {module.KERNEL: z["init_simclr_weight"].T, module.BIAS: z["init_simclr_bias"]}
    state = state._replace(params={**state.params, **{n: jnp.asarray(p) for n, p in start.items()}})
    moments = None
    for t in range(2):
        state = stages.begin(setup, stream, state, jnp.int32(t))
        state = state if moments is None else state._replace(moments=moments)
        for b in range(3):
            at = lambda name, t=t, b=b: z[f"t{t}_b{b}_{name}"]
            held, labels = images(at("buffer_x_before")), at("buffer_y_before")
            state = state._replace(memory=(holding(state.memory[0], held, labels),))
            replaced = contextlib.nullcontext()
            if t and b:  # the first step of a task mixes nothing
                order, values = found(held, labels, images(at("mixed_x")), at("mixed_y3"), 4)
                replaced = mock.patch.multiple(
                    module,
                    feedback=SimpleNamespace(feedback=partial(fed, values)),
                    buffers=SimpleNamespace(
                        **vars(buffers) | {"distinct_places": lambda *_, o=order: o}
                    ),
                )
            offsets = itertools.cycle(
                [int(at(f"draw_feature_offset_{k}")) if t or k == "new" else 0
                 for k in ("new", "buffer")]
            )  # fmt: skip
            with (
                replaced,
                mock.patch.object(module, "offset", lambda *a, offsets=offsets: next(offsets)),
            ):
                part = tuple(jnp.asarray(x)[t, b : b + 1] for x in stream[2:5])
                state, losses = stages.train(setup, stream, state, jnp.int32(t), part, jnp.int32(3))
            close(losses[0], at("loss"), 1e-10)
        moments = state.moments  # the authors' optimiser goes on
        state = stages.end(setup, stream, state, jnp.int32(t))
        names = {"f": "layer_0", "simclr": "projection", "linear": "head"}
        for n, leaf in names.items():
            close(state.params[f"{leaf}/kernel"].T, z[f"t{t}_after_{n}_weight"], 1e-11)
            close(state.params[f"{leaf}/bias"], z[f"t{t}_after_{n}_bias"], 1e-11)
        close(state.memory[0].prototypes[: 2 + 2 * t], z[f"t{t}_prototypes_after"], 1e-11)
