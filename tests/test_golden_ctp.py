"""CTP against the authors' code: losses, teacher, queues and weights over two tasks; 1e-12."""

from __future__ import annotations

import importlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, load

import jaxmerge as jm
from jaxmerge.continual import stages
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import pairs
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models
from jaxmerge.continual.stream_records import Groups, Setup, Stream

module = importlib.import_module("jaxmerge.continual.methods.ctp")  # the name is the method's too
MODULES = ("visual_encoder", "vision_proj", "text_mlm_encoder__bert", "text_mlm_encoder__out",
           "text_proj")  # fmt: skip


@models.register
def stand_in(tokens: int, start: dict) -> Model:
    """Linear encoders, projections, and logits of masked tokens."""

    def dense(params, name, x):
        return x @ params[f"{name}/kernel"] + params[f"{name}/bias"][None]

    def apply(params, x, task):
        image, text = (dense(params, n, y) for n, y in zip(MODULES[0:3:2], x, strict=True))
        words = dense(params, MODULES[3], text + image)[:, None]
        words = words * (jnp.arange(tokens) + 1)[None, :, None] / 3
        aux = {"image": dense(params, MODULES[1], image), "text": dense(params, MODULES[4], text)}
        return Outputs(words, image, {**aux, "tokens": words})

    return Model(lambda key: dict(start), apply)


def leaves(z, prefix):
    """Leaves of all modules: kernels [in, out]."""
    return {
        f"{m}/{leaf}": jnp.asarray(z[f"{prefix}{m}__{torch}"].T)
        for m in MODULES
        for leaf, torch in (("kernel", "weight"), ("bias", "bias"))
    }


@pytest.mark.parametrize("name", ["two_tasks", "batch_of_one"])
def test_two_tasks(name, x64):
    z = load("ctp", name)
    steps, size = sum(f"t0_s{s}_terms" in z for s in range(9)), int(z["batch"])
    each = lambda key: np.stack([[z[f"t{t}_s{s}_{key}"] for s in range(steps)] for t in range(2)])
    flat = lambda x: x.reshape(-1, *x.shape[3:])
    inputs, labels = (flat(each("image")), flat(each("caption"))), flat(each("token_labels"))
    rows = np.arange(2 * steps * size, dtype=np.int32).reshape(2, steps, size)
    groups = Groups(inputs, labels, np.zeros((1, 1), np.int32), np.ones((1, 1)),
                    np.zeros(1, np.int32), {"own": np.ones((1, 1), bool)})  # fmt: skip
    origin = np.broadcast_to(np.arange(2, dtype=np.int32)[:, None, None], rows.shape)
    info = {"own": np.ones((2, 1), bool)}
    stream = Stream(inputs, labels, rows, origin, np.ones(rows.shape), info, groups)
    method = module.ctp(
        float(z["momentum_first_task"]), float(z["momentum_later_tasks"]), int(z["queue_size"]),
        float(z["temperature"]),
    )  # fmt: skip
    model = stand_in(labels.shape[1], leaves(z, "t0_start_"))
    setup = Setup(model, pairs(float(z["temperature"])), sgd(float(z["lr"])), (method,))
    queues = [jnp.asarray(z[f"{k}_queue_init"].T) for k in ("image", "text")]
    with mock.patch.object(module, "random_rows", side_effect=queues):
        state = stages.create(setup, stream, jax.random.key(0))
    one = jax.jit(stages.train)
    for t in range(2):
        start = leaves(z, f"t{t}_start_")
        state = state._replace(params={**state.params, **start})
        if t:  # the reference is the model as it is at the start of a later task
            state = state._replace(memory=(state.memory[0]._replace(reference=start),))
        state = stages.begin(setup, stream, state, jnp.int32(t))
        for s in range(steps):
            at = lambda key, t=t, s=s: z[f"t{t}_s{s}_{key}"]
            part = tuple(jnp.asarray(x)[t, s : s + 1] for x in stream[2:5])
            state, losses = one(setup, stream, state, jnp.int32(t), part, jnp.int32(steps))
            close(losses[0], at("terms").sum(), 1e-11)
            for n, p in leaves(z, f"t{t}_s{s}_momentum_after_").items():
                close(state.memory[0].averaged[n], p, 1e-12)
            for n, p in leaves(z, f"t{t}_s{s}_online_after_").items():
                close(state.params[n], p, 1e-12)
            close(state.memory[0].images.T, at("image_queue_after"), 1e-12)
            close(state.memory[0].texts.T, at("text_queue_after"), 1e-12)
        state = stages.end(setup, stream, state, jnp.int32(t))


def test_what_it_cannot_take():
    z = load("ctp", "two_tasks")
    model = stand_in(3, leaves(z, "t0_start_")).build()
    method = module.ctp(queue=10).build()
    params = model.init(None)
    batch = mock.Mock(inputs=(jnp.zeros((4, 5)), jnp.zeros((4, 5))), weight=jnp.ones(4))
    with pytest.raises(ValueError, match=r"a queue of 10 is no multiple of the batch of 4"):
        method.init(model, params, batch, None)
    bare = model._replace(apply=lambda p, x, t: Outputs(x[0], x[0]))
    with pytest.raises(ValueError, match=r"need aux\['image'\] and aux\['text'\]"):
        method.init(bare, params, batch, None)


@pytest.mark.parametrize("case", range(4))
def test_the_three_way_average_as_a_merge(case, x64):
    """m = 0.9, 0.5, 0, 1; the first of three models is such that the average is theirs before."""
    z = load("ctp", "three_way_average")
    of = lambda name: z[f"c{case}_{name}"]
    m, last = float(of("m")), of("reference")
    first = (of("momentum_before") - (1 - m) / 2 * last) / ((1 + m) / 2)
    models = [{"w": x} for x in (first, last, of("online"))]
    merged = jm.merge(jm.three_way_ema(m), {"w": np.zeros_like(last)}, models)
    close(merged["w"], of("momentum_after"), 1e-14)
