"""CUBER against its equations, worked out with torch and by hand; and that old tasks may gain."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, learn, load, stream

from jaxmerge.continual.memories import basis
from jaxmerge.continual.methods.cuber import away, correlated, cuber, one_of, union
from jaxmerge.continual.methods.trgp import nearest, related
from jaxmerge.continual.wraps.scales import SPACE, USED, rescaled


def test_one_layer(x64):
    z = load("cuber", "one_layer_from_equations")
    width, tasks = z["weight"].shape[1], 4
    spaces = np.zeros((tasks, width, width))
    for j in range(tasks):
        spaces[j, :, : z[f"basis{j}"].shape[1]] = z[f"basis{j}"]
    g, w = z["new_gradient"].T, z["weight"].T
    stored = jnp.stack([z[f"stored_gradient{j}"].T for j in range(tasks)])
    near, inside = related(jnp.asarray(spaces), g, tasks, float(z["epsilon1"]))
    close(inside, z["projection_norms"], 1e-12)
    close(correlated(stored, g), z["cosines"], 1e-12)
    positive = correlated(stored, g) >= z["epsilon2"]
    regime = jnp.where(near, jnp.where(positive, 3, 2), 1)
    assert regime.tolist() == z["regime_by_the_two_conditions"].tolist()
    used = nearest(near, inside, jnp.int32(tasks), released=False)
    chosen = one_of(near, used, (True, True))
    capped = jnp.where(chosen, regime, 1)
    assert capped.tolist() == z["regime_with_at_most_two_tasks"].tolist()

    def scale(j):
        actual = np.eye(width)
        if f"scale{j}" in z:  # theirs is of W [out, in]
            r = len(z[f"scale{j}"])
            actual[:r, :r] = z[f"scale{j}"].T
        return actual

    scales = jnp.stack([scale(int(j)) for j in used])
    close(rescaled(w, jnp.asarray(spaces), scales, used).T, z["effective_weight"], 1e-12)

    moved = w - z["weight_before_task"].T
    agree = np.flatnonzero(capped == 3)
    penalty = z["penalty_weight"] * sum(away(jnp.asarray(spaces[int(j)]), moved) for j in agree)

    def task_loss(w, scales):
        error = z["x"] @ rescaled(w, jnp.asarray(spaces), scales, used) - z["y"]
        return 0.5 * jnp.mean(jnp.sum(error**2, 1))

    close(task_loss(w, scales), z["task_loss"], 1e-12)
    grads = jax.grad(task_loss, (0, 1))(w, scales)
    total = grads[0] + penalty
    close(total.T, z["gradient_of_loss_plus_penalty"], 1e-12)
    for a, j in enumerate(used):
        theirs = z[f"scale{int(j)}_gradient"]
        close(grads[1][a][: len(theirs), : len(theirs)].T, theirs, 1e-12)
    everything = basis.empty(width, dtype=jnp.float64)
    for s in spaces:
        everything = basis.grow(everything, s.T, 1 - 1e-13, False)
    off = union(jnp.asarray(spaces), capped < 3, everything)
    close((total - off @ off.T @ total).T, z["gradient_after_union_projection"], 1e-11)
    assert not away(jnp.asarray(spaces[0]), jnp.zeros_like(total)).any()


@pytest.mark.parametrize("correlation", [-1.0, 1.0])
def test_a_kernel_moves_in_an_old_space_only_where_the_gradients_agree(correlation, x64):
    rng = np.random.default_rng(0)
    model = given((rng.normal(size=(8, 12)), rng.normal(size=(4, 8))))
    x = (rng.normal(size=(24, 3)) @ rng.normal(size=(3, 12))).reshape(6, 4, 12)
    tasks = stream([x, x], rng.integers(0, 4, (2, 6, 4)), classes=4)
    method = cuber(0.999999, trust=0.1, correlation=correlation, strength=0.01, examples=24)
    _, (one, two) = learn(model, tasks, method)
    for n in ("layer_0/kernel", "head/kernel"):
        m = one.memory[0][n].basis.vectors
        inside = float(jnp.linalg.norm(m.T @ (two.params[n] - one.params[n])))
        assert inside > 1e-3 if correlation < 0 else inside < 1e-12, (n, inside)


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_the_hook_adds_the_gradient_of_the_penalty(strength, x64):
    method = cuber(0.999999, trust=0.1, correlation=-1, strength=strength, examples=24)
    rng = np.random.default_rng(0)
    model = given((rng.normal(size=(8, 12)), rng.normal(size=(4, 8))))
    x = (rng.normal(size=(24, 3)) @ rng.normal(size=(3, 12))).reshape(6, 4, 12)
    tasks = stream([x, x], rng.integers(0, 4, (2, 6, 4)), classes=4)
    _, (_, two) = learn(model, tasks, method)
    moved = {n: m.before + rng.normal(size=m.before.shape) for n, m in two.memory[0].items()}
    params = {**two.params, **moved}
    step = SimpleNamespace(params=params, memory=two.memory[0], task=jnp.int32(1))

    def penalty(kernels):
        total = 0.0
        for n, m in two.memory[0].items():
            for a in np.flatnonzero(np.asarray(m.positive)):
                space = params[n + SPACE][params[n + USED][1, a]]
                total += jnp.linalg.norm(space @ space.T @ (kernels[n] - m.before))
        return strength * total

    assert any(m.positive.any() for m in two.memory[0].values())
    grads = {n: jnp.asarray(rng.normal(size=w.shape)) for n, w in moved.items()}
    found = method.build().gradient(None, step, grads, None)
    for n, g in jax.grad(penalty)(moved).items():
        close(found[n] - grads[n], g, 1e-12)
