"""L2, EWC, SI, MAS, PredKD and FeatKD against the authors' learners: weights to 1e-12.

`rehearsal_free/mlp_baselines`: GT-RIPL's benchmark; `losses_and_steps`: the learners of an author
of "A Closer Look at Rehearsal-Free Continual Learning"; `mas`: the notebook's MAS.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_streams import close, given, learn, load, stream

from jaxmerge.continual.memories import anchor
from jaxmerge.continual.methods.ewc import ewc
from jaxmerge.continual.methods.feat_kd import feat_kd
from jaxmerge.continual.methods.l2 import l2
from jaxmerge.continual.methods.lwf import lwf
from jaxmerge.continual.methods.mas import mas
from jaxmerge.continual.methods.pred_kd import pred_kd
from jaxmerge.continual.methods.si import si
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Batch

BACKBONE = "^(?!head/)"

BASELINES = {
    "l2": lambda c: l2(c, first=False),
    "ewc": lambda c: ewc(c, batch=5, examples=20),
    "ewc_online": lambda c: ewc(c, batch=5, examples=20, slots="sum"),
    "ewc_true_labels": lambda c: ewc(c, batch=5, examples=20, labels="data"),
    "si": lambda c: si(c),
    "mas": lambda c: mas(c, norm="mean", batch=5, examples=20),
}


@pytest.mark.parametrize("case", BASELINES)
def test_gt_ripl(case, x64):
    z = load("rehearsal_free", "mlp_baselines")
    model = given([z[f"init_W{i}"] for i in (1, 2, 3)], [z[f"init_b{i}"] for i in (1, 2, 3)])
    twice = lambda x: np.concatenate([x] * int(z["epochs"]))
    tasks = stream(*([twice(z[f"task{t}_{k}"]) for t in range(3)] for k in "xy"), classes=4)
    method = BASELINES[case](float(z[f"{case}__coefficient"]))
    _, after = learn(model, tasks, method, rate=float(z[f"{case}__lr"]))
    leaves = {1: "layer_0", 2: "layer_1", 3: "head"}
    before = {}
    for t, state in enumerate(after):
        for i, n in leaves.items():
            close(state.params[f"{n}/kernel"].T, z[f"{case}__task{t}_after_W{i}"], 1e-12)
            close(state.params[f"{n}/bias"], z[f"{case}__task{t}_after_b{i}"], 1e-12)
        memory = state.memory[0]
        weight = memory.anchor.weight if case == "si" else memory.weight
        for i, n in leaves.items():
            total = weight[f"{n}/kernel"]
            own = total - before.get(n, 0) if case in ("ewc", "ewc_true_labels") else total
            close(own.T, z[f"{case}__task{t}_importance_W{i}"], 1e-11)
            before[n] = total


CASES = (
    "bce_only",
    "pred_kd",
    "pred_kd_feat_kd",
    "pred_kd_ewc",
    "ewc",
    "pred_kd_l2_from_start",
    "ewc_and_l2",
)


@pytest.mark.parametrize("case", CASES)
def test_rehearsal_free(case, x64):
    z = load("rehearsal_free", "losses_and_steps")
    mu, eps = float(z[f"{case}__mu"]), float(z[f"{case}__eps"])
    model = given([z["init_W1"], z["init_W2"]], [z["init_b1"], z["init_b2"]])
    own = np.repeat(np.eye(3, dtype=bool), 2, axis=1)
    tasks = stream(*([z[f"task{t}_{k}"] for t in range(3)] for k in "xy"), own=own)
    chosen = []
    if z[f"{case}__uses_pred_kd"]:
        chosen.append(pred_kd())
    if mu and "feat" in case:
        chosen.append(feat_kd(mu))
    elif mu:
        options = dict(labels="data", slots="sum", loss="sigmoid", batch=4, examples=16)
        chosen.append(ewc(mu, **options, leaves=BACKBONE))
    if eps:
        chosen.append(l2(eps, leaves=BACKBONE))
    problem = classification(columns="seen", metrics=("accuracy",), loss="sigmoid")
    result, after = learn(model, tasks, *chosen, rate=float(z["lr"]), problem=problem)
    for t, state in enumerate(after):
        losses = [z[f"{case}__task{t}_step{s}_loss"] for s in range(4)]
        close(result.losses[t], losses, 1e-12)
        close(state.params["layer_0/kernel"].T, z[f"{case}__task{t}_after_W1"], 1e-12)
        close(state.params["head/kernel"].T, z[f"{case}__task{t}_after_W2"], 1e-12)
        close(state.params["head/bias"], z[f"{case}__task{t}_after_b2"], 1e-12)
        if "ewc" in case:
            memory = state.memory[[m.factory.__name__ for m in chosen].index("ewc")]
            close(memory.weight["layer_0/kernel"].T, z[f"{case}__task{t}_importance_W1"], 1e-12)


# ------------------------------------------------------------------ MAS


def network(z, prefix, middle=""):
    read = lambda k: z[f"{prefix}_{middle}{k}"]
    return given((read("w1"), read("w2")), (read("b1"), read("b2")))


NAMES = {"layer_0/kernel": "w1", "layer_0/bias": "b1", "head/kernel": "w2", "head/bias": "b2"}


def stored(z, prefix):
    """Leaves in our layout."""
    return {n: jnp.asarray(z[f"{prefix}_{k}"].T) for n, k in NAMES.items()}


@pytest.mark.parametrize("case", range(6))
def test_importance_of_mas(case, x64):
    z = load("mas", "importance")
    x, norm, batch = z[f"o{case}_x"], str(z[f"o{case}_norm"]), int(z[f"o{case}_batch"])
    outputs = z[f"o{case}_w2"].shape[0]
    tasks = stream([x[:, None]], [np.zeros((len(x), 1), int)], classes=outputs)
    # no step is taken: the rate is far below rounding, the importance is that of the start
    _, (state,) = learn(network(z, f"o{case}"), tasks, mas(1.0, norm, batch, len(x)), rate=1e-300)
    for n, k in NAMES.items():
        close(state.memory[0].weight[n].T, z[f"o{case}_omega_{k}"], 1e-12)


@pytest.mark.parametrize("case", range(3))
def test_penalised_sgd_of_mas(case, x64):
    """Two tasks with their importances, momentum, and the optimiser's decay by sign."""
    z = load("mas", "penalised_sgd")
    p = f"p{case}"
    strength = float(z[f"{p}_lambda"])
    start, omega = stored(z, f"{p}_start"), stored(z, f"{p}_omega0")
    sign = lambda g, w: g + float(z[f"{p}_weight_decay_sign"]) * jnp.sign(w)
    steps = optax.chain(
        optax.stateless(lambda grads, params: jax.tree.map(sign, grads, params)),
        optax.trace(float(z[f"{p}_momentum"])),
        optax.scale(-float(z[f"{p}_lr"])),
    )
    model = network(z, p, "start_").build()

    xs, ys = (jnp.asarray(z[f"{p}_batch_{k}"]) for k in "xy")
    half = len(xs) // 2

    def fit(memory, params, first):
        moments = steps.init(params)
        for x, y in zip(xs[first : first + half], ys[first : first + half], strict=True):

            def loss(params, x=x, y=y):
                out = model.apply(params, x, 0).logits
                losses = optax.softmax_cross_entropy_with_integer_labels(out, y)
                return jnp.mean(losses) + strength * anchor.pull(memory, params)

            updates, moments = steps.update(jax.grad(loss)(params), moments, params)
            params = optax.apply_updates(params, updates)
        return params

    def length(params, x):
        return jnp.sum(model.apply(params, x, 0).logits ** 2)

    def fresh(params, name):
        x = jnp.asarray(z[f"{p}_{name}"])
        data = Batch(x, jnp.zeros(len(x), int), jnp.zeros(len(x), int), jnp.ones(len(x)))
        return anchor.magnitudes(lambda b: jax.grad(length)(params, b.inputs), data, 1)

    memory = anchor.move(anchor.none(start), fresh(start, "x_task0"), start)
    for n in NAMES:
        close(memory.weight[n], omega[n], 1e-12)
    params = fit(memory, start, 0)
    for n, k in NAMES.items():
        close(params[n].T, z[f"{p}_after_task1_{k}"], 1e-12)

    memory = anchor.move(memory, fresh(params, "x_task1"), params)
    for n, k in NAMES.items():
        close(memory.weight[n].T, z[f"{p}_omega_accumulated_{k}"], 1e-12)
    params = fit(memory, params, half)
    for n, k in NAMES.items():
        close(params[n].T, z[f"{p}_after_task2_{k}"], 1e-12)


