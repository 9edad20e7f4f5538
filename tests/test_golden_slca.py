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

from jaxmerge.continual.methods.slcapp import slcapp, symmetric
from jaxmerge.continual.optimisers import by_name
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
        return eps[epoch].astype(jnp.float64), perm[epoch], None

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


@pytest.mark.parametrize("case", range(3))
def test_symmetric_cross_entropy(case, x64):
    z = load("slca", "symmetric_ce")
    of = lambda name: z[f"case{case}_{name}"]
    labels, every = jnp.asarray(of("labels")), np.ones(of("logits").shape[1], bool)
    loss = lambda x, a, b: jnp.mean(symmetric(x, labels, every, a, b))
    logits = jnp.asarray(of("logits"))
    a, b = float(of("a")), float(of("b"))
    value, grad = jax.value_and_grad(loss)(logits, a, b)
    close(value, of("loss"), 1e-12)
    close(grad, of("grad_logits"), 1e-12)
    close(loss(logits, 1.0, 0.0), of("ce"), 1e-12)
    close(loss(logits, 0.0, 1.0), of("rce"), 1e-12)


@optimisers.register
def falling(rate: float, least: float, each: int, epochs: int, momentum: float, decay: float):
    """SGD whose rate falls by epochs as half a cosine, to one that is not 0."""
    e = lambda count: count // each
    fall = lambda count: least + (rate - least) * (1 + jnp.cos(jnp.pi * e(count) / epochs)) / 2
    return optax.chain(
        optax.add_decayed_weights(decay), optax.trace(momentum), optax.scale_by_learning_rate(fall)
    )


def test_pipeline_of_slcapp(x64):
    z = load("slca", "pipeline_slcapp")
    sizes, e = z["task_sizes"], int(z["epochs"])
    own = np.repeat(np.eye(len(sizes), dtype=bool), sizes, axis=1)
    xs, ys, weight, sample = [], [], [], []
    for t in range(len(sizes)):
        order = z[f"t{t}_order"]
        pieces = np.r_[order, np.full(-len(order) % 32, -1)].reshape(-1, 32)
        pieces = np.concatenate([pieces] * e)
        weight.append((pieces >= 0) * 1.0)
        xs.append(z["x"][pieces])
        ys.append(z["y"][pieces])
    tasks = stream(xs, ys, own=own)
    sample = np.stack([r.reshape(-1)[: len(z["t0_order"])] for r in tasks.rows])
    tasks = tasks._replace(weight=np.stack(weight), sample=sample.astype(np.int32))
    head = np.concatenate([z[f"t{t}_new_head_w0"] for t in range(len(sizes))])
    model = given((z["backbone_w0"], head), (z["backbone_b0"], np.zeros(len(head))), "tanh")
    rate, s = float(z["lr"]), float(z["backbone_lr_scale"])
    more = rate * s * 0.1, len(xs[0]) // e, e, float(z["momentum"]), float(z["weight_decay"])
    optimiser = by_name((("head/.*", falling(rate, *more)), (".*", falling(rate * s, *more))))
    method = slcapp(slow=1.0, epochs=int(z["ca_epochs"]), temperature=float(z["logit_norm"]),
                    examples=sample.shape[1])  # fmt: skip
    many = sum(sizes)

    def draws(key, seen, per_class, d, epoch):
        """Of this task: the file has draws of the classes seen, which come first."""
        at = jnp.sum(seen) // sizes[0] - 1
        eps, perm, u = (np.zeros((len(sizes), *x)) for x in (
            (2, many, 256, d), (2, many * 256), (2, many, 256)))  # fmt: skip
        perm[:] = np.arange(many * 256)
        for t in range(1, len(sizes)):
            seen_now = int(sizes[: t + 1].sum())
            eps[t, :, :seen_now] = z[f"t{t}_ca_eps"]
            perm[t, :, : seen_now * 256] = z[f"t{t}_ca_perm"]
            u[t, :, :seen_now] = z[f"t{t}_ca_uniform"]
        return (jnp.asarray(eps)[at, epoch], jnp.asarray(perm, jnp.int32)[at, epoch],
                jnp.asarray(u)[at, epoch])  # fmt: skip

    with mock.patch.object(module, "draws", draws):
        _, after = learn(model, tasks, method, optimiser=optimiser)
    for t, state in enumerate(after):
        seen, memory = int(sizes[: t + 1].sum()), state.memory[0]
        close(state.params["layer_0/kernel"].T, z[f"t{t}_backbone_w"], 1e-9)
        close(state.params["layer_0/bias"], z[f"t{t}_backbone_b"], 1e-9)
        close(memory.head["head/kernel"].T[:seen], z[f"t{t}_head_w_before_ca"], 1e-9)
        close(memory.head["head/bias"][:seen], z[f"t{t}_head_b_before_ca"], 1e-9)
        close(memory.classes.mean[:seen], z[f"t{t}_class_mean"], 1e-9)
        root = memory.classes.root[:seen]
        close(jnp.einsum("cij,ckj->cik", root, root), z[f"t{t}_class_cov"], 1e-9)
        if t:
            scale = np.repeat(z[f"t{t}_head_input_scale"], sizes[: t + 1])
            kernel = state.params["head/kernel"].T[:seen] / scale[:, None]
            close(kernel, z[f"t{t}_head_w_after_ca"], 1e-9)
            close(state.params["head/bias"][:seen], z[f"t{t}_head_b_after_ca"], 1e-9)
        rows = np.isin(z["y"], np.arange(seen))
        p = state.params
        hidden = np.tanh(z["x"][rows] @ p["layer_0/kernel"] + p["layer_0/bias"])
        logits = hidden @ p["head/kernel"] + p["head/bias"]
        close(logits[:, :seen], z[f"t{t}_logits_all_seen"], 1e-9)


def test_draws_of_classes_seen_come_first():
    seen = jnp.array([True, False, True, False])
    eps, order, u = module.draws(jax.random.key(0), seen, 5, 3, 0)
    assert eps.shape == (*u.shape, 3) == (4, 5, 3)
    assert sorted(order.tolist()) == list(range(20))
    assert sorted(order[:10].tolist()) == [*range(5), *range(10, 15)]


def test_bad_settings():
    model = given((np.ones((6, 5)), np.ones((4, 6))), (np.zeros(6), np.zeros(4)))
    tasks = stream(np.ones((2, 3, 4, 5)), np.zeros((2, 3, 4), int), classes=4)
    with pytest.raises(ValueError, match="no leaf fc/kernel and fc/bias; give head="):
        learn(model, tasks, slca(head="fc"))
