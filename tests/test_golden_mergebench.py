"""Merges of tiny float64 Llamas, against what MergeBench's classes make of them.

The embedding is never merged there, so it is left out here; `tests/golden/mergebench/README.md`
says how the expected values were made.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from safetensors.numpy import load_file

import jaxmerge as jm
from jaxmerge.solvers import regmean_plus
from jaxmerge.statistics import extras, fisher, gram

FOLDER = Path(__file__).parent / "golden" / "mergebench"
EXPECTED = load_file(FOLDER / "expected.safetensors")
EXTRAS = load_file(FOLDER / "extras.safetensors")
FISHER = load_file(FOLDER / "fisher.safetensors")


def leaves(name: str) -> dict:
    actual = load_file(FOLDER / f"{name}.safetensors")
    return {n: x.astype(np.float64) for n, x in actual.items() if "embed" not in n}


BASE, MODELS = leaves("base"), [leaves(f"ft{t}") for t in range(3)]

CASES = {
    "task_arithmetic_lambda0.3333": jm.task_arithmetic(1 / 3),
    "task_arithmetic_lambda0.4000": jm.task_arithmetic(0.4),
    "ties_K0.2_sum_lambda1.0": jm.ties(0.2, 1.0, merge="sum"),
    "ties_K0.3_mean_lambda1.0": jm.ties(0.3, 1.0, merge="mean"),
    "ties_K0.3_sum_lambda0.4": jm.ties(0.3, 0.4, merge="sum"),
    "ties_K0.5_max_lambda0.7": jm.ties(0.5, 0.7, merge="max"),
    "consensus_k1_lambda0.4_tall0.2": jm.consensus(0.2, 1, 0.4),
    "consensus_k2_lambda0.4_tall0.2": jm.consensus(0.2, 2, 0.4),
    "consensus_k3_lambda1.0_tall0.2": jm.consensus(0.2, 3, 1.0),
    "localize_stitch_dataless_sparsity0.1_paperstitch": jm.localize_and_stitch(0.1),
    "localize_stitch_dataless_sparsity0.4_paperstitch": jm.localize_and_stitch(0.4),
}


def expected(case: str) -> dict:
    """The case's tensors; those equal to the base were left out of the file."""
    given = {n: EXPECTED.get(f"{case}/{n}", BASE[n]) for n in BASE}
    return {n: np.asarray(x, np.float64) for n, x in given.items()}


def gap(actual: dict, case: str) -> float:
    want = expected(case)
    apart = max(float(np.abs(np.asarray(actual[n], np.float64) - want[n]).max()) for n in want)
    return oracles.note("mergebench", case, apart)


@pytest.mark.parametrize("case", CASES)
def test_case(x64, case):
    assert gap(jm.merge(CASES[case], BASE, MODELS), case) < 1e-7  # stored in float32


def test_dare_repeats_masks_drawn_elsewhere(x64):
    """One row of all parameters for each model, in the order of the modules."""
    sides = []
    for row in EXTRAS["dare_p0.8_lambda0.4/drawn_masks"]:
        parts = np.split(row, np.cumsum([BASE[n].size for n in _order()])[:-1])
        masks = {n: x.reshape(BASE[n].shape) for n, x in zip(_order(), parts, strict=True)}
        sides.append({"mask": masks})
    actual = jm.merge(jm.dare(0.2, 0.4, masked=True), BASE, MODELS, extras=sides)
    assert gap(actual, "dare_p0.8_lambda0.4") < 1e-7


def _order() -> list[str]:
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    parts += ["input_layernorm", "post_attention_layernorm"]
    layers = [f"model.layers.{i}.{p}.weight" for i in range(2) for p in parts]
    return [*layers, "model.norm.weight"]


# ------------------------------------------------------------ with data

WIDTH, HEADS, SIZE, LAYERS = 12, 3, 4, 2
WHOLE = [
    {n: x.astype(np.float64) for n, x in load_file(FOLDER / f"{name}.safetensors").items()}
    for name in ("base", "ft0", "ft1", "ft2")
]
DATA = [[np.asarray(b) for b in EXTRAS[f"data/task{t}"]] for t in range(3)]