# ------------------------------------------------------------------ closed forms


def two_tasks(seed=0):
    """Four classes in two tasks, two steps each of three examples; and a network."""
    rng = np.random.default_rng(seed)
    own = np.repeat(np.eye(2, dtype=bool), 2, axis=1)
    xs = rng.normal(size=(2, 2, 3, 5))
    ys = np.array([rng.integers(0, 2, (2, 3)), rng.integers(2, 4, (2, 3))])
    model = given((rng.normal(size=(6, 5)), rng.normal(size=(4, 6))), (np.zeros(6), np.zeros(4)))
    return model, stream(xs, ys, own=own), xs, ys


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def forward(params, x):
    hidden = np.maximum(x @ params["layer_0/kernel"] + params["layer_0/bias"], 0)
    return hidden @ params["head/kernel"] + params["head/bias"]


@pytest.mark.parametrize("weighting", ["constant", "tasks"])
@pytest.mark.parametrize("heads", ["each", "joined", "seen"])
def test_lwf_is_equation_2(heads, weighting, x64):
    """The second loss of the third task, when student and teacher differ; two old heads."""
    rng = np.random.default_rng(3)
    own = np.repeat(np.eye(3, dtype=bool), 2, axis=1)
    xs = rng.normal(size=(3, 2, 3, 5))
    ys = np.stack([rng.integers(2 * t, 2 * t + 2, (2, 3)) for t in range(3)])
    model = given((rng.normal(size=(6, 5)), rng.normal(size=(6, 6))), (np.zeros(6), np.zeros(6)))
    method = lwf(0.7, temperature=3.0, heads=heads, weighting=weighting)
    result, _ = learn(model, stream(xs, ys, own=own), method, columns="own")
    short = stream([*xs[:2], xs[2, :1]], [*ys[:2], ys[2, :1]], own=own)
    _, (_, teacher, student) = learn(model, short, method, columns="own")
    new, old = forward(student.params, xs[2, 1]), forward(teacher.params, xs[2, 1])
    parts = [slice(0, 2), slice(2, 4)] if heads == "each" else [slice(0, 4)]
    over = [slice(0, 6)] if heads == "seen" else parts
    answers = [
        np.log(softmax(new[:, c] / 3))[:, : p.stop - p.start]
        for p, c in zip(parts, over, strict=True)
    ]
    cross = [softmax(old[:, c] / 3) * a for c, a in zip(parts, answers, strict=True)]
    fit = -np.mean(np.log(softmax(new[:, 4:]))[np.arange(3), ys[2, 1] - 4])
    # two earlier tasks: the mean of their terms, twice, and T^2
    factor = 0.7 * (1 if weighting == "constant" else 2 * 3**2 / len(parts))
    close(result.losses[2, 1], fit - factor * sum(np.mean(np.sum(c, -1)) for c in cross), 1e-12)


