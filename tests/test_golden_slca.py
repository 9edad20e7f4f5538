"""SLCA against the authors' code: losses and whole pipelines to 1e-9."""

from __future__ import annotations

import importlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_streams import close, given, learn, load, stream

from jaxmerge.continual.registry import optimisers

module = importlib.import_module("jaxmerge.continual.methods.slca")  # the name is the method's too
slca = module.slca


@pytest.mark.parametrize("case", range(3))
def test_normalised_logits(case, x64):
    z = load("slca", "logit_norm")
    sizes, labels = z[f"case{case}_task_sizes"], z[f"case{case}_labels"]
    own = jnp.asarray(np.repeat(np.eye(len(sizes), dtype=bool), sizes, axis=1))
    tau = float(z[f"case{case}_temperature"])

    def loss(logits):
        scaled = module.normalised(logits, own, len(sizes) - 1, tau)
        losses = optax.softmax_cross_entropy_with_integer_labels(scaled, jnp.asarray(labels))
        return jnp.mean(losses), scaled

    logits = jnp.asarray(z[f"case{case}_logits"])
    (value, scaled), grad = jax.value_and_grad(loss, has_aux=True)(logits)
    close(scaled, z[f"case{case}_normalised_logits"], 1e-11)
    close(value, z[f"case{case}_loss"], 1e-11)
    close(grad, z[f"case{case}_grad_logits"], 1e-11)


@optimisers.register
def stepped(rate: float, first: int, momentum: float, weight_decay: float):
    """SGD whose rate falls to a tenth after so many steps."""
    fall = lambda count: jnp.where(count < first, rate, 0.1 * rate)
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_learning_rate(fall),
    )


PIPELINES = {"pipeline_slca": 2, "pipeline_slca_unequal_tasks": 10**6}


def pieces_of(z):
    """The examples of each task, once."""
    return [z[f"t{t}_order"] for t in range(len(z["task_sizes"]))]


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline(name, x64):
    z = load("slca", name)
    sizes = z["task_sizes"]
    own = np.repeat(np.eye(len(sizes), dtype=bool), sizes, axis=1)
    xs, ys, weight = [], [], []
    for t in range(len(sizes)):
        order = z[f"t{t}_order"]
        pieces = np.r_[order, np.full(-len(order) % 32, -1)].reshape(-1, 32)
        pieces = np.concatenate([pieces] * int(z["epochs"]))
        weight.append((pieces >= 0) * 1.0)
        xs.append(z["x"][pieces])
        ys.append(z["y"][pieces])
    steps = [len(x) for x in xs]
    tasks = stream(xs, ys, own=own)
    full = np.zeros(tasks.weight.shape)
    sample = np.full((len(sizes), max(map(len, pieces_of(z)))), -1, np.int32)
    for t, (w, one) in enumerate(zip(weight, pieces_of(z), strict=True)):
        full[t, : len(w)] = w
        sample[t, : len(one)] = tasks.rows[t].reshape(-1)[: len(one)]
    head = np.concatenate([z[f"t{t}_new_head_w0"] for t in range(len(sizes))])
    model = given((z["backbone_w0"], head), (z["backbone_b0"], np.zeros(len(head))), "tanh")
    tau, e = float(z["logit_norm"]), int(z["epochs"])
    method = slca(
        slow=float(z["backbone_lr_scale"]),
        epochs=int(z["ca_epochs"]),
        temperature=tau or None,
        examples=sample.shape[1],
        released_tasks=True,
    )
    optimiser = stepped(
        float(z["lr"]),
        PIPELINES[name] * (steps[0] // e),
        float(z["momentum"]),
        float(z["weight_decay"]),
    )

    def draws(key, seen, per_class, d, epoch):
        eps, perm = jnp.asarray(z["t1_ca_eps"]), jnp.asarray(z["t1_ca_perm"], jnp.int32)
        return eps[epoch].astype(jnp.float64), perm[epoch]

    with mock.patch.object(module, "draws", draws):
        _, after = learn(
            model,
            tasks._replace(weight=full, sample=sample),
            method,
            optimiser=optimiser,
            columns="own",
        )
    seen = 0
    for t, (state, size) in enumerate(zip(after, sizes, strict=True)):
        seen += size
        close(state.params["layer_0/kernel"].T, z[f"t{t}_backbone_w"], 1e-9)
        close(state.params["layer_0/bias"], z[f"t{t}_backbone_b"], 1e-9)
        memory = state.memory[0]
        close(memory.head["head/kernel"].T[:seen], z[f"t{t}_head_w_before_ca"], 1e-9)
        close(memory.head["head/bias"][:seen], z[f"t{t}_head_b_before_ca"], 1e-9)
        assert memory.classes.known.tolist() == [c < seen for c in range(sum(sizes))]
        close(memory.classes.mean[:seen], z[f"t{t}_class_mean"], 1e-9)
        root = memory.classes.root[:seen]
        close(jnp.einsum("cij,ckj->cik", root, root), z[f"t{t}_class_cov"], 1e-9)
        if t:
            close(state.params["head/kernel"].T, z[f"t{t}_head_w_after_ca"], 1e-9)
            close(state.params["head/bias"], z[f"t{t}_head_b_after_ca"], 1e-9)
        rows = np.isin(z["y"], np.arange(seen))
        hidden = np.tanh(
            z["x"][rows] @ state.params["layer_0/kernel"] + state.params["layer_0/bias"]
        )
        logits = hidden @ state.params["head/kernel"] + state.params["head/bias"]
        close(logits[:, :seen], z[f"t{t}_logits_all_seen"], 1e-9)


def test_draws_of_classes_seen_come_first():
    seen = jnp.array([True, False, True, False])
    eps, order = module.draws(jax.random.key(0), seen, 5, 3, 0)
    assert eps.shape == (4, 5, 3)
    assert sorted(order.tolist()) == list(range(20))
    assert sorted(order[:10].tolist()) == [*range(5), *range(10, 15)]


def test_bad_settings():
    model = given((np.ones((6, 5)), np.ones((4, 6))), (np.zeros(6), np.zeros(4)))
    tasks = stream(np.ones((2, 3, 4, 5)), np.zeros((2, 3, 4), int), classes=4)
    with pytest.raises(ValueError, match="no leaf fc/kernel and fc/bias; give head="):
        learn(model, tasks, slca(head="fc"))
