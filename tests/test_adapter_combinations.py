"""Adapters combined with each other: PEFT's numbers, closed forms, recipes, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jaxmerge.cli import merge
from jaxmerge.errors import UserError
from jaxmerge.io.adapters import Adapter
from jaxmerge.io.adapters.combine import METHODS, Combination
from jaxmerge.io.sources import open_source

GOLDEN = Path(__file__).parent / "golden/peft_lora/combine.npz"
GOLDENS = {
    "linear_ab": ("linear", [0.7, -0.4], {}),
    "cat_abc": ("cat", [0.7, 0.4, 1.5], {}),
    "svd_abc": ("svd", [0.7, 0.4, 1.5], {"rank": 3}),
    "magnitude_prune_ab": ("magnitude_prune", [1, 0.5], {"density": 0.5}),
    "ties_ab": ("ties", [1, 1], {"density": 0.5}),
    "ties_svd_ab": ("ties_svd", [1, 0.5], {"density": 0.5, "rank": 3}),
}


def adapter(folder, factors, r=3, alpha=None, **config):
    """`factors`: module -> (A, B); alpha = r gives scale 1."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in factors.items():
        key = f"base_model.model.{module}"
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    tensors = {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    alpha = r if alpha is None else alpha
    targets = sorted({m.rpartition(".")[2] for m in factors})
    config = {"r": r, "lora_alpha": alpha, "target_modules": targets, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def golden(tmp_path):
    """The three adapters of the golden file as folders, and the file."""
    z = np.load(GOLDEN)
    modules = dict.fromkeys(k.split("/")[0] for k in z)
    for name, r in (("a", 3), ("b", 3), ("c", 2)):
        factors = {m: (z[f"{m}/{name}/A"], z[f"{m}/{name}/B"]) for m in modules}
        scale = float(z[f"{next(iter(modules))}/{name}/scaling"])
        adapter(tmp_path / name, factors, r, r * scale)
    return z, list(modules)


@pytest.mark.parametrize("case", GOLDENS)
def test_peft_combines_the_same(tmp_path, golden, case):
    z, modules = golden
    method, weights, settings = GOLDENS[case]
    adapters = [Adapter(tmp_path / n) for n in case.rpartition("_")[2]]
    combination = Combination(adapters, method, weights=weights, **settings)
    for m in modules:
        a, b = combination.factors(m)
        np.testing.assert_allclose(b @ a, z[f"{m}/{case}/delta"], atol=1.3e-6)
        if f"{m}/{case}/A" in z:
            np.testing.assert_allclose(a, z[f"{m}/{case}/A"], atol=1e-6)
            np.testing.assert_allclose(b, z[f"{m}/{case}/B"], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_writes_an_adapter(tmp_path, golden, method, monkeypatch):
    """What is written, put on a base, is what `Combination` computes; resolved it comes again."""
    monkeypatch.chdir(tmp_path)
    _, modules = golden
    settings = {"weights": [0.7, 0.4]}
    settings |= {} if method in ("cat", "linear", "svd") else {"density": 0.5}
    Path("r.yaml").write_text(
        yaml.safe_dump({"adapters": ["a", "b"], "method": {method: settings}})
    )
    merge.run(Path("r.yaml"), Path("out"), quiet=True)
    combination = Combination([Adapter("a"), Adapter("b")], method, **settings)
    sizes = {
        m: (combination.factors(m)[1].shape[0], combination.factors(m)[0].shape[1]) for m in modules
    }
    Path("base").mkdir()
    save_file({f"{m}.weight": np.zeros(s, np.float32) for m, s in sizes.items()},
              "base/model.safetensors")  # fmt: skip
    source = open_source("base+out")
    for m in modules:
        a, b = combination.factors(m)
        np.testing.assert_allclose(source[f"{m}.weight"], b @ a, atol=1e-6)
    merge.run(Path("out/recipe.resolved.yaml"), Path("again"), quiet=True)
    first, second = (Path(p, "adapter_model.safetensors").read_bytes() for p in ("out", "again"))
    assert first == second
    assert not Path("out/model.safetensors").exists()


def test_a_stage_of_adapters_is_put_on_its_base(tmp_path, golden, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, modules = golden
    sizes = {m: (Adapter("a").product(x).shape) for m, x in Adapter("a").modules.items()}
    Path("base").mkdir()
    save_file({f"{m}.weight": np.zeros(s, np.float32) for m, s in sizes.items()},
              "base/model.safetensors")  # fmt: skip
    first = {"name": "both", "adapters": ["a", "b"], "method": {"cat": {"weights": [0.5, 0.5]}}}
    second = {"models": ["base+both", "base+c"], "method": "mean"}
    Path("r.yaml").write_text(yaml.safe_dump_all([first, second]))
    merge.run(Path("r.yaml"), Path("out"), quiet=True)
    out = load_file("out/model.safetensors")
    for m in modules:
        a, b, c = (Adapter(n).product(Adapter(n).modules[m]) for n in "abc")
        np.testing.assert_allclose(out[f"{m}.weight"], a / 4 + b / 4 + c / 2, atol=1e-6)


def test_dare_keeps_the_expected_change(tmp_path):
    g = np.random.default_rng(0)
    one = {"x": (np.ones((2, 300)), np.ones((200, 2)))}
    two = {"x": (g.normal(size=(2, 300)), g.normal(size=(200, 2)))}
    pair = [Adapter(adapter(tmp_path / n, f, 2)) for n, f in (("a", one), ("b", two))]
    a, b = Combination(pair, "dare_linear", weights=[1, 0], density=0.25).factors("x")
    assert set(np.unique(a)) == {0, 4}
    assert abs(a.mean() - 1) < 0.2
    other, _ = Combination(pair, "dare_linear", weights=[1, 0], density=0.25, seed=1).factors("x")
    assert (a != other).any()
    for method in ("dare_ties", "dare_ties_svd", "dare_linear_svd"):
        a, b = Combination(pair, method, density=0.0).factors("x")
        assert not (b @ a).any()


def test_modules_of_some_and_ranks_that_differ(tmp_path):
    """A module that only one adapter changes is that one's, and its rank stays its own."""
    g = np.random.default_rng(1)
    draw = lambda r, into, out: (g.normal(size=(r, into)), g.normal(size=(out, r)))
    first = {"l.q": draw(2, 6, 4), "l.k": draw(2, 6, 4)}
    second = {"l.q": draw(3, 6, 4)}
    adapter(tmp_path / "a", first, 2, 4)
    adapter(tmp_path / "b", second, 3)
    combination = Combination([Adapter(tmp_path / n) for n in "ab"], "cat", weights=[1, -2])
    want = 2 * first["l.q"][1] @ first["l.q"][0] - 2 * second["l.q"][1] @ second["l.q"][0]
    a, b = combination.factors("l.q")
    np.testing.assert_allclose(b @ a, want, atol=1e-5)
    a, b = combination.factors("l.k")
    np.testing.assert_allclose(b @ a, 2 * first["l.k"][1] @ first["l.k"][0], atol=1e-5)
    config = combination.config()
    assert (config["r"], config["rank_pattern"]) == (5, {"l.k": 2})
    assert config["target_modules"] == ["k", "q"]
    with pytest.raises(UserError, match=r"has ranks \[2, 3\]; linear needs equal"):
        Combination([Adapter(tmp_path / n) for n in "ab"], "linear")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("catt", "did you mean cat"),
        ({"cat": {"weights": [1]}}, "weights must be 2 numbers"),
        ({"cat": {"rank": 2}}, "cat takes no rank"),
        ("ties", "needs a density"),
        ({"ties": {"density": 1.5}}, r"in \[0, 1\]"),
        ({"svd": {"rank": 0}}, "rank must be at least 1"),
        ({"ties": {"density": 1, "sign": "x"}}, "sign must be"),
        ({"cat": {"wieghts": [1, 1]}}, "did you mean weights"),
    ],
)
def test_settings_that_are_wrong(tmp_path, golden, method, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(yaml.safe_dump({"adapters": ["a", "b"], "method": method}))
    for check in (True, False):
        with pytest.raises(UserError, match=words):
            merge.run(Path("r.yaml"), Path("out"), check=check, quiet=True)
    assert not Path("out").exists()


def test_adapters_that_cannot_be_combined(tmp_path):
    g = np.random.default_rng(2)
    plain = {"x": (g.normal(size=(2, 6)), g.normal(size=(4, 2)))}
    adapter(tmp_path / "a", plain, 2)
    wide = {"x": (g.normal(size=(2, 7)), g.normal(size=(4, 2)))}
    adapter(tmp_path / "b", wide, 2)
    with pytest.raises(UserError, match="'x' differs in shape"):
        Combination([Adapter(tmp_path / n) for n in "ab"], "cat")
    dora = adapter(tmp_path / "c", plain, 2, use_dora=True)
    leaves = load_file(dora / "adapter_model.safetensors")
    leaves["base_model.model.x.lora_magnitude_vector"] = np.ones(4, np.float32)
    save_file(leaves, dora / "adapter_model.safetensors")
    with pytest.raises(UserError, match="DoRA"):
        Combination([Adapter(tmp_path / n) for n in "ac"], "cat")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_peft_loads_a_combination(tmp_path):
    """The written folder loads into PEFT and gives the logits of its own `add_weighted_adapter`."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=30, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    load = lambda: LlamaForCausalLM.from_pretrained(tmp_path / "base")
    for i, name in enumerate("ab"):
        torch.manual_seed(i)
        net = peft.get_peft_model(load(), peft.LoraConfig(
            r=2, lora_alpha=3 + i, target_modules=["q_proj", "down_proj"], init_lora_weights=False,
        ))  # fmt: skip
        net.save_pretrained(tmp_path / name)
    recipe = {"adapters": [str(tmp_path / n) for n in "ab"],
              "method": {"ties": {"weights": [1, 0.5], "density": 0.6}}}  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    merge.run(tmp_path / "r.yaml", tmp_path / "out", quiet=True)
    ids = torch.arange(12)[None] % 30
    with torch.no_grad():
        got = peft.PeftModel.from_pretrained(load(), tmp_path / "out")(ids).logits
        net = peft.PeftModel.from_pretrained(load(), tmp_path / "a", adapter_name="a")
        net.load_adapter(tmp_path / "b", adapter_name="b")
        net.add_weighted_adapter(["a", "b"], [1, 0.5], "m", combination_type="ties", density=0.6)
        net.set_adapter("m")
        want = net(ids).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
