"""OnPro against the authors' code: terms, mixtures, weights over two tasks; 1e-11, slots exact."""

from __future__ import annotations

import importlib
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_streams import close, given, load

from jaxmerge.continual import buffers, contrast, stages
from jaxmerge.continual.memories import feedback
from jaxmerge.continual.problems import classification
from jaxmerge.continual.registry import optimisers
from jaxmerge.continual.stream_records import Groups, Setup, Stream

module = importlib.import_module("jaxmerge.continual.methods.onpro")  # the name is the method's too


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


@pytest.mark.parametrize("case", range(4))
def test_mixtures(case, x64):
    z = load("onpro", "prototypical_feedback")
    of = lambda name: z[f"c{case}_{name}"]
    size, rate = int(of("batch_size")), float(of("base_rate"))
    kept = int(rate * size)
    base, lam = of("draw_base_index").astype(int), of("draw_mixup_lambda")
    mixed = of("draw_mixup_pairs").astype(int)
    partner = mixed if len(mixed) else np.arange(kept)
    by = lam if len(mixed) else np.zeros(kept)
    inputs = feedback.between(of("batch_x"), base, base[partner], jnp.asarray(by))
    labels = of("batch_y")[base], of("batch_y")[base[partner]]
    if kept < size:
        prototypes = of("prototypes")
        there = (prototypes != 0).any(1)
        a, b = feedback.pairs(len(prototypes))
        real = there[a] & there[b]
        assert np.array_equal(np.stack([a, b], 1)[real], of("pair_classes"))
        rank, rounded = np.full(len(a), 99.0), of("pair_count_rounded")
        if int(of("pair_count_difference")):
            able = np.flatnonzero(real)[rounded > 0]
            rank[able[of("draw_fix_permutation").astype(int)]] = np.arange(len(able))
        counts = feedback.pair_counts(
            jnp.asarray(prototypes), jnp.asarray(there), size - kept, jnp.asarray(rank)
        )
        close(counts[real], of("pair_count"), 0)
        assert (np.asarray(counts)[~real] == 0).all()
        first, second = (of(f"draw_{k}_index").astype(int) for k in ("first", "second"))
        pair = np.repeat(np.arange(len(a)), counts)
        replaced = of("draw_replacement_class")
        for k, (index, classes) in enumerate(((first, a), (second, b))):
            other = np.repeat(replaced[:, k], np.asarray(counts)[np.asarray(counts) > 0])
            wanted = np.where(other >= 0, other, classes[pair])
            assert np.array_equal(of("buffer_y")[index], wanted)
        more = feedback.between(of("buffer_x"), first, second, jnp.asarray(of("draw_pair_lambda")))
        inputs = jnp.concatenate([inputs, more])
        by = np.concatenate([by, of("draw_pair_lambda")])
        labels = (
            np.concatenate([labels[0], of("buffer_y")[first]]),
            np.concatenate([labels[1], of("buffer_y")[second]]),
        )
    close(inputs, of("out_x"), 1e-12)
    close(np.stack([*labels, by], 1), of("out_y_mix"), 1e-12)
    close((1 - by) * labels[0] + by * labels[1], of("out_y"), 1e-12)


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
    replay = int(z["buffer_batch"])
    method = module.onpro(
        int(z["buffer_capacity"]), replay, temperature=float(z["ins_t"]),
        prototype_temperature=float(z["proto_t"]), similarity=float(z["sim_lambda"]),
        projection=3,
    )  # fmt: skip
    betas = float(z["beta1"]), float(z["beta2"]), float(z["weight_decay"])
    setup = Setup(model, classification(metrics=("accuracy",), view=view),
                  adam_with_decay(float(z["lr"]), *betas), (method,))  # fmt: skip
    state = stages.create(setup, stream, jax.random.key(0))
    start = {module.KERNEL: z["init_simclr_weight"].T, module.BIAS: z["init_simclr_bias"]}
    state = state._replace(params={**state.params, **{n: jnp.asarray(p) for n, p in start.items()}})
    fill = lambda x: jnp.asarray(np.concatenate([x, np.zeros((replay - len(x), *x.shape[1:]),
                                                             x.dtype)]))  # fmt: skip
    moments = None
    for t in range(2):
        state = stages.begin(setup, stream, state, jnp.int32(t))
        state = state if moments is None else state._replace(moments=moments)
        for b in range(3):
            at = lambda name, t=t, b=b: z[f"t{t}_b{b}_{name}"]
            which = "buffer_batch" if t else "buffer"
            held, labels = (at(f"{which}_{k}{'' if t else '_before'}") for k in "xy")
            held = images(held)
            there = (np.arange(replay) < len(held)) * 1.0

            def draw(buffer, key, count, held=held, labels=labels, there=there):
                batch = buffer["rows"]._replace(
                    inputs=fill(held), targets=fill(labels), task=jnp.zeros(replay, jnp.int32),
                    weight=jnp.asarray(there),
                )  # fmt: skip
                return jnp.arange(replay), batch

            three = np.stack([labels, labels, 0 * labels], 1) * 1.0
            mixed = held
            if t and b:
                mixed, three = images(at("mixed_x")), at("mixed_y3")
            three = fill(three)
            fed = feedback.Mixed(
                fill(mixed), three[:, 0].astype(int), three[:, 1].astype(int), three[:, 2],
                jnp.asarray((np.arange(replay) < len(mixed)) * 1.0),
            )  # fmt: skip
            offsets = itertools.cycle(
                [int(at(f"draw_feature_offset_{k}")) if t or k == "new" else 0
                 for k in ("new", "buffer")]
            )  # fmt: skip
            with (
                mock.patch.object(module, "draw", draw),
                mock.patch.object(module, "offset", lambda *a, offsets=offsets: next(offsets)),
                mock.patch.object(feedback, "feedback", lambda *a, fed=fed: fed),
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
