"""O-LoRA against the authors' code: outputs, penalties and their gradients to 1e-12."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, learn, load, stream

from jaxmerge.continual.methods.lora import lora
from jaxmerge.continual.methods.olora import norm, olora, overlap
from jaxmerge.continual.wraps.lora import A, B, with_lora


def penalty(z, case):
    def value(new):
        total = 0.0
        for i in range(2):
            a, b = new[f"layer{i}_loranew_A"], new[f"layer{i}_loranew_B"]
            old = z[f"case{case}_layer{i}_lora_A"]
            total += z["lambda1"] * overlap(jnp.asarray(old.T), a.T)
            total += z["lambda2"] * (norm(a) + norm(b))
        return total

    return value


@pytest.mark.parametrize("case", range(4))
def test_penalty(case, x64):
    z = load("olora", "penalty")
    names = [f"layer{i}_loranew_{k}" for i in range(2) for k in "AB"]
    new = {n: jnp.asarray(z[f"case{case}_{n}"]) for n in names}
    value, grads = jax.value_and_grad(penalty(z, case))(new)
    close(value, z[f"case{case}_penalty"], 1e-12)
    for i in range(2):
        for k in "AB":
            actual = grads[f"layer{i}_loranew_{k}"]
            close(actual, z[f"case{case}_layer{i}_grad_loranew_{k}"], 1e-12)


def test_layer(x64):
    """Outputs of three tasks, each with the pairs of all tasks so far."""
    z = load("olora", "layer")
    rank, alpha = int(z["rank"]), float(z["lora_alpha"])
    model = with_lora(
        "lora", given((z["weight"],), (z["bias"],)).build(), 3, rank, alpha, ".*", "sum", None
    )
    params = dict(model.init(jax.random.key(0)))
    for t in range(3):
        name = "head/kernel"
        params[name + A] = params[name + A].at[t].set(z[f"task{t}_new_A"].T)
        params[name + B] = params[name + B].at[t].set(z[f"task{t}_new_B"].T)
        close(model.apply(params, z[f"task{t}_x"], t).logits, z[f"task{t}_y"], 1e-12)
        stacked = np.concatenate([z[f"task{k}_new_A"] for k in range(t + 1)])
        close(stacked, z[f"task{t}_stacked_A"], 0)


def data(seed=0):
    rng = np.random.default_rng(seed)
    model = given((rng.normal(size=(6, 5)), rng.normal(size=(4, 6))), (np.zeros(6), np.zeros(4)))
    tasks = stream(rng.normal(size=(3, 4, 4, 5)), rng.integers(0, 4, (3, 4, 4)), classes=4)
    return model, tasks


def test_the_penalty_in_a_stream(x64):
    """The first loss of a task, when B is 0: the fit of the network so far, and |A_old' A_new|."""
    model, tasks = data()
    result, after = learn(model, tasks, olora(0.5, decay=0.1, rank=2, alpha=4.0))
    params = after[1].params
    own = {n: np.asarray(p) for n, p in params.items() if not n.endswith((A, B))}
    total = 0.0
    for n in ("layer_0/kernel", "head/kernel"):
        a, b = np.asarray(params[n + A]), np.asarray(params[n + B])
        assert not b[2].any()
        own[n] = own[n] + 2.0 * (a[0] @ b[0] + a[1] @ b[1])
        total += 0.5 * sum(np.abs(a[k].T @ a[2]).sum() for k in (0, 1))
        total += 0.1 * np.linalg.norm(a[2])
    x, y = tasks.inputs[tasks.rows[2, 0]], tasks.targets[tasks.rows[2, 0]]
    z = np.maximum(x @ own["layer_0/kernel"], 0) @ own["head/kernel"]
    logs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    close(result.losses[2, 0], total - logs[np.arange(4), y].mean(), 1e-12)


def test_earlier_pairs_and_the_network_do_not_move():
    model, tasks = data()
    for method in (lora(2, 2), lora(2, 2, use="sum"), olora(rank=2, alpha=2)):
        _, (one, _, last) = learn(model, tasks, method)
        for n, p in last.params.items():
            if n.endswith((A, B)):
                assert jnp.all(p[0] == one.params[n][0])
                assert not jnp.all(p[2] == one.params[n][2])
            else:
                assert jnp.all(p == one.params[n])


def test_one_shared_pair_goes_on_learning():
    model, tasks = data()
    _, (one, _, last) = learn(model, tasks, lora(2, 2, use="shared", train="^head/bias"))
    moved = {n for n in last.params if not jnp.all(last.params[n] == one.params[n])}
    pairs = {f"{n}/kernel{k}" for n in ("layer_0", "head") for k in (A, B)}
    assert moved == {*pairs, "head/bias"}
    with pytest.raises(ValueError, match="lora: no kernel matches 'query'; the model has: layer_0"):
        learn(model, tasks, lora(target="query"))
