"""LoRA adapters on a base: PEFT's own results, every layout of kernels, ties, damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jaxmerge.cli import merge
from jaxmerge.errors import UserError
from jaxmerge.io.sources import open_source

GOLDEN = Path(__file__).parent / "golden/peft_lora"
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir())
BF = ml_dtypes.bfloat16


@pytest.mark.parametrize("case", CASES)
def test_peft_merges_the_same(case, tmp_path):
    """W after PEFT's `merge_and_unload`; every other leaf is the base's."""
    (tmp_path / "model.safetensors").symlink_to(GOLDEN / "base.safetensors")
    base = load_file(GOLDEN / "base.safetensors")
    want = load_file(GOLDEN / case / "expected.safetensors")
    want.pop("expected.logits")
    source = open_source(f"{GOLDEN}/base.safetensors+{GOLDEN}/{case}")
    assert set(source) == set(base)
    for n in base:
        got = source[n]
        np.testing.assert_allclose(got, want.get(n, base[n]), rtol=0, atol=1e-6, err_msg=n)
        assert source.like[n].stored == base[n].dtype


# ---------------------------------------------------------------- fixtures of our own


def rng(seed=0):
    return np.random.default_rng(seed)


def model(folder, leaves, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(leaves, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter(folder, tensors, prefix="base_model.model.", **config):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def lora(module, out, into, r=2, seed=0, embedding=False):
    g = rng(seed)
    a, b = g.normal(size=(r, into)).astype("f"), g.normal(size=(out, r)).astype("f")
    names = (
        ("lora_embedding_A", "lora_embedding_B")
        if embedding
        else ("lora_A.weight", "lora_B.weight")
    )
    return {f"{module}.{n}": x for n, x in zip(names, (a, b), strict=True)}, b @ a


# ---------------------------------------------------------------- orientation


def test_kernels_stored_in_out(tmp_path):
    """GPT-2's Conv1D: the square kernel is told by the family, the others by their shapes."""
    g = rng(1)
    w = {"h.0.attn.c_attn": (4, 12), "h.0.attn.c_proj": (4, 4), "h.0.mlp.c_fc": (4, 16)}
    leaves = {f"{n}.weight": g.normal(size=s).astype("f") for n, s in w.items()}
    tensors, products = {}, {}
    for i, (n, (into, out)) in enumerate(w.items()):
        pair, products[n] = lora(n, out, into, seed=i)
        tensors |= pair
    for k, config in (("known", {"model_type": "gpt2"}), ("unknown", {})):
        base = model(tmp_path / k, leaves, **config)
        for fan in (False, True):
            ad = adapter(tmp_path / "ad", tensors, fan_in_fan_out=fan)
            source = open_source(f"{base}+{ad}")
            for n, p in products.items():
                want = leaves[f"{n}.weight"] + 2 * p.T
                np.testing.assert_allclose(source[f"{n}.weight"], want, atol=1e-5)


