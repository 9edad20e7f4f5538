"""SupSup against the authors' code: masks and choices exact, scores and gradients to 1e-12."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_streams import close, given, learn, load, stream

from jaxmerge.continual.methods.supsup import (
    find_task,
    objective,
    superpose,
    supsup,
    uniform,
)
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import optimisers
from jaxmerge.continual.wraps.masks import SCORES, mask, signed_constant, top_count
from jaxmerge.core.specs import Spec

NAMES = ("layer_0/kernel", "layer_1/kernel", "head/kernel")


@optimisers.register
def rmsprop_of_torch(rate: float = 1e-2):
    return optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)


def test_masks(x64):
    z = load("supsup", "masks")
    for i in range(5):
        scores, density = jnp.asarray(z[f"topk{i}_scores"]), float(z[f"topk{i}_fraction"])
        close(mask(scores, density), z[f"topk{i}_mask"], 0)
        assert top_count(scores.size, density) == z[f"topk{i}_kept"]
    ties = mask(jnp.asarray(z["ties_scores"]), float(z["ties_fraction"]))
    assert int(ties.sum()) == z["ties_mask_kept"]
    close(mask(jnp.asarray(z["threshold_scores"]), None), z["threshold_mask"], 0)
    before = z["init_weight_before"]
    close(
        signed_constant(jnp.asarray(before), before.shape[1]),
        z["init_weight_signed_constant"],
        1e-15,
    )


@pytest.mark.parametrize("kind", ["fast", "topk"])
def test_training(kind, x64):
    z = load("supsup", f"train_{kind}")
    density = float(z["sparsity_top_fraction"]) if kind == "topk" else None
    tasks, steps = int(z["tasks"]), 6
    xs = [np.stack([z[f"train_x_task{t}"]] * steps) for t in range(tasks)]
    ys = [np.stack([z[f"train_y_task{t}"]] * steps) for t in range(tasks)]
    model = given([z[f"layer{i}_weight"] for i in range(3)])
    method = supsup(density, weights="given")
    start = {
        n + SCORES: np.stack([z[f"layer{i}_scores_task{t}"].T for t in range(tasks)])
        for i, n in enumerate(NAMES)
    }
    method = with_scores(method, start)
    rate = float(z["learning_rate"])
    result, after = learn(
        model, stream(xs, ys, classes=6), method, optimiser=rmsprop_of_torch(rate)
    )
    wrapped = method.build().wrap(model.build(), tasks)
    for t, state in enumerate(after):
        close(result.losses[t, -1], z[f"loss_before_last_step_task{t}"], 1e-12)
        for i, n in enumerate(NAMES):
            close(state.params[n + SCORES][t].T, z[f"layer{i}_trained_scores_task{t}"], 1e-11)
        x = jnp.asarray(z[f"train_x_task{t}"])
        now = wrapped.apply(state.params, x, t).logits
        close(now, z[f"logits_task{t}_just_after_training"], 1e-11)
        assert jnp.all(wrapped.apply(after[-1].params, x, t).logits == now)

    def loss(scores):
        params = {**state.params, **start, **scores}
        logits = wrapped.apply(params, jnp.asarray(z["x"]), 1).logits
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(z["y"]))
        )

    value, grads = jax.value_and_grad(loss)({n: jnp.asarray(s) for n, s in start.items()})
    close(value, z["task1_loss"], 1e-12)
    for i, n in enumerate(NAMES):
        close(grads[n + SCORES][1].T, z[f"layer{i}_task1_score_grad"], 1e-12)


def with_scores(spec, start):
    """The method, its scores starting as given."""

    def as_given():
        def wrap(model, tasks):
            wrapped = spec.build().wrap(model, tasks)
            given = {n: jnp.asarray(s) for n, s in start.items()}
            return wrapped._replace(init=lambda key: {**wrapped.init(key), **given})

        return Method(wrap=wrap)

    return Spec(as_given, {})


@pytest.mark.parametrize("kind", ["fast", "topk"])
@pytest.mark.parametrize("query", range(3))
@pytest.mark.parametrize("by", ["entropy", "g"])
def test_choice_of_the_task(kind, query, by, x64):
    z = load("supsup", f"inference_{kind}")
    p, tasks = f"query{query}", int(z["tasks"])
    used = int(z[f"{p}_examples_used"])
    name, classes = {"entropy": "entropy", "g": "surplus"}[by], int(z["real_classes"])

    def logits(alpha, x):
        for i in range(3):
            masks = jnp.asarray(z[f"layer{i}_masks"])
            x = x @ (z[f"layer{i}_weight"] * superpose(alpha, masks)).T
            x = jax.nn.relu(x) if i < 2 else x
        return x

    x = jnp.asarray(z[f"{p}_x"])
    known = jnp.ones(tasks, bool)
    close(logits(uniform(known), x), z[f"{p}_superposed_logits"], 1e-12)
    goal = lambda alpha: jnp.mean(objective(logits(alpha, x[:used]), name, classes))
    close(goal(uniform(known)), z[f"{p}_{by}_objective_uniform"], 1e-12)
    close(jax.grad(goal)(uniform(known)), z[f"{p}_{by}_grad_alpha"], 1e-12)
    assert int(find_task(goal, known, "one_shot")) == z[f"{p}_{by}_oneshot_task"]
    alive = z[f"{p}_{by}_binary_alive_at_end"]
    assert alive.sum() == 1
    assert int(find_task(goal, known, "binary")) == alive.argmax()


@pytest.mark.parametrize("search", ["one_shot", "binary"])
@pytest.mark.parametrize("decide", ["example", "batch"])
def test_the_task_is_found_without_being_given(search, decide):
    """Tasks on inputs far from each other; a mask only for tasks that were learnt."""
    rng = np.random.default_rng(0)
    model = given((rng.normal(size=(64, 12)), rng.normal(size=(64, 64)), rng.normal(size=(4, 64))))
    xs = np.zeros((3, 60, 16, 12), np.float32)
    ys = rng.integers(0, 4, (3, 60, 16))
    for t in range(3):  # task t lives on inputs 4 t .. 4 t + 3
        xs[t, ..., 4 * t : 4 * t + 4] = 3 * np.eye(4)[ys[t]] + 0.3 * rng.normal(size=(60, 16, 4))
    tasks = stream(xs, ys, classes=4)
    method = supsup(search=search, decide=decide)
    _, after = learn(model, tasks, method, optimiser=rmsprop_of_torch(1e-2))
    wrapped = method.build().wrap(model.build(), 3)
    for t, state in enumerate(after):
        assert (
            jnp.mean(wrapped.apply(state.params, xs[t, 0], t).logits.argmax(-1) == ys[t, 0]) > 0.9
        )
        actual = wrapped.predict(state.params, jnp.asarray(xs[0, 0]), t).aux["task"]
        assert int(actual.max()) <= t
    chosen = [wrapped.predict(state.params, jnp.asarray(xs[t, 0]), 2).aux["task"] for t in range(3)]
    share = np.mean([np.mean(np.asarray(c) == t) for t, c in enumerate(chosen)])
    assert share > 0.5  # chance is a third
    with pytest.raises(ValueError, match="by='surplus' needs classes"):
        supsup(by="surplus")
