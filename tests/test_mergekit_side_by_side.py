"""mergekit's YAML on small files: what published recipes hold, in closed form.

`experiments/mergekit_parity.py` runs both programs; here only this one runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.cli import merge
from jaxmerge.errors import UserError

LAYERS = 4


def leaves(seed: int, rows: int = 6) -> dict:
    rng = np.random.default_rng(seed)
    draw = lambda *s: rng.normal(size=s).astype(np.float32)
    out = {"model.embed_tokens.weight": draw(rows, 4), "model.norm.weight": draw(4)}
    for i in range(LAYERS):
        out[f"model.layers.{i}.mlp.up_proj.weight"] = draw(8, 4)
        out[f"model.layers.{i}.input_layernorm.weight"] = draw(4)
    return out


def tokenizer(tokens: dict, added: list) -> str:
    entries = [{"content": t, "id": i, "special": True} for t, i in added]
    model = {"type": "BPE", "vocab": tokens, "merges": []}
    return json.dumps({"version": "1.0", "added_tokens": entries, "model": model})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"model_type": "llama", "num_hidden_layers": LAYERS, "vocab_size": 6}
    words = {f"t{i}": i for i in range(6)}
    for i, name in enumerate(("base", "a", "b", "c")):
        (tmp_path / name).mkdir()
        save_file(leaves(i), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "tokenizer.json").write_text(tokenizer(words, []))
    return tmp_path


def run(*documents: dict, **options) -> dict:
    with open("recipe.yml", "w") as file:
        yaml.safe_dump_all(documents, file, sort_keys=False)
    merge.run("recipe.yml", "out", force=True, quiet=True, **options)
    return load_file("out/model.safetensors")


def models(*names, **parameters) -> list:
    """Entries of the recipe; a parameter that is a tuple has a value for each model."""
    own = lambda i: {k: v[i] if isinstance(v, tuple) else v for k, v in parameters.items()}
    return [{"model": n, "parameters": own(i)} for i, n in enumerate(names)]


def pieces(*spans, **more) -> list:
    one = lambda m, a, b, p: {"model": m, "layer_range": [a, b], "parameters": p}
    return [{"sources": [one(*s) for s in span]} | more for span in spans]


def test_a_gradient_runs_within_each_slice(folder):
    ramp = {"weight": [0.0, 1.0]}
    rest = {"weight": [1.0, 0.0]}
    spans = [("a", 0, 2, ramp), ("b", 0, 2, rest)], [("a", 2, 3, ramp), ("b", 2, 3, rest)]
    out = run({"merge_method": "linear", "slices": pieces(*spans)})
    a, b = leaves(1), leaves(2)
    n = "model.layers.{}.mlp.up_proj.weight"
    for layer, chosen in ((0, b), (1, a), (2, a)):  # a slice of one layer stands at its end
        np.testing.assert_allclose(out[n.format(layer)], chosen[n.format(layer)], atol=1e-6)
    assert n.format(3) not in out


def test_filters_match_the_name_in_the_input(folder):
    weight = {"weight": [{"filter": "layers.3.", "value": 1.0}, {"value": 0.25}]}
    other = {"weight": [{"filter": "layers.0.", "value": 0.0}, {"value": 0.75}]}
    out = run(
        {"merge_method": "linear", "slices": pieces([("a", 3, 4, weight), ("b", 0, 1, other)])}
    )
    n = "model.layers.{}.input_layernorm.weight"
    np.testing.assert_allclose(out[n.format(0)], leaves(1)[n.format(3)], atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_a_base_that_is_not_among_the_models_enters(folder, method):
    out = run({"merge_method": method, "base_model": "base", "models": models("a", "b"),
               "parameters": {"weight": 0.3} if method == "linear" else {}})  # fmt: skip
    every = [leaves(i) for i in (1, 2, 0)]
    same = jm.linear(1.0, normalize=True) if method == "linear" else jm.karcher()
    expected = jm.merge(same, None, every)
    for n in expected:
        np.testing.assert_allclose(out[n], expected[n], atol=1e-6)


def test_ties_keeps_as_many_entries_as_the_density_says(folder):
    """Changes as in bfloat16: a few magnitudes, each many times."""
    base, rng = leaves(0), np.random.default_rng(5)
    change = {n: rng.integers(-2, 3, x.shape).astype(np.float32) for n, x in base.items()}
    save_file({n: base[n] * 0 for n in base}, "base/model.safetensors")
    save_file(change, "a/model.safetensors")
    recipe = {"merge_method": "ties", "base_model": "base"}
    out = run(recipe | {"models": models("a", weight=1.0, density=0.4)})
    for n, x in change.items():
        survivors, k = np.flatnonzero(out[n]), max(1, int(0.4 * x.size))
        size = np.abs(x).ravel()
        first = sorted(range(x.size), key=lambda i, s=size: (-s[i], i))[:k]
        assert set(survivors) == {i for i in first if size[i]}, n  # of equal ones the first


@pytest.mark.parametrize("density", [0.0, 0.03, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [None, 0.1])
def test_exact_counts_are_the_same_in_memory_compiled_sharded_and_from_files(
    tmp_path, density, gamma
):
    import jax

    rng = np.random.default_rng(7)
    row = {"w": rng.integers(-3, 4, (96, 700)).astype(np.float32)}  # larger than one piece
    base = {"w": np.zeros_like(row["w"])}
    if gamma is None:
        stage = jm.trim(density, scope="leaf", exact=True)
    else:
        stage = jm.drop_outliers(density, gamma, exact=True)
    method = jm.chain(stage, jm.add())
    actual = jm.merge(method, base, [row])["w"]
    m = max(1, int(density * row["w"].size)) if density else 0
    top = min(int((gamma or 0) * row["w"].size), row["w"].size - m)
    size = np.abs(row["w"]).ravel()
    order = np.lexsort((np.arange(size.size), -size))[top : top + m]
    expected = np.zeros(size.size, np.float32)
    expected[order] = row["w"].ravel()[order]
    np.testing.assert_array_equal(actual.ravel(), expected)
    compiled = jax.jit(lambda b, r: jm.merge(method, b, [r]))(base, row)["w"]
    np.testing.assert_array_equal(compiled, actual)
    grid = jm.mesh(1, 2)
    cut = jm.merge(method, jm.shard(base, grid), [jm.shard(row, grid)])["w"]
    np.testing.assert_array_equal(cut, actual)
    for name, tree in (("base", base), ("row", row)):
        save_file(tree, tmp_path / f"{name}.safetensors")
    jm.merge_files(
        method, base=tmp_path / "base.safetensors", models=[tmp_path / "row.safetensors"],
        out=tmp_path / "out",
    )  # fmt: skip
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")["w"], actual)


def test_exact_needs_single_leaves():
    with pytest.raises(ValueError, match='scope="leaf"'):
        jm.trim(0.2, exact=True)


def test_what_no_method_reads_is_named_and_refused_only_if_strict(folder, capsys):
    recipe = {"merge_method": "slerp", "base_model": "a", "embed_slerp": True,
              "models": models("b", weight=0.5, revision="main"),
              "parameters": {"t": "0.25"}}  # fmt: skip
    plain = run(recipe)
    message = capsys.readouterr().err
    assert all(k in message for k in ("'embed_slerp'", "'weight'", "'revision'"))
    expected = jm.merge(jm.slerp(0.25), None, [leaves(1), leaves(2)])
    np.testing.assert_allclose(plain["model.norm.weight"], expected["model.norm.weight"], atol=1e-6)
    with pytest.raises(UserError, match=r"models\[0\]: parameters: nothing reads 'weight'"):
        run(recipe, strict=True)


@pytest.mark.parametrize(
    ("method", "entry", "expected"),
    [
        ("della", {"weight": 1.0}, 1.0),  # a density of 1 by default drops nothing
        ("dare_linear", {"weight": 1.0, "density": 0}, 0.0),
        ("dare_ties", {"weight": 1.0, "density": 0.0}, 0.0),
        ("ties", {"weight": 1.0, "density": 0}, 0.0),
        ("breadcrumbs", {"weight": 1.0, "density": 0}, 0.0),
        ("task_arithmetic", {"weight": "5e-1"}, 0.5),
        ("task_arithmetic", {"weight": {"filter": "*", "value": 0.5}}, 0.5),
    ],
)
def test_values_as_published_recipes_write_them(folder, method, entry, expected):
    out = run({"merge_method": method, "base_model": "base",
               "models": [{"model": "a", "parameters": entry}]})  # fmt: skip
    base, one = leaves(0), leaves(1)
    for n in base:
        np.testing.assert_allclose(out[n], base[n] + expected * (one[n] - base[n]), atol=1e-6)


def test_a_window_beyond_one_is_refused_in_the_recipes_numbers(folder):
    recipe = {"merge_method": "della", "base_model": "base",
              "models": models("a", weight=1.0, density=0.9)}  # fmt: skip
    with pytest.raises(UserError, match=r"density 0\.9, epsilon 0\.15"):
        run(recipe)


def test_weights_that_add_up_to_nothing_give_the_middle(folder):
    out = run({"merge_method": "nuslerp", "models": models("a", "b", weight=(1.0, -1.0))})
    expected = jm.merge(jm.slerp(0.5), None, [leaves(1), leaves(2)])
    n = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_allclose(out[n], expected[n], atol=1e-6)


def test_a_setting_by_layers_may_be_of_truth_values(folder):
    out = run({"merge_method": "task_arithmetic", "base_model": "base",
               "models": models("a", "b", weight=(1.0, 3.0)),
               "parameters": {"normalize": [True, False]}})  # fmt: skip
    base, a, b = leaves(0), leaves(1), leaves(2)
    for layer, total in ((0, 4.0), (LAYERS - 1, 1.0)):
        n = f"model.layers.{layer}.mlp.up_proj.weight"
        expected = base[n] + ((a[n] - base[n]) + 3 * (b[n] - base[n])) / total
        np.testing.assert_allclose(out[n], expected, atol=1e-5)


LAST = {"merge_method": "linear", "models": models("second", "c", weight=1.0)}
SECOND = {"name": "second", "merge_method": "linear", "models": models("first", "b", weight=1.0)}
FIRST = {"name": "first", "merge_method": "linear", "models": models("a", "b", weight=1.0)}


@pytest.mark.parametrize("documents", [(LAST, SECOND, FIRST), (FIRST, LAST, SECOND)])
def test_documents_in_any_order(folder, documents):
    out, n = run(*documents), "model.norm.weight"
    a, b, c = (leaves(i)[n] for i in (1, 2, 3))
    np.testing.assert_allclose(out[n], (((a + b) / 2 + b) / 2 + c) / 2, atol=1e-6)


def test_documents_that_wait_for_each_other(folder):
    circle = FIRST | {"models": models("second", "b", weight=1.0)}
    with pytest.raises(UserError, match=r"wait for each other: .*first.*second"):
        run(LAST, SECOND, circle)


def test_one_tokenizer_choice(folder):
    with pytest.raises(UserError, match="tokenizer and tokenizer_source"):
        run({"merge_method": "linear", "models": models("a", "b", weight=1.0),
             "tokenizer_source": "union", "tokenizer": {"source": "union"}})  # fmt: skip


def test_a_token_that_no_model_has_is_added(folder):
    token = {"source": {"kind": "model_token", "model": "a", "token": "t3"}}
    out = run({"merge_method": "linear", "models": models("a", "b", weight=1.0),
               "tokenizer": {"source": "union", "tokens": {"<new>": token}}})  # fmt: skip
    rows = out["model.embed_tokens.weight"]
    assert len(rows) == 7
    np.testing.assert_allclose(rows[6], leaves(1)["model.embed_tokens.weight"][3], atol=1e-6)
    added = json.loads(Path("out/tokenizer.json").read_text())["added_tokens"]
    assert [(t["content"], t["id"]) for t in added] == [("<new>", 6)]


def test_more_tokens_than_rows(folder, capsys):
    words = {f"t{i}": i for i in range(6)}
    with open("a/tokenizer.json", "w") as file:
        file.write(tokenizer(words, [("<beyond>", 6), ("<further>", 7)]))
    with open("b/tokenizer.json", "w") as file:
        file.write(tokenizer(words, [("<chat>", 6)]))
    save_file(leaves(2, rows=7), "b/model.safetensors")
    out = run({"merge_method": "linear", "models": models("a", "b", weight=1.0),
               "tokenizer_source": "union"})  # fmt: skip
    rows = out["model.embed_tokens.weight"]
    assert "8 tokens, its embedding 6 rows" in capsys.readouterr().err
    np.testing.assert_allclose(rows[6], leaves(2, rows=7)["model.embed_tokens.weight"][6])
    added = json.loads(Path("out/tokenizer.json").read_text())["added_tokens"]
    assert [(t["content"], t["id"]) for t in added] == [("<chat>", 6)]


def test_leaves_that_some_models_lack(folder):
    for name, lacks in (("a", "model.norm.weight"), ("b", "model.embed_tokens.weight")):
        chosen = load_file(f"{name}/model.safetensors")
        chosen.pop(lacks)
        save_file(chosen, f"{name}.safetensors")
    recipe = {"merge_method": "linear",
              "models": models("a.safetensors", "b.safetensors", weight=(1.0, 3.0))}  # fmt: skip
    both = run(recipe, tensor_intersection=True)
    assert set(both) == {n for n in leaves(0) if "layers" in n}
    every = run(recipe, tensor_union=True)
    assert set(every) == set(leaves(0))
    n = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_allclose(every[n], (leaves(1)[n] + 3 * leaves(2)[n]) / 4, atol=1e-6)
    n = "model.norm.weight"
    np.testing.assert_allclose(every[n], leaves(2)[n], atol=1e-6)
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        run(recipe)


def test_a_recipe_for_a_mixture_of_experts_is_recognised(folder):
    with pytest.raises(UserError, match="mergekit-moe"):
        run({"base_model": "base", "gate_mode": "hidden", "experts": [{"source_model": "a"}]})


def rename(folder, table: dict, **config) -> None:
    """Give the leaves of all models other names."""
    for name in ("base", "a", "b", "c"):
        file = folder / name / "model.safetensors"
        old = load_file(file)
        new = {}
        for n, x in old.items():
            for was, now in table.items():
                n = n.replace(was, now)
            new[n] = x
        save_file(new, file)
        old = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps({**old, **config}))


def test_mlp_is_a_part_where_no_name_has_that_word(folder, capsys):
    rename(folder, {"model.layers": "model.decoder.layers", "mlp.up_proj": "fc1"}, model_type="opt")
    weight = [{"filter": "mlp", "value": 1.0}, {"value": 0.0}]
    got = run({"merge_method": "linear", "models": [
        {"model": "a", "parameters": {"weight": weight}},
        {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 0.0}, {"value": 1}]}},
    ]})  # fmt: skip
    for n, x in got.items():
        np.testing.assert_array_equal(
            x, load_file(f"{'a' if 'fc1' in n else 'b'}/model.safetensors")[n]
        )
    assert "taken as the mlp" in capsys.readouterr().err


@pytest.mark.parametrize("first", [1, 2])
def test_numbers_of_layers_that_do_not_begin_at_0(folder, first):
    """The output counts from where its first model does, whatever the second one does."""
    shift = {f"layers.{i}.": f"layers.{i + first}.@" for i in reversed(range(LAYERS))}
    rename(folder, {**shift, "@": ""}, model_type="unknown")
    b = load_file(folder / "b" / "model.safetensors")
    back = lambda n: re.sub(r"layers\.(\d+)", lambda m: f"layers.{int(m[1]) - first}", n)
    save_file({back(n): x for n, x in b.items()}, folder / "b" / "model.safetensors")
    piece = lambda m, *r: {"sources": [{"model": m, "layer_range": list(r)}]}
    got = run({"merge_method": "passthrough", "slices": [piece("a", 0, 2), piece("b", 1, 4)]})
    a = load_file(folder / "a" / "model.safetensors")
    b = load_file(folder / "b" / "model.safetensors")
    n = "model.layers.{}.mlp.up_proj.weight"
    assert len(got) == 2 + 2 * 5
    for i, want in enumerate(
        [a[n.format(first)], a[n.format(first + 1)], *map(b.get, map(n.format, (1, 2, 3)))]
    ):
        np.testing.assert_array_equal(got[n.format(i + first)], want)
    assert json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 5