def test_a_square_kernel_alone_of_an_unknown_family_follows_the_settings(tmp_path):
    leaves = {"x.dense.weight": rng(1).normal(size=(4, 4)).astype("f")}
    base = model(tmp_path / "base", leaves)
    tensors, product = lora("x.dense", 4, 4)
    for fan in (False, True):
        source = open_source(f"{base}+{adapter(tmp_path / 'ad', tensors, fan_in_fan_out=fan)}")
        want = leaves["x.dense.weight"] + 2 * (product.T if fan else product)
        np.testing.assert_allclose(source["x.dense.weight"], want, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv", "embedding"])
def test_dora_scales_each_output(tmp_path, kind):
    g = rng(2)
    out, into = 6, 4
    shape = {"conv1d": (into, out), "conv": (out, into, 3, 3), "embedding": (9, out)}
    w = g.normal(size=shape.get(kind, (out, into))).astype("f")
    if kind == "conv":
        a, b = g.normal(size=(2, into, 3, 3)).astype("f"), g.normal(size=(out, 2, 1, 1)).astype("f")
        tensors = {"x.lora_A.weight": a, "x.lora_B.weight": b}
        v = w + 2 * np.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    else:
        size = 9 if kind == "embedding" else into
        tensors, p = lora("x", out, size, embedding=kind == "embedding")
        v = w + 2 * (p if kind == "linear" else p.T)
    m = g.random(out).astype("f") + 1
    tensors["x.lora_magnitude_vector"] = m[None, :, None, None] if kind == "conv" else m
    axis = 1 if kind in ("conv1d", "embedding") else 0
    rows = np.moveaxis(v, axis, 0).reshape(out, -1)
    want = rows * (m / np.linalg.norm(rows, axis=1))[:, None]
    base = model(tmp_path / "base", {"x.weight": w})
    source = open_source(f"{base}+{adapter(tmp_path / 'ad', tensors, use_dora=True)}")
    got = np.moveaxis(source["x.weight"], axis, 0).reshape(out, -1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


# ---------------------------------------------------------------- what else an adapter brings


def test_patterns_are_grouped_and_the_first_decides(tmp_path):
    """`q_proj|v_proj` is no `kv_proj`, and no `q_proj_extra`."""
    names = ("q_proj", "v_proj", "kv_proj", "q_proj_extra")
    leaves = {f"a.{n}.weight": np.zeros((4, 6), np.float32) for n in names}
    tensors, products = {}, {}
    for i, n in enumerate(names):
        pair, products[n] = lora(f"a.{n}", 4, 6, seed=i)
        tensors |= pair
    pattern = {"q_proj|v_proj": 8, "v_proj": 100, r"a\.kv_\w+": 2}
    ad = adapter(tmp_path / "ad", tensors, alpha_pattern=pattern)
    source = open_source(f"{model(tmp_path / 'base', leaves)}+{ad}")
    for n, s in zip(names, (4, 4, 1, 2), strict=True):
        np.testing.assert_allclose(source[f"a.{n}.weight"], s * products[n], atol=1e-5)


def test_biases_of_b_trained_tokens_and_old_names(tmp_path):
    g = rng(3)
    leaves = {
        "x.weight": g.normal(size=(4, 6)).astype("f"), "x.bias": g.normal(size=4).astype("f"),
        "emb.weight": g.normal(size=(9, 4)).astype("f"), "head.weight": np.ones((3, 4), "f"),
    }  # fmt: skip
    tensors, p = lora("x", 4, 6)
    tensors = {k.replace("lora_A.weight", "lora_A.default.weight"): v for k, v in tensors.items()}
    more = {
        "x.lora_B.bias": np.float32([1, 2, 3, 4]),
        "emb.token_adapter.trainable_tokens_delta": np.full((2, 4), 7),
        "head.modules_to_save.default.weight": np.full((3, 4), 5),
        "head.original_module.weight": np.zeros((3, 4)),
    }
    ad = adapter(tmp_path / "ad", tensors | more, trainable_token_indices={"emb": [8, 2]})
    source = open_source(f"{model(tmp_path / 'base', leaves)}+{ad}")
    np.testing.assert_allclose(source["x.weight"], leaves["x.weight"] + 2 * p, atol=1e-5)
    np.testing.assert_allclose(source["x.bias"], leaves["x.bias"] + np.float32([2, 4, 6, 8]))
    want = leaves["emb.weight"].copy()
    want[[8, 2]] = 7
    np.testing.assert_array_equal(source["emb.weight"], want)
    assert (source["head.weight"] == 5).all()


def tied(folder, rows=20, **config):
    leaves = {
        "model.embed_tokens.weight": rng(4).normal(size=(rows, 8)).astype(BF),
        "model.layers.0.mlp.up_proj.weight": rng(5).normal(size=(16, 8)).astype(BF),
    }
    config = {"model_type": "llama", "vocab_size": rows, "tie_word_embeddings": True, **config}
    return model(folder, leaves, num_hidden_layers=1, **config), leaves


@pytest.mark.parametrize("tie", [True, None])
def test_a_tied_head_gets_a_leaf_of_its_own(tmp_path, tie):
    base, leaves = tied(tmp_path / "base", tie_word_embeddings=tie)
    tensors, p = lora("lm_head", 20, 8)
    source = open_source(f"{base}+{adapter(tmp_path / 'ad', tensors)}")
    table = leaves["model.embed_tokens.weight"]
    np.testing.assert_array_equal(source["model.embed_tokens.weight"], table)
    np.testing.assert_allclose(source["lm_head.weight"], table.astype("f") + 2 * p, atol=1e-5)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"models": [f"{base}+{tmp_path}/ad"], "method": "mean"}))
    merge.run(recipe, tmp_path / "out", quiet=True)
    out = load_file(tmp_path / "out/model.safetensors")
    assert {n: x.dtype for n, x in out.items()} == dict.fromkeys(source, np.dtype(BF))
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False


def test_a_vocabulary_that_grew(tmp_path):
    """Refused from the headers, unless the table that it grew to is saved with the adapter."""
    base, _ = tied(tmp_path / "base")
    tensors, p = lora("model.embed_tokens", 8, 22, embedding=True)
    ad = adapter(tmp_path / "ad", tensors)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"models": [f"{base}+{ad}"], "method": "mean"}))
    for check in (True, False, False):
        with pytest.raises(UserError, match=r"\[22, 8\], the base's leaf \[20, 8\]"):
            merge.run(recipe, tmp_path / "out", check=check, quiet=True)
        assert sorted(q.name for q in tmp_path.iterdir()) == ["ad", "base", "r.yaml"]
    copy = rng(6).normal(size=(22, 8)).astype("f")
    key = "model.embed_tokens.base_layer.weight"
    source = open_source(f"{base}+{adapter(tmp_path / 'ad', {**tensors, key: copy})}")
    np.testing.assert_allclose(source["model.embed_tokens.weight"], copy + 2 * p.T, atol=1e-5)
    assert source.config()["vocab_size"] == 22
    leaves = {**load_file(base / "model.safetensors"), "lm_head.weight": np.ones((20, 8), BF)}
    model(tmp_path / "untied", leaves, model_type="llama", vocab_size=20)
    with pytest.raises(UserError, match=r"22 rows, 'lm_head\.weight' 20"):
        open_source(f"{tmp_path / 'untied'}+{ad}")


