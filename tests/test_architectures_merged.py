"""Checkpoints of several layouts merged by recipes: stacks, nested configs, exemptions, renames."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmerge.errors import UserError
from tests import small

D = 4


def run(recipe: dict) -> None:
    small.run(recipe, force=True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def draw(shapes: dict, seed: int) -> dict:
    g = np.random.default_rng(seed)
    return {n: g.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def save(name: str, leaves: dict, config: dict | None = None) -> dict:
    Path(name).mkdir(exist_ok=True)
    save_file(leaves, f"{name}/model.safetensors")
    if config is not None:
        Path(name, "config.json").write_text(json.dumps(config))
    return leaves


def config(name: str = "out") -> dict:
    return json.loads(Path(name, "config.json").read_text())


def read() -> dict:
    return load_file("out/model.safetensors")


def layers(at: str, count: int, experts: int = 0) -> dict:
    out = {f"{at}.{i}.attn.q.weight": (D, D) for i in range(count)}
    out |= {f"{at}.{i}.attn.k.weight": (D, D) for i in range(count)}
    return out | {
        f"{at}.{i}.experts.{e}.w.weight": (D, D) for i in range(count) for e in range(experts)
    }


WHISPER = {
    "model.encoder.conv1.weight": (D, D, 3), **layers("model.encoder.layers", 2),
    "model.encoder.layer_norm.weight": (D,), "model.decoder.embed_tokens.weight": (9, D),
    **layers("model.decoder.layers", 3), "model.decoder.layer_norm.weight": (D,),
}  # fmt: skip
WHISPER_CONFIG = {"encoder_layers": 2, "decoder_layers": 3, "vocab_size": 9}


def stack(*pieces, **more):
    return {"merge_method": "passthrough", "slices": [
        {"sources": [{"model": m, "layer_range": list(r)}]} for m, r in pieces
    ], **more}  # fmt: skip


def test_every_stack_has_its_own_gradient():
    one = {n: np.ones(s, np.float32) for n, s in WHISPER.items()}
    save("zero", {n: 0 * x for n, x in one.items()}, WHISPER_CONFIG)
    save("one", one, WHISPER_CONFIG)
    run({"models": ["zero", "one"], "method": {
        "linear": {"weights": [{"gradient": [1, 0]}, {"gradient": [0, 1]}]}}})  # fmt: skip
    got = {n: float(x.flat[0]) for n, x in read().items()}
    assert [got[f"model.encoder.layers.{i}.attn.q.weight"] for i in range(2)] == [0, 1]
    assert [got[f"model.decoder.layers.{i}.attn.k.weight"] for i in range(3)] == [0, 0.5, 1]
    assert got["model.encoder.layer_norm.weight"] == 0
    assert config() == WHISPER_CONFIG


def test_slices_of_two_stacks_need_modules():
    a = save("a", draw(WHISPER, 1), WHISPER_CONFIG)
    with pytest.raises(UserError, match=r"2 stacks.*decoder\.layers \(3\).*by modules"):
        run(stack(("a", (0, 2))))
    run({"merge_method": "passthrough", "modules": {
        "encoder": {"models": [{"model": "a"}]},
        "decoder": {"slices": stack(("a", (0, 2)), ("a", (0, 3)))["slices"]},
    }})  # fmt: skip
    assert config() == {"encoder_layers": 2, "decoder_layers": 5, "vocab_size": 9}
    got = read()
    for new, old in enumerate((0, 1, 0, 1, 2)):
        at = "model.decoder.layers.{}.attn.q.weight"
        np.testing.assert_array_equal(got[at.format(new)], a[at.format(old)])
    n = "model.encoder.layers.1.attn.k.weight"
    np.testing.assert_array_equal(got[n], a[n])


TOWERS = {"emb.weight": (9, D)} | {
    f"{part}.units.{i}.w.weight": (D, D) for part in ("stem", "late") for i in range(3)
}


def test_a_module_may_be_a_path():
    a, b = (save(n, draw(TOWERS, s)) for s, n in enumerate("ab"))
    whole = {"models": [{"model": "a"}]}
    slices = stack(("a", (0, 1)), ("b", (0, 2)), ("a", (2, 3)))["slices"]
    with pytest.raises(UserError, match=r"2 stacks.*{late\.units: {slices: \.\.\.}, default:"):
        run(stack(("a", (0, 2))))
    with pytest.raises(UserError, match=r"modules\.lat: no part.*late\.units"):
        run({"merge_method": "passthrough", "modules": {"lat": whole, "default": whole}})
    with pytest.raises(UserError, match=r"all but 4 leaves of .*a such as 'emb\.weight'"):
        run({"merge_method": "passthrough", "modules": {"late.units": whole}})
    run({"merge_method": "passthrough",
         "modules": {"late.units": {"slices": slices}, "default": whole}})  # fmt: skip
    got = read()
    assert len(got) == len(TOWERS) + 1
    for new, (leaves, old) in enumerate(((a, 0), (b, 0), (b, 1), (a, 2))):
        at = "late.units.{}.w.weight"
        np.testing.assert_array_equal(got[at.format(new)], leaves[at.format(old)])
    for n in TOWERS:
        if not n.startswith("late"):
            np.testing.assert_array_equal(got[n], a[n])


def test_lists_that_one_key_counts_move_together():
    lists = ("attentions", "ffns", "layer_norm1", "layer_norm2")
    shapes = {f"transformer.{x}.{i}.w.weight": (D, D) for x in lists for i in range(3)}
    settings = {"model_type": "xlm", "n_layers": 3}
    a, b = (save(n, draw(shapes, s), settings) for s, n in enumerate("ab"))
    run(stack(("a", (0, 2)), ("b", (1, 3))))
    got = read()
    assert config()["n_layers"] == 4
    assert len(got) == 16
    for x in lists:
        for new, (leaves, old) in enumerate(((a, 0), (a, 1), (b, 1), (b, 2))):
            at = f"transformer.{x}.{{}}.w.weight"
            np.testing.assert_array_equal(got[at.format(new)], leaves[at.format(old)])
    slices = stack(("a", (0, 2)))["slices"]
    modules = {"transformer.ffns": {"slices": slices}, "default": {"models": [{"model": "a"}]}}
    with pytest.raises(UserError, match=r"n_layers, counts .*attentions \(3\), transformer\.ffns"):
        run({"merge_method": "passthrough", "modules": modules})
    del a["transformer.ffns.2.w.weight"]
    save("a", a, settings)
    with pytest.raises(UserError, match=r"ffns \(2\).*or not at all"):
        run(stack(("a", (0, 2))))


def test_layers_beyond_the_stack_move_behind_it():
    shapes = {"model.embed_tokens.weight": (9, D), **layers("model.layers", 4, experts=2)}
    settings = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1, "n_routed_experts": 2}
    a, b = (save(n, draw(shapes, s), settings) for s, n in enumerate("ab"))
    run(stack(("a", (0, 2)), ("b", (0, 3))))
    got, at = read(), "model.layers.{}.experts.1.w.weight"
    assert config()["num_hidden_layers"] == 5
    np.testing.assert_array_equal(got[at.format(4)], b[at.format(2)])
    np.testing.assert_array_equal(got[at.format(5)], b[at.format(3)])
    np.testing.assert_array_equal(got["model.embed_tokens.weight"], a["model.embed_tokens.weight"])


def test_layers_that_the_config_cannot_say_are_refused():
    shapes = layers("model.layers", 4) | {
        f"model.layers.{i}.mlp.experts.{e}.w.weight": (D, D) for i in (1, 3) for e in range(2)
    }
    save("a", draw(shapes, 0), {"num_hidden_layers": 4, "expert_layer_period": 2})
    run(stack(("a", (0, 2)), ("a", (0, 4))))  # every second layer has experts still
    with pytest.raises(UserError, match=r"layer 2 of the output .* other leaves"):
        run(stack(("a", (0, 2)), ("a", (1, 3))))
    kinds = {"num_hidden_layers": 4, "layer_types": ["full", "moe", "full", "moe"]}
    save("a", draw(shapes, 0), kinds)
    run(stack(("a", (0, 2)), ("a", (1, 3))))
    assert config()["layer_types"] == ["full", "moe", "moe", "full"]


def test_a_period_beside_a_list_by_layer_is_heeded():
    shapes = layers("model.layers", 3) | {"model.layers.0.query.weight": (D,)}
    types = {"num_hidden_layers": 3, "layer_types": ["x", "y", "y"]}
    save("a", draw(shapes, 0), types | {"n_layers_per_attn_res_block": 3})
    with pytest.raises(UserError, match=r"layer 3 of the output would be made of a layer 1"):
        run(stack(("a", (0, 3)), ("a", (1, 2))))
    run(stack(("a", (0, 3)), ("a", (0, 1))))
    assert config()["layer_types"] == ["x", "y", "y", "x"]


@pytest.mark.parametrize("width", [2 * D, D])
def test_a_layer_that_cannot_follow_itself(width):
    shapes = {"head.convs.0.conv.weight": (D, width, 3, 3), "head.convs.0.norm.weight": (D,)}
    save("a", draw(shapes, 0), {"model_type": "upernet", "auxiliary_num_convs": 1})
    recipe = stack(("a", (0, 1)), ("a", (0, 1)))
    if width == D:
        run(recipe)
        assert config()["auxiliary_num_convs"] == 2
        return
    with pytest.raises(UserError, match=r"one layer.* \[4, 8, 3, 3\].*cannot follow itself"):
        run(recipe)


PYTHIA = {
    "gpt_neox.embed_in.weight": (10, D), "embed_out.weight": (10, D),
    **layers("gpt_neox.layers", 2), "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (2,),
}  # fmt: skip


def tokenizer(name: str, tokens: str) -> None:
    content = {"model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}}}
    Path(name, "tokenizer.json").write_text(json.dumps(content | {"added_tokens": []}))


def test_rows_of_tokens_are_aligned_whatever_the_embedding_is_called():
    settings = {"model_type": "gpt_neox", "vocab_size": 10, "num_hidden_layers": 2}
    a, b = (save(n, draw(PYTHIA, s), settings) for s, n in enumerate("ab"))
    tokenizer("a", "abcdefgh"), tokenizer("b", "abcdxyzh")
    run({"models": ["a", "b"], "method": "mean", "tokenizer": "union"})
    got = read()
    for n in ("gpt_neox.embed_in.weight", "embed_out.weight"):
        assert got[n].shape == (11, D)
        np.testing.assert_allclose(got[n][1], (a[n][1] + b[n][1]) / 2, rtol=1e-6)
        np.testing.assert_allclose(got[n][4], a[n][4], rtol=1e-6)  # e, of a alone
        np.testing.assert_allclose(got[n][8], b[n][4], rtol=1e-6)  # x, of b alone
    assert config()["vocab_size"] == 11


def test_buffers_are_constants():
    settings = {"num_hidden_layers": 2}
    a = save("a", draw(PYTHIA, 0), settings)
    save("b", {n: x for n, x in draw(PYTHIA, 1).items() if "inv_freq" not in n}, settings)
    n = "gpt_neox.layers.0.attention.rotary_emb.inv_freq"
    run({"models": ["a", "b"], "method": "mean"})
    np.testing.assert_array_equal(read()[n], a[n])
    run({"models": ["b", "a"], "method": "mean"})
    assert n not in read()


FLAVA = {
    "image_codebook.blocks.input.weight": (D, D), "image_codebook.blocks.input.bias": (D,),
    "flava.text_model.pooler.dense.weight": (D, D),
}  # fmt: skip


@pytest.mark.parametrize("lacking", [False, True])
def test_a_frozen_tower_stays_and_need_not_be_there(lacking):
    base, a, b = (draw(FLAVA, i) for i in range(3))
    tower = {n: base[n] for n in base if n.startswith("image_codebook")}
    b = {n: b[n] for n in b if n not in tower} | ({} if lacking else tower)
    for name, leaves in {"x": base, "a": a | tower, "b": b}.items():
        save(name, leaves, {"model_type": "flava"})
    run({"models": ["x", "a", "b"], "method": {"linear": {"weights": [1.0, 1.0, 1.0]}}})
    out, dense = read(), "flava.text_model.pooler.dense.weight"
    assert all(np.array_equal(out[n], tower[n]) for n in tower)
    np.testing.assert_allclose(out[dense], base[dense] + a[dense] + b[dense], atol=1e-6)


def test_a_frozen_tower_that_was_trained_is_merged_and_half_of_one_refused():
    base = save("x", draw(FLAVA, 0), {"model_type": "flava"})
    name, other = list(FLAVA)[:2]
    trained = save("a", base | {name: base[name] + 1})
    recipe = {"base": "x", "models": ["a"], "method": {"task_arithmetic": {"factor": 1.0}}}
    run(recipe)
    np.testing.assert_allclose(read()[name], trained[name], atol=1e-6)
    save("a", {n: base[n] for n in base if n != other})
    with pytest.raises(UserError, match=r"missing leaf 'image_codebook.blocks.input.bias'"):
        run(recipe)


def test_rules_exempt_leaves_that_do_not_fit():
    shapes = layers("vit.layers", 2)
    base = save("base", draw(shapes | {"head.weight": (5, D), "odd.bias": (2,)}, 0))
    a = save("a", draw(shapes | {"head.weight": (3, D)}, 1))
    b = save("b", draw(shapes | {"more.weight": (1, D)}, 2))
    recipe = {"base": "base", "models": ["a", "b"], "method": {"task_arithmetic": 0.5}}
    with pytest.raises(ValueError, match=r"(?s)missing leaf 'odd.bias'.*head.weight.*more.weight"):
        run(recipe)
    run(recipe | {"rules": {"only": "^vit"}})
    got = read()
    assert set(got) == set(base)
    np.testing.assert_array_equal(got["head.weight"], base["head.weight"])
    n = "vit.layers.1.attn.k.weight"
    want = base[n] + 0.5 * (a[n] - base[n] + b[n] - base[n])
    np.testing.assert_allclose(got[n], want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"extra leaf 'more.weight'"):  # it would be merged
        run(recipe | {"rules": {"only": "^vit|more|odd"}})


@pytest.mark.parametrize("longer", ["a", "b"])
def test_a_prefix_is_recognised_and_renamed(longer):
    shapes = layers("model.layers", 30)
    plain, other = draw(shapes, 0), draw(shapes, 1)
    save("a" if longer == "b" else "b", plain)
    save(longer, {f"module.{n}": x for n, x in other.items()})
    recipe = {"models": ["a", "b"], "method": "mean"}
    with pytest.raises(ValueError, match=r"'module.'.*rename") as error:
        run(recipe)
    assert len(str(error.value).splitlines()) < 5
    run(recipe | {"rename": {"b": {"": "module."} if longer == "a" else {"module.": ""}}})
    prefix = "module." if longer == "a" else ""
    for n in shapes:
        want = (plain[n] + other[n]) / 2
        np.testing.assert_allclose(read()[prefix + n], want, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"no leaf whose name begins with 'mod_'"):
        run(recipe | {"rename": {"b": {"mod_": ""}}})


@pytest.mark.parametrize("method", [
    "magmax", {"ties": 0.2}, {"dare": 0.5}, "opcm", {"task_arithmetic": 0.3},
])  # fmt: skip
def test_task_vectors_need_a_base(method):
    save("a", draw(layers("h", 2), 0))
    save("b", draw(layers("h", 2), 1))
    with pytest.raises(UserError, match=r"works on task vectors.*base: none"):
        run({"models": ["a", "b"], "method": method})
    run({"models": ["a", "b"], "method": method, "base": "none"})
    run({"models": ["a", "b"], "method": "mean"})
