"""Side information in recipes: Fisher and Gram files, read leaf by leaf, checked by hashes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge import statistics
from jaxmerge.cli import merge as command
from jaxmerge.drivers.files import strategy, worker
from jaxmerge.errors import UserError
from jaxmerge.io.key_tables import Entry

SHAPES = {"h.0.w": (6, 4), "h.1.w": (4, 6), "norm": (4,)}
NAMES = ("base", "a", "b")


def random(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def side(kind, model, values, **about):
    weights = statistics.weights_hash({n: model[n] for n in values})
    return statistics.Statistic(kind, values, 3, weights, about)


def gram(model, seed, axis=1):
    rng = np.random.default_rng(seed)
    values = {}
    for n in ("h.0.w", "h.1.w"):
        x = rng.normal(size=(20, model[n].shape[axis])).astype(np.float32)
        values[n] = x.T @ x
    return side("gram", model, values, axis=dict.fromkeys(values, axis))


@pytest.fixture
def family(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "cache"))
    models = {name: random(i) for i, name in enumerate(NAMES)}
    for i, (name, model) in enumerate(models.items()):
        Path(name).mkdir()
        save_file(model, f"{name}/model.safetensors")
        fisher = {n: np.square(x) for n, x in random(10 + i).items()}
        statistics.save(side("fisher", model, fisher), f"{name}/fisher.safetensors")
        statistics.save(gram(model, i), f"{name}/gram.safetensors")
    return models


def run(out="out", **recipe):
    Path("r.yaml").write_text(yaml.safe_dump({"base": "base", "models": ["a", "b"]} | recipe))
    command.run("r.yaml", out, quiet=True, force=True)
    return load_file(f"{out}/model.safetensors")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("kind", "method"), [("fisher", "fisher_merging"), ("gram", {"regmean": {"axis": 1}})]
)
def test_the_same_as_in_memory(family, kind, method, named):
    files = [f"{m}/{kind}.safetensors" for m in "ab"]
    extras = [statistics.extras(statistics.load(f)) for f in files]
    merge = jm.fisher_merging() if kind == "fisher" else jm.regmean(axis=1)
    want = jm.merge(merge, family["base"], [family[m] for m in "ab"], extras=extras)
    got = run(method=method, **({"extras": {kind: files}} if named else {}))
    for n in want:
        np.testing.assert_array_equal(got[n], want[n])
    assert np.abs(got["h.0.w"] - (family["a"]["h.0.w"] + family["b"]["h.0.w"]) / 2).max() > 0.1


def test_a_leaf_at_a_time(family, monkeypatch):
    """A leaf too large for all models at once meets the side information of one model at a time."""

    want = run(method="fisher_merging")
    for module in (strategy, worker):
        monkeypatch.setattr(module, "ROOM", 50)
    got = run("small", method="fisher_merging")
    for n in want:
        np.testing.assert_array_equal(got[n], want[n])


def test_the_resolved_recipe_names_the_files_and_their_hashes(family, tmp_path, monkeypatch):
    want = run(method="fisher_merging")
    shutil.copy("out/recipe.resolved.yaml", "again.yaml")
    note = yaml.safe_load(Path("again.yaml").read_text())
    files = [str(tmp_path / m / "fisher.safetensors") for m in "ab"]
    assert note["extras"] == {"fisher": files}
    assert set(files) < set(note["resolved"]["inputs"])
    Path("away").mkdir()
    monkeypatch.chdir("away")
    command.run("../again.yaml", "out", quiet=True)
    assert (load_file("out/model.safetensors")["norm"] == want["norm"]).all()


def test_statistics_of_other_weights_are_refused(family):
    shutil.copy("b/fisher.safetensors", "a/fisher.safetensors")
    with pytest.raises(UserError, match=r"a/fisher.* was measured for weights"):
        run(method="fisher_merging")
    assert not Path("out").exists()


WRONG = {
    "too few": ({"fisher": ["a/fisher.safetensors"]}, "each of 2 models, got 1 files"),
    "unknown kind": ({"fishr": []}, "did you mean fisher"),
    "no list": ({"fisher": "a/fisher.safetensors"}, "must be a list"),
    "another kind": ({"fisher": ["a/gram.safetensors"] * 2}, "holds a gram"),
    "no statistic": ({"fisher": ["a", "b"]}, "no statistic of jaxmerge"),
    "no such file": ({"fisher": ["x", "y"]}, "no model 'x'"),
    "another model": ({"fisher": ["other.safetensors"] * 2}, r"'h\.9'.*unknown"),
    "another shape": ({"fisher": ["thin.safetensors"] * 2}, r"'norm' \[3\] \(\[4\] there\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(family, name):
    extras, says = WRONG[name]
    for file, leaf, size in (("other", "h.9", 4), ("thin", "norm", 3)):
        model = {leaf: np.ones(size, np.float32)}
        statistics.save(side("fisher", model, model), f"{file}.safetensors")
    with pytest.raises(UserError, match=says):
        run(method="fisher_merging", extras=extras)


def test_a_method_that_lacks_its_files(family):
    Path("b/fisher.safetensors").unlink()
    with pytest.raises(UserError, match=r"no .*b/fisher\.safetensors.*jaxmerge stats"):
        run(method="fisher_merging")


def test_gram_matrices_of_the_other_axis(family):
    with pytest.raises(UserError, match=r"2 leaves such as 'h\.0\.w' belong to axis 1"):
        run(method={"regmean": {"axis": 0}})
    run(method="regmean")  # the axis of a checkpoint's kernels is known


def test_masks_are_plain_files(family):
    masks = [{n: x > 0 for n, x in random(20 + i).items()} for i in range(2)]
    for i, mask in enumerate(masks):
        save_file(mask, f"mask{i}.safetensors")
    files = ["mask0.safetensors", "mask1.safetensors"]
    got = run(method="stitch", extras={"mask": files})
    want = jm.merge(
        jm.stitch(), family["base"], [family[m] for m in "ab"], extras=[{"mask": m} for m in masks]
    )
    for n in want:
        np.testing.assert_array_equal(got[n], want[n])


def test_a_statistic_in_the_layout_of_its_checkpoint():
    ours = {f"q{i}": x for i, x in enumerate(random(0, dict.fromkeys("abc", (4, 6))).values())}
    ours["bias"] = np.ones(6, np.float32)
    stored = {"qkv.weight": np.zeros((18, 4)), "q.weight": np.zeros((6, 4)), "q.bias": np.zeros(6)}
    table = [
        Entry("qkv.weight", ("q0", "q1", "q2"), "fused"), Entry("q.weight", ("q0",), "dense"),
        Entry("q.bias", ("bias",), "same"), Entry("other", ("elsewhere",), "same"),
    ]  # fmt: skip
    statistic = statistics.in_layout(side("fisher", ours, ours), table, stored)
    assert {n: x.shape for n, x in statistic.values.items()} == {
        n: x.shape for n, x in stored.items()
    }
    np.testing.assert_array_equal(statistic.values["q.weight"], ours["q0"].T)
    np.testing.assert_array_equal(statistic.values["qkv.weight"][6:12], ours["q1"].T)
    statistics.check_weights(statistic, stored)
    square = {n: np.eye(4, dtype=np.float32) for n in ("q0", "q1", "q2")}
    statistic = statistics.in_layout(
        statistics.Statistic("gram", square, 1, "", {"axis": dict.fromkeys(square, 0)}),
        table, stored,
    )  # fmt: skip
    assert statistic.about["axis"] == {"qkv.weight": 1, "q.weight": 1}
    statistics.check_weights(statistic, stored)


@pytest.mark.slow
def test_statistics_of_a_clip_fit_its_checkpoint(tmp_path, monkeypatch):
    """`jaxmerge stats` on the packaged model, then RegMean from files."""
    from jaxmerge.cli import stats
    from jaxmerge.cli.quickstart import weights_folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "cache"))
    for name in NAMES:
        shutil.copytree(weights_folder("mini"), name)
    kernel = "vision_model.encoder.layers.0.mlp.fc1.weight"
    for name in "ab":
        stats.run(name, data="digits", kind="gram", samples=8, batch=8, json=True)
    got = run(method={"regmean": {"axis": 1}})
    want = load_file("base/model.safetensors")
    np.testing.assert_allclose(got[kernel], want[kernel], atol=1e-3)
