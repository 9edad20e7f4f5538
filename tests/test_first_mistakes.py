"""What a newcomer gets wrong in the first hour is refused in one line, or understood."""

from __future__ import annotations

import shutil

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import save_file
from typer.testing import CliRunner

import jaxmerge as jm
from jaxmerge.cli.data import open_data
from jaxmerge.cli.typer_app import app
from jaxmerge.continual import streams
from jaxmerge.continual.drivers import program, run
from jaxmerge.continual.methods import gpm
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models
from jaxmerge.continual.stream_records import Setup
from jaxmerge.data.sources import Source
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.data.tables import table
from jaxmerge.io.places import working
from jaxmerge.models import bert, clip, decoder
from jaxmerge.models.folders import folder_of
from jaxmerge.models.mlp.learner import mlp

BASE = {"a": np.zeros(2, np.float32)}
MODELS = [{"a": np.full(2, v, np.float32)} for v in (1, 2, 4)]
X, Y = np.eye(12, dtype=np.float32), np.arange(12) % 4
ORDER = [[0, 1], [2, 3]]


def stream(**changed):
    return streams.split((X, Y), (X, Y), ORDER, batch=3, **changed)


def refused(call, *parts):
    with pytest.raises(ValueError) as found:
        call()
    assert all(p in str(found.value) for p in parts), str(found.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jm.ties(weights=[float("nan"), 1, 1]),
        lambda: jm.linear(["1", "2", "3"]),
        lambda: jm.task_arithmetic(weights="ab"),
        lambda: jm.ties(density="0.2"),
        lambda: jm.scale(float("nan")),
    ],
)
def test_numbers_that_are_none(make):
    refused(make, "must be a number")


def test_a_list_of_numbers_is_of_the_models_that_there_are():
    four = jm.task_arithmetic(1.0, weights=[1, 2, 3, 4])
    refused(lambda: jm.merge(four, BASE, MODELS), "has numbers for 4 models, got 3")
    state = jm.update(four, jm.init(four, BASE), BASE, MODELS[0])  # more may come
    assert jm.merged(four, state, BASE)["a"].tolist() == [1.0, 1.0]


def test_a_model_in_the_place_of_a_list():
    net = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    refused(lambda: jm.merge(jm.average(), net, net), "got a Linear: write [model]")
    refused(lambda: jm.merge(jm.average(), BASE, None), "got None")


def test_shared_variables_stay_shared():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(4, 3, rngs=rngs)
            self.head = self.embed

    nets = [Tied(nnx.Rngs(i)) for i in range(3)]
    merged = jm.merge(jm.average(), nets[0], nets[1:])
    assert merged.head is merged.embed
    mean = (nets[1].embed.embedding[...] + nets[2].embed.embedding[...]) / 2
    np.testing.assert_allclose(merged.embed.embedding[...], mean, rtol=1e-6)
    inside = jm.merge(jm.average(), {"net": nets[0]}, [{"net": n} for n in nets[1:]])["net"]
    assert inside.head is inside.embed
    apart = Tied(nnx.Rngs(4))
    apart.head = nnx.Embed(4, 3, rngs=nnx.Rngs(5))
    refused(lambda: jm.merge(jm.average(), nets[0], [apart]), "extra leaf 'head/embedding")


def test_a_merge_beyond_float16():
    far = [{"a": np.full(2, 60_000, np.float16)}] * 2
    call = lambda base: jm.merge(jm.task_arithmetic(1.0), base, far)
    refused(lambda: call({"a": np.zeros(2, np.float16)}), "beyond float16", "'a'")
    assert call({"a": np.zeros(2, np.float32)})["a"].tolist() == [120_000, 120_000]
    half, method = {"a": np.zeros(2, np.float16)}, jm.task_arithmetic(1.0)
    state = jm.init(method, half)
    for model in far:
        state = jm.update(method, state, half, model)
    refused(lambda: jm.merged(method, state, half), "beyond float16")
    broken = {"a": np.array([np.nan, 0], np.float16)}  # is in the base, and stays
    kept = jm.merge(method, broken, [broken], nonfinite="zero")["a"]
    assert np.isnan(kept[0])


def test_whole_numbers_where_the_base_has_floats(tmp_path):
    files = [tmp_path / f"{n}.safetensors" for n in "abc"]
    rows = [np.ones(2, np.float32), np.ones(2, np.float32), np.ones(2, np.int32)]
    for file, row in zip(files, rows, strict=True):
        save_file({"a": row}, file)
    refused(
        lambda: jm.merge_files(
            method=jm.average(), base=files[0], models=files[1:], out=tmp_path / "out"
        ),
        "leaf 'a' is int32[2], the base has float32[2]",
    )