def norm(x, scale):
    return scale * x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def turned(x):
    """Rotary positions, [batch, tokens, heads, size]."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = (jnp.concatenate([f(angle)] * 2, -1)[None, :, None] for f in (jnp.cos, jnp.sin))
    return x * cos + jnp.concatenate([-x[..., half:], x[..., :half]], -1) * sin


def llama(params, tokens):
    """A Llama with torch's kernels [out, in]: three heads, one head of keys and values."""
    x = params["model.embed_tokens.weight"][tokens]
    b, n = tokens.shape
    for i in range(LAYERS):
        p = lambda name, i=i: params[f"model.layers.{i}.{name}.weight"]
        h = norm(x, p("input_layernorm"))
        q = turned((h @ p("self_attn.q_proj").T).reshape(b, n, HEADS, SIZE))
        k = turned((h @ p("self_attn.k_proj").T).reshape(b, n, 1, SIZE))
        v = (h @ p("self_attn.v_proj").T).reshape(b, n, 1, SIZE)
        score = jnp.einsum("bnhd,bmkd->bhnm", q, k) / SIZE**0.5
        score = jnp.where(jnp.tril(jnp.ones((n, n), bool)), score, -jnp.inf)
        weight = jnp.exp(score - score.max(-1, keepdims=True))
        weight = weight / weight.sum(-1, keepdims=True)
        h = jnp.einsum("bhnm,bmkd->bnhd", weight, v).reshape(b, n, WIDTH)
        x = x + h @ p("self_attn.o_proj").T
        h = norm(x, p("post_attention_layernorm"))
        gate = h @ p("mlp.gate_proj").T
        h = gate / (1 + jnp.exp(-gate)) * (h @ p("mlp.up_proj").T)
        x = x + h @ p("mlp.down_proj").T
    return norm(x, params["model.norm.weight"])


@pytest.mark.parametrize("a", [0.5, 0.9, 1.0])
def test_regmean(x64, a):
    sides = []
    for model, batches in zip(WHOLE[1:], DATA, strict=True):
        actual = extras(gram(llama, model, batches))["gram"]
        sides.append({"gram": {n: g for n, g in actual.items() if "embed" not in n}})
    case = f"regmean_a{a}" + ("_float64solve" if a == 1.0 else "")
    actual = jm.merge(jm.regmean(a, axis=1), BASE, MODELS, extras=sides)
    if a == 1.0:  # of this case the kernels alone, and no float32 inverse
        actual = {n: x if f"{case}/{n}" in EXPECTED else BASE[n] for n, x in actual.items()}
    assert gap(actual, case) < (1e-6 if a == 1.0 else 5e-6)


@pytest.mark.parametrize("a", [0.1, 0.9])
def test_regmean_plus_block_by_block(x64, a):
    actual = regmean_plus(
        llama, WHOLE[0], WHOLE[1:], DATA, off_diagonal=a, blocks=r"layers\.\d+", leave="embed",
        per="token",
    )  # fmt: skip
    same = actual["model.embed_tokens.weight"] == WHOLE[0]["model.embed_tokens.weight"]
    assert same.all()
    assert gap(actual, f"regmeanpp_a{a}") < 5e-6


def test_fisher_of_the_most_probable_token(x64):
    """One batch of all examples; their labels are the model's own at the last position."""

    def last(params, tokens):
        return llama(params, tokens)[:, -1] @ params["model.embed_tokens.weight"].T

    sides = []
    for t, (model, batches) in enumerate(zip(WHOLE[1:], DATA, strict=True)):
        tokens = np.concatenate(batches)
        labels = np.asarray(last(model, tokens).argmax(-1))
        actual = fisher(last, model, [(tokens, labels)], kind="empirical")
        for n in [n for n in model if f"fisher/task{t}/{n}" in FISHER]:
            want = FISHER[f"fisher/task{t}/{n}"]
            np.testing.assert_allclose(actual.values[n], want, rtol=2e-5, atol=1e-6 * want.max())
        sides.append({"fisher": {n: actual.values[n] for n in BASE}})
    merged = jm.merge(jm.fisher_merging(), BASE, MODELS, extras=sides)
    for n, x in merged.items():
        want = FISHER[f"fisher_hard_last_token/{n}"]
        np.testing.assert_allclose(x, want, atol=2e-6)


def test_a_sampled_fisher_in_float64(x64):
    apply = lambda p, x: x @ p["w"]
    batch = (np.eye(2), None)
    for chunk in (1, 8):
        actual = fisher(
            apply, {"w": np.zeros((2, 2))}, [batch], kind="sampled", chunk=chunk,
            key=jax.random.key(0),
        )  # fmt: skip
        assert np.asarray(actual.values["w"]).tolist() == [[0.125, 0.125], [0.125, 0.125]]
