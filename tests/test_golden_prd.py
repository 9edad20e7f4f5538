"""PRD against the authors' code: terms, every weight after every step, scores; 1e-12."""

from __future__ import annotations

import importlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, load

from jaxmerge.continual import contrast, stages
from jaxmerge.continual.optimisers import by_name, sgd
from jaxmerge.continual.parts import build
from jaxmerge.continual.problems import classification
from jaxmerge.continual.stream_records import Groups, Setup, Stream

module = importlib.import_module("jaxmerge.continual.methods.prd")  # the name is the method's too


@pytest.mark.parametrize("case", range(4))
def test_supervised_contrast(case, x64):
    z = load("prd", "supcon")
    f, labels = z[f"case{case}_features"], z[f"case{case}_labels"]
    many = len(labels)

    def loss(f):
        rows = jnp.concatenate([f[:, 0], f[:, 1]])
        twice = jnp.concatenate([labels, labels])
        t = float(z[f"case{case}_temperature"])
        return contrast.supervised(rows, twice, jnp.ones(2 * many), t)

    value, grad = jax.value_and_grad(loss)(jnp.asarray(f))
    close(value, z[f"case{case}_loss"], 1e-12)
    close(grad, z[f"case{case}_grad"], 1e-12)


def first_view(stored, info, task, key):
    return stored[:, 0] if stored.ndim == 3 else stored


@pytest.mark.parametrize("name", ["three_tasks_readme_settings", "one_class_per_task"])
def test_stream(name, x64):
    z = load("prd", name)
    tasks, each, steps = (int(z[k]) for k in ("n_tasks", "n_classes_per_task", "steps_per_task"))
    at = lambda t, s, key: z[f"t{t}_s{s}_{key}"]
    views = np.stack([
        np.stack([at(t, s, "view1"), at(t, s, "view2")], 1)
        for t in range(tasks) for s in range(steps)
    ])  # fmt: skip
    labels = np.concatenate([at(t, s, "labels") for t in range(tasks) for s in range(steps)])
    size = views.shape[1]
    rows = np.arange(len(labels), dtype=np.int32).reshape(tasks, steps, size)
    own = np.repeat(np.eye(tasks, dtype=bool), each, axis=1)
    groups = Groups(views[0, :1], labels[:1], np.zeros((1, 1), np.int32), np.ones((1, 1)),
                    np.zeros(1, np.int32), {"own": own[:1]})  # fmt: skip
    origin = np.broadcast_to(np.arange(tasks, dtype=np.int32)[:, None, None], rows.shape)
    stream = Stream(views.reshape(-1, *views.shape[2:]), labels, rows, origin,
                    np.ones(rows.shape), {"own": own}, groups)  # fmt: skip
    head = np.zeros((tasks * each, z["init_enc_w"].shape[0]))
    model = given((z["init_enc_w"], head), (z["init_enc_b"], np.zeros(len(head))), "tanh")
    method = module.prd(
        float(z["prototypes_coef"]), float(z["distill_coef"]), float(z["supcon_temperature"]),
        float(z["distill_temp"]), len(z["init_proj_b"]),
    )  # fmt: skip
    main = sgd(float(z["lr"]), momentum=float(z["momentum"]), weight_decay=float(z["weight_decay"]))
    optimiser = by_name((("prototypes", sgd(float(z["prototypes_lr"]))), (".*", main)))
    setup = Setup(
        model, classification(metrics=("accuracy",), view=first_view), optimiser, (method,)
    )
    every = np.concatenate([z[f"init_proto{h}"] for h in range(tasks)])
    start = {"prototypes": every, "projection/kernel": z["init_proj_w"].T,
             "projection/bias": z["init_proj_b"]}  # fmt: skip
    leaves = {"enc_w": "layer_0/kernel", "enc_b": "layer_0/bias", "proj_w": "projection/kernel",
              "proj_b": "projection/bias"}  # fmt: skip
    with mock.patch.object(module, "second_view", lambda step, key: step.stored[:, 1]):
        state = stages.create(setup, stream, jax.random.key(0))
        params = {**state.params, **{n: jnp.asarray(p) for n, p in start.items()}}
        state = state._replace(params=params, base=params)
        moments = None
        for t in range(tasks):
            state = stages.begin(setup, stream, state, jnp.int32(t))
            state = state if moments is None else state._replace(moments=moments)
            for s in range(steps):
                part = tuple(jnp.asarray(x)[t, s : s + 1] for x in stream[2:5])
                state, losses = jax.jit(stages.train)(
                    setup, stream, state, jnp.int32(t), part, jnp.int32(steps)
                )
                close(losses[0], at(t, s, "loss"), 1e-12)
                for n, leaf in leaves.items():
                    p = state.params[leaf]
                    close(p.T if p.ndim == 2 else p, at(t, s, f"after_{n}"), 1e-12)
                protos = [at(t, s, f"after_proto{h}") for h in range(tasks)]
                close(state.params["prototypes"], np.concatenate(protos), 1e-12)
            moments = state.moments  # the authors' optimiser goes on
            state = stages.end(setup, stream, state, jnp.int32(t))
            wrapped = build(setup, tasks).model
            out = wrapped.answer(state.params, jnp.asarray(z[f"t{t}_eval_x"]), jnp.int32(t))
            close(out.logits, z[f"t{t}_eval_class_incremental_scores"], 1e-12)
            close(out.logits[:, own[t]], z[f"t{t}_eval_task_scores"], 1e-12)