def test_check_looks_at_the_output_too(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    save_file({"a": np.ones(2, np.float32)}, folder / "model.safetensors")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("merge_method: linear\ndtype: float32\nmodels:\n"
                      f"  - model: {folder}\n    parameters: {{weight: 1}}\n")  # fmt: skip
    found = CliRunner().invoke(app, ["merge", str(recipe), str(folder), "--check"])
    assert found.exit_code
    assert "would take the place of an input" in f"{found.output}{found.exception}"
    nowhere = tmp_path / "none" / "out"
    refused(lambda: working(nowhere), f"{nowhere} cannot be written: nothing can be made in")


def test_data_of_a_stream():
    refused(
        lambda: stream(scenario="domian"), "No scenario is named 'domian': did you mean domain?"
    )
    call = lambda x, y, order=ORDER: streams.split((x, y), (X, Y), order)
    assert call(X.tolist(), Y.tolist()).rows.shape[0] == 2
    refused(
        lambda: call(X, Y[:, None]), "the training labels are", "[12, 1], expected whole numbers"
    )
    refused(lambda: call(X, Y.astype(str)), "expected whole numbers [N]")
    refused(lambda: call(X, Y, [0, 1]), "the classes of each task")
    assert call(X, Y, (part for part in ORDER)).rows.shape[0] == 2


@models.register
def nested_names(flat: bool = False):
    """Params of Flax as they are, or outputs that are no `Outputs`."""
    net = nn.Dense(4)
    init = lambda key: net.init(key, X[:1])["params"]
    if not flat:
        deep = lambda key: {"layer": init(key)}
        return Model(deep, lambda p, x, t: Outputs(net.apply({"params": p["layer"]}, x)))
    return Model(init, lambda p, x, t: net.apply({"params": p}, x))


@pytest.mark.parametrize("method", [(), (gpm(0.9),)])
def test_a_model_of_another_form(method):
    call = lambda model: program(
        Setup(model, classification(), sgd(), method), stream(), jax.random.key(0)
    )
    refused(lambda: call(nested_names()), "name -> array, found a dict at 'layer'", "flatten")
    refused(lambda: call(nested_names(True)), "`apply` gives float32[", "Outputs(logits)")


def test_what_is_no_spec():
    given = {"model": mlp(12, (4,), 4), "problem": classification(), "optimiser": sgd()}
    call = lambda **new: program(Setup(**given | new), stream(), jax.random.key(0))
    refused(lambda: call(optimiser=optax.sgd(0.1)), "register with @optimisers.register")
    refused(lambda: call(methods=(gpm,)), "register with @methods.register", "found a function")


@pytest.mark.parametrize("merge", [jm.karcher(), jm.slerp(0.5)])
def test_merges_that_keep_every_model(merge):
    setup = Setup(mlp(12, (4,), 4), classification(), sgd(), merges={"all": merge})
    refused(
        lambda: program(setup, stream(), jax.random.key(0)), "the merge 'all' keeps every model"
    )
    R = np.asarray(run(setup, stream(), jax.random.key(0)).R["all"]["accuracy"])
    assert np.isfinite(R[-1]).all()
    assert np.isnan(R[0]).all() == (merge == jm.slerp(0.5))  # which needs two


def test_a_model_that_diverged_has_no_figures():
    setup = Setup(
        mlp(12, (4,), 4), classification(), sgd(1e30), merges={"MagMax": jm.magmax()}
    )  # fmt: skip
    for driver in (program, run):
        result = driver(setup, stream(epochs=3), jax.random.key(0))
        assert not result.finite.any()
        for figures in result.R.values():
            assert np.isnan(figures["accuracy"]).all()


def test_data_that_are_not_what_they_seem(tmp_path, monkeypatch):
    """Each says what is there and what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "semicolons.csv").write_text("text;label\na;x\n")
    (tmp_path / "gap.csv").write_text("text,label\na,x\n,y\n")
    (tmp_path / "two.csv").write_text("text,label\na,x\nb,y\n")
    (tmp_path / "empty").mkdir()
    refused(
        lambda: table("semicolons.csv"), "no column", "separated by ';'? Then write it with commas."
    )
    refused(lambda: table("gap.csv"), "gap.csv: 1 row lacks one of text, label, on line 3.")
    one_each = lambda: class_incremental(table("two.csv"), 2)
    refused(one_each, "task 0 (x) has no val examples; ", "more data, or other shares")
    refused(lambda: open_data("nope"), "--data 'nope': it is not there; expected digits, ")
    refused(lambda: open_data("empty"), "--data 'empty': it holds no images; expected ")
    texts = lambda inputs, labels: Source(
        "p", inputs, labels, ("a", "b"), ("{}",), {"train": [0], "val": [1], "test": []}
    )
    refused(lambda: texts("ab", [0, 1]), "inputs are one text; give a list of texts")
    refused(lambda: texts(["a", "b"], [0.5, 1]), "labels are float64, such as 0.5; expected")


def test_a_run_and_a_path_where_models_and_lists_of_images_stand(tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "config.json").write_text('{"experiment": "own"}')
    mini = folder_of("mini-2k")
    shutil.copy(mini / "model.safetensors", tmp_path / "merged.safetensors")
    words = f"merged.safetensors: this is a run, whose model is {tmp_path / 'merged'}"
    for load in (clip.load, bert.load, decoder.load):
        refused(lambda load=load: load(tmp_path / "merged.safetensors"), words)
    refused(lambda: clip.encode_images(clip.load(mini), "cat.png"), "found one path, 'cat.png'")