def test_the_expected_fisher_information_of_a_softmax_layer(x64):
    """One layer: E g_wc^2 = x^2 p_c (1 - p_c), the mean over examples."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    tasks = stream([x[:, None]], [np.zeros((4, 1), int)], classes=5)
    _, (state,) = learn(given((w,)), tasks, ewc(1.0, labels="expected"), rate=1e-300)
    p = softmax(x @ w.T)
    exact = np.mean(x[:, :, None] ** 2 * (p * (1 - p))[:, None], 0)
    close(state.memory[0].weight["head/kernel"], exact, 1e-14)


def test_slots_of_two_tasks_are_one_parabola(x64):
    rng = np.random.default_rng(2)
    importance = rng.uniform(size=(3, 4)) * (rng.uniform(size=(3, 4)) > 0.3)
    places, at = rng.normal(size=(3, 4)), rng.normal(size=4)
    memory = anchor.none({"w": jnp.zeros(4)})
    for i, p in zip(importance, places, strict=True):
        memory = anchor.add(memory, {"w": jnp.asarray(i)}, {"w": jnp.asarray(p)})
    close(
        anchor.pull(memory, {"w": jnp.asarray(at)}), np.sum(importance * (at - places) ** 2), 1e-12
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ewc(labels="expected", batch=4), "squares gradients of single examples: batch 4"),
        (lambda: ewc(loss="sigmoid"), "loss='sigmoid' has the data's labels"),
        (lambda: ewc(labels="real"), "ewc: labels must be one of 'predicted', 'data'"),
        (lambda: lwf(temperature=0), "lwf: temperature must be a positive number, got 0"),
        (
            lambda: learn(*two_tasks()[:2], l2(leaves="trunk")),
            "matches 'trunk'; there are: layer_0",
        ),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()
