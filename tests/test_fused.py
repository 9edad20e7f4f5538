"""Leaves that hold several matrices: how they split, and models in each other's layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jaxmerge.cli import merge
from jaxmerge.io.architectures import architecture
from jaxmerge.io.fused import split_of
from jaxmerge.io.sources import open_source

PHI3 = {"model_type": "phi3", "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "hidden_size": 8}  # fmt: skip
LLAMA = PHI3 | {"model_type": "llama"}


def apart(seed: int) -> dict[str, np.ndarray]:
    """Two layers with their matrices apart."""
    g = np.random.default_rng(seed)
    out = {"model.norm.weight": g.normal(size=8).astype("f")}
    shapes = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8),
              "mlp.gate_proj": (6, 8), "mlp.up_proj": (6, 8), "mlp.down_proj": (8, 6)}  # fmt: skip
    for i in range(2):
        for n, s in shapes.items():
            out[f"model.layers.{i}.{n}.weight"] = g.normal(size=s).astype("f")
    return out


def together(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same as Phi-3 stores them."""
    out = dict(leaves)
    for i in range(2):
        at = f"model.layers.{i}."
        for fused, parts in (
            ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            pieces = [out.pop(f"{at}{p}.weight") for p in parts]
            out[f"{at}{fused}.weight"] = np.concatenate(pieces)
    return out


def write(folder, leaves, config, file="model.safetensors"):
    folder.mkdir()
    save_file(leaves, folder / file)
    name = "adapter_config.json" if file.startswith("adapter") else "config.json"
    (folder / name).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("fused", [True, False])
def test_models_in_two_layouts_are_merged_in_the_first_ones(tmp_path, fused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = apart(1), apart(2)
    write(tmp_path / "a", together(a) if fused else a, PHI3 if fused else LLAMA)
    write(tmp_path / "b", b if fused else together(b), LLAMA if fused else PHI3)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"models": ["a", "b"], "method": "mean"}))
    merge.run("r.yaml", "out", quiet=True)
    got = load_file("out/model.safetensors")
    want = {n: (x + b[n]) / 2 for n, x in a.items()}
    want = together(want) if fused else want
    assert got.keys() == want.keys()
    for n, x in want.items():
        np.testing.assert_allclose(got[n], x, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_an_adapter_on_the_other_layout(tmp_path, fused):
    """Of a fused leaf two parts of three are adapted; of split ones all at once."""
    base, g = apart(1), np.random.default_rng(3)
    factors, want = {}, {n: x.copy() for n, x in base.items()}

    def adapt(path, targets):
        a = g.normal(size=(2, 8)).astype("f")
        b = g.normal(size=(sum(len(want[t]) for t in targets), 2)).astype("f")
        factors[f"base_model.model.{path}.lora_A.weight"] = a
        factors[f"base_model.model.{path}.lora_B.weight"] = b
        starts = np.cumsum([0, *(len(want[t]) for t in targets)])
        for t, s in zip(targets, starts, strict=False):
            want[t] += 2 * (b @ a)[s : s + len(want[t])]

    for i in range(2):
        at = f"model.layers.{i}."
        leaf = lambda n, at=at: f"{at}{n}.weight"
        if fused:
            for n in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"):
                adapt(at + n, [leaf(n)])
        else:
            three = [leaf(f"self_attn.{x}_proj") for x in "qkv"]
            adapt(f"{at}self_attn.qkv_proj", three)
            adapt(f"{at}mlp.gate_up_proj", [leaf("mlp.gate_proj"), leaf("mlp.up_proj")])
    where = write(tmp_path / "base", together(base) if fused else base, PHI3 if fused else LLAMA)
    lora = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    adapter = write(tmp_path / "ad", factors, lora, "adapter_model.safetensors")
    source = open_source(f"{where}+{adapter}")
    want = together(want) if fused else want
    assert set(source) == set(want)
    for n, x in want.items():
        np.testing.assert_allclose(source[n], x, atol=1e-5)


def test_groups_and_what_does_not_split():
    arch = lambda **config: architecture({}, config)
    neox = split_of(
        arch(model_type="gpt_neox", num_attention_heads=2), "a.query_key_value.bias", (12,)
    )
    assert [x.tolist() for x in neox.places] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    parts = [neox.part(np.arange(12), i) for i in range(3)]
    assert neox.join(parts).tolist() == list(range(12))
    falcon = arch(model_type="falcon", num_attention_heads=4)
    sizes = [len(x) for x in split_of(falcon, "h.0.query_key_value.weight", (12, 8)).places]
    assert sizes == [8, 2, 2]  # one head of keys for all
    gpt2 = split_of(arch(model_type="gpt2", n_head=2), "h.0.attn.c_attn.weight", (4, 12))
    assert gpt2.axis == 1
    assert split_of(arch(num_attention_heads=5), "a.qkv_proj.weight", (16, 8)) is None
    assert split_of(arch(num_attention_heads=2), "a.o_proj.weight", (12, 8)) is None


FAMILIES = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 4},
    "gpt_neox": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4},
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 4},
    "phi3": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
             "num_key_value_heads": 2, "pad_token_id": 0},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4},
    "falcon groups": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
                      "new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 1, "n_head": 4},
    "gpt_bigcode heads": {"n_embd": 16, "n_layer": 1, "n_head": 4, "multi_query": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "queries"),
    [
        ({"model_type": "gpt_bigcode", "multi_query": False}, [0, 1, 6, 7]),
        ({"model_type": "gpt_bigcode", "multi_query": True}, [0, 1, 2, 3, 4, 5]),
        ({"model_type": "chatglm", "multi_query_group_num": 1}, [0, 1, 6, 7]),
        ({"model_type": "chatglm", "multi_query_attention": True, "multi_query_group_num": 2},
         [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_queries_lie_by_groups_where_each_head_has_its_own_keys(config, queries):
    """ChatGLM's code is not in transformers; its rule is that of its remote code."""
    made_of = architecture({}, config | {"num_attention_heads": 2})
    word = "c_attn" if config["model_type"] == "gpt_bigcode" else "query_key_value"
    actual = split_of(made_of, f"h.0.attn.{word}.weight", (12, 4))
    assert actual.places[0].tolist() == queries


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_queries_and_keys_and_values(family):
    """Twice the queries and half the keys give the same output; twice the values another one."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = family.split()[0]
    config = transformers.AutoConfig.for_model(kind, vocab_size=32, **FAMILIES[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    state = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    made_of = architecture(state, config.to_dict())
    ids = torch.arange(12)[None]

    def scaled(*factors):
        new = {}
        for n, x in state.items():
            split = split_of(made_of, n, x.shape) if "gate" not in n else None
            if split is not None:
                x = split.join([split.part(x, i) * f for i, f in enumerate(factors)])
            new[n] = torch.from_numpy(np.ascontiguousarray(x))
        model.load_state_dict(new, strict=False)
        with torch.no_grad():
            return model(ids).logits.numpy()

    first = scaled(10, 10, 1)
    assert np.abs(scaled(20, 5, 1) - first).max() < 1e-5
    assert np.abs(scaled(20, 10, 1) - first).max() > 1e-4
    assert np.abs(scaled(10, 10, 2) - first).max() > 1e-3