# ---------------------------------------------------------------- what does not fit


def test_shapes_are_never_made_to_fit(tmp_path):
    base = model(tmp_path / "base", {f"{n}.weight": np.ones((4, 6), "f") for n in "abc"})
    wrong = lora("a", 3, 8)[0] | lora("b", 4, 5)[0]  # as many entries; another width
    with pytest.raises(UserError, match="does not fit its base") as error:
        open_source(f"{base}+{adapter(tmp_path / 'ad', wrong)}")
    assert "'a' is [3, 8]" in str(error.value)
    assert "'b' is [4, 5]" in str(error.value)
    bias = lora("a", 4, 6)[0] | {"a.lora_magnitude_vector": np.ones(6)}
    with pytest.raises(UserError, match="does not have 4 entries"):
        open_source(f"{base}+{adapter(tmp_path / 'ad', bias)}")


def test_another_prefix_is_named(tmp_path):
    leaves = {f"model.layers.{i}.up.weight": np.ones((4, 6), "f") for i in range(40)}
    base = model(tmp_path / "base", leaves)
    tensors = {}
    for i in range(40):
        tensors |= lora(f"language_model.model.layers.{i}.up", 4, 6)[0]
    with pytest.raises(UserError, match="40 of its modules are not there") as error:
        open_source(f"{base}+{adapter(tmp_path / 'ad', tensors)}")
    assert "begin with 'language_model.' where the base's begin with ''" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"r": "x"}, "r must be a whole number above 0"),
        ({"r": 0}, "r must be"),
        ({"lora_alpha": None, "r": 2}, "lora_alpha must be"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern must map"),
        ({"rank_pattern": ["q"]}, "rank_pattern must map"),
        ({"rank_pattern": {"a": 3}}, "has rank 2, the settings say 3"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's own weights"),
        ({"layer_replication": [[0, 2]]}, "copies layers"),
        ({"use_qalora": True}, "pools its inputs"),
    ],
)
def test_settings_that_are_wrong_or_not_read(tmp_path, config, words):
    base = model(tmp_path / "base", {"a.weight": np.ones((4, 6), "f")})
    ad = adapter(tmp_path / "ad", lora("a", 4, 6)[0], **config)
    with pytest.raises(UserError, match=words) as error:
        open_source(f"{base}+{ad}")
    assert "\n" not in str(error.value)


def test_damaged_adapters(tmp_path):
    base = model(tmp_path / "base", {"a.weight": np.ones((4, 6), "f")})
    good, _ = lora("a", 4, 6)
    half = {k: v for k, v in good.items() if "lora_A" in k}
    for i, (tensors, words) in enumerate([
        (half, "has lora_A only"),
        ({**half, "a.lora_B.weight": np.ones((4, 3))}, "make no product"),
        ({**good, "a.lora_A.default.weight": np.ones((2, 6))}, "one part of one module"),
        ({**good, "a.lora_C.weight": np.ones(2)}, "not read"),
        ({}, "no leaves"),
        ({**good, "a.trainable_tokens_delta": np.ones((2, 4))}, "trainable_token_indices"),
    ]):  # fmt: skip
        with pytest.raises(UserError, match=words):
            open_source(f"{base}+{adapter(tmp_path / str(i), tensors)}")
    ad = adapter(tmp_path / "ad", good)
    for content in ("[]", "{", "\x00"):
        (ad / "adapter_config.json").write_text(content)
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            open_source(f"{base}+{ad}")
    adapter(ad, good)
    (ad / "adapter_model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        open_source(f"{base}+{ad}")
    (ad / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no adapter_model"):
        open_source(f"{base}+{ad}")


# ---------------------------------------------------------------- live PEFT


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dora", [False, True])
def test_parity_with_peft_on_gpt2(tmp_path, dora):
    """Conv1D kernels and the tied table of tokens, merged by PEFT itself."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    net = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=2, n_head=2))
    net.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=3, lora_alpha=7, use_dora=dora, fan_in_fan_out=True,
        target_modules=["c_attn", "c_proj", "c_fc", "wte"], init_lora_weights=False,
    )  # fmt: skip
    lora_net = peft.get_peft_model(net, config)
    with torch.no_grad():
        for n, p in lora_net.named_parameters():
            if "lora_" in n:
                p += 0.3 * torch.randn_like(p)
    lora_net.save_pretrained(tmp_path / "ad")
    want = {n: x.detach().numpy() for n, x in lora_net.merge_and_unload().state_dict().items()}
    source = open_source(f"{tmp_path / 'base'}+{tmp_path / 'ad'}")
    for n in source:
        got = source[n]
        np.testing.assert_allclose(got, want.get(n, want.get(f"transformer.{n}")), atol=2e-6)
