"""Experiment files: each builds, runs a little on its real data, and refuses wrong settings."""

import json
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.cli import run as command
from jaxmerge.cli import run_folder, runs
from jaxmerge.cli.methods import describe, page
from jaxmerge.continual.schedule import from_base
from jaxmerge.errors import UserError
from jaxmerge.evaluation import predict
from jaxmerge.studies.config import Experiment
from jaxmerge.studies.images import ImageExperiment
from jaxmerge.studies.loop import Stream
from jaxmerge.studies.seed import run_seed
from jaxmerge.studies.settings import changed

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
TOY = """
import dataclasses, sys
from typing import ClassVar
sys.path.insert(0, {tests!r})
import clouds
from jaxmerge.studies.config import Experiment

@dataclasses.dataclass(frozen=True)
class Toy(Experiment):
    name: ClassVar[str] = "toy"
    seeds: int = 2
    epochs: int = 2
    batch: int = 8
    lr: float = 0.02
    evaluation_batch: int = 32

    def scenario(self, seed):
        return clouds.scenario(clouds.source())

    def learner(self, scenario):
        return clouds.learner()

def get_config():
    return Toy()
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """An experiment file on clouds of points."""
    path = tmp_path_factory.mktemp("experiments") / "toy.py"
    path.write_text(TOY.format(tests=str(Path(__file__).parent)))
    return path


def test_a_run_of_a_file_with_other_settings(toy, tmp_path, capsys):
    results = command.run(
        toy,
        set=["epochs=1", "merges.MagMax.factor=0.5", "lr=1e-2"],
        out=tmp_path / "run",
        quiet=True,
    )
    assert "MagMax" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["experiment"], config["epochs"], config["lr"]) == ("toy", 1, 0.01)
    assert config["merges"]["MagMax"] == {"method": "magmax", "factor": 0.5}
    assert config["merges"]["TIES"]["factor"] == [0.35, 0.5, 0.65, 0.8, 1.0]
    assert [s.seed for s in results.seeds] == [0, 1]
    assert results.entry("MagMax", "sequential").sweep is None  # one factor is not tried
    from jaxmerge.training import checkpoint

    leaves, _ = checkpoint.load(tmp_path / "run" / "merged.safetensors")
    assert set(leaves) == {"a/kernel", "a/bias", "b/kernel"}
    again = command.run(toy, resume=tmp_path / "run", json=True)
    assert json.loads(capsys.readouterr().out)["seeds"][1]["seed"] == 1
    assert again == results


def test_a_strategy_from_the_command_line(toy, tmp_path):
    options = ["streams.sequential.methods.lwf.strength=0.5"]
    options = ["seeds=1", *options]
    results = command.run(toy, set=options, out=tmp_path / "run", quiet=True)
    assert results.recipe["streams"]["sequential"]["methods"] == {"lwf": {"strength": 0.5}}
    plain = command.run(toy, set=["seeds=1"], out=tmp_path / "plain", quiet=True)
    last = lambda r: np.array(r.entry("last model", "sequential").matrix)
    assert not np.array_equal(last(results)[1:], last(plain)[1:])
    np.testing.assert_array_equal(last(results)[0], last(plain)[0])


def test_the_line_that_explains_a_method_runs(toy, tmp_path):
    words = shlex.split(page(describe("l2")).splitlines()[-1])
    assert words[:3] == ["jaxmerge", "run", "EXPERIMENT"]
    option = words[-1].replace("STREAM", "sequential")
    results = command.run(toy, set=["seeds=1", option], out=tmp_path / "run", quiet=True)
    assert list(results.recipe["streams"]["sequential"]["methods"]) == ["l2"]
    with pytest.raises(KeyError, match="No method is named 'trgpp': did you mean trgp"):
        describe("trgpp")


@pytest.mark.parametrize(
    "name, kind, line",
    [
        ("sgd", "optimiser", "optimiser={sgd: {}}"),
        ("classification", "problem", "problem={classification: {}}"),
        ("met", "evaluator", "problem.classification.metrics=[met]"),
        ("mlp", "model", "network={mlp: {}}"),
    ],
)
def test_what_settings_name_is_explained_by_its_line(name, kind, line):
    entry = describe(name)
    assert entry["kind"] == kind
    assert page(entry).endswith(f"jaxmerge run EXPERIMENT --set '{line}'\n")
    config = command.load(EXPERIMENTS / "trained_head.py")
    changed(config, runs.settings_of([line])).check()


def test_wrong_settings_are_refused_before_anything_is_made(toy, tmp_path):
    for settings, message in (
        (["epoch=1"], "No setting 'epoch': did you mean epochs"),
        (["epochs=many"], "epochs is a whole number, got 'many'"),
        (["epochs"], "takes key=value"),
        (["lr=-1.0", "seeds=0"], "seeds must be at least 1.*lr must be"),
    ):
        with pytest.raises(UserError, match=message):
            command.run(toy, set=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no such experiment file"):
        command.run(tmp_path / "nothing.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"defines no get_config"):
        command.run(tmp_path / "empty.py")


TABLE = """
from toy import Toy
import dataclasses
from jaxmerge.studies.config import setting

@dataclasses.dataclass(frozen=True)
class Table(Toy):
    seeds: int = 1
    merges: dict = setting({
        "MagMax": {"method": "magmax", "factor": [0.3, 0.6]},
        "OPCM": {"method": "opcm", "always": False},
        "EMA": {"method": "ema", "decay": 0.5},
        "interpolation": {"method": [{"ema": 0.0}], "factor": 0.5},
        "C. TIES": {"method": "continual_ties", "factor": 0.3, "always": False},
    })
    streams: dict = setting({
        "sequential": {"deploys": ["last model", "MagMax", "interpolation"]},
        "independent": {"start": "base", "deploys": ["last model", "MagMax", "OPCM", "C. TIES"]},
        "running": {"start": "running", "running": "EMA", "deploys": ["last model", "EMA"]},
        "again": {"start": "running", "deploys": ["MagMax"], "training": {"epochs": 1}},
        "LwF": {"methods": [{"method": "lwf", "strength": 0.3}]},
        "EWC": {"methods": ["ewc_magmax"]},
        "probe": {"methods": [{"method": "train_only", "pattern": "b/kernel"}]},
        "replay": {"methods": [{"method": "replay", "per_class": 2}]},
    })

def get_config():
    return Table()
"""


def test_an_experiment_without_tasks_or_model_cannot_be_made():
    class Bare(Experiment):
        pass

    with pytest.raises(TypeError, match=r"Bare.*learner.*scenario"):
        Bare()


def test_one_file_gives_the_whole_table_of_a_paper(toy, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(toy.parent))
    (tmp_path / "table.py").write_text(TABLE)
    results = command.run(tmp_path / "table.py", out=tmp_path / "run", quiet=True)
    rows = [(s.label, s.finetunes) for s in results.summary]
    last = "last model"
    assert rows == [
        ("zero-shot", "none"), (last, "sequential"), ("MagMax", "sequential"),
        ("interpolation", "sequential"), (last, "independent"), ("MagMax", "independent"),
        ("OPCM", "independent"), ("C. TIES", "independent"), (last, "running"), ("EMA", "running"),
        ("MagMax", "again"), (last, "LwF"), (last, "EWC"), (last, "probe"), (last, "replay"),
        ("joint", "joint"),
    ]  # fmt: skip
    matrix = {
        r: np.array(e.matrix, float) for r, e in zip(rows, results.seeds[0].entries, strict=True)
    }
    same = matrix[last, "sequential"][0]
    for name in ("independent", "running", "LwF", "replay"):
        np.testing.assert_array_equal(matrix[last, name][0], same, err_msg=name)
    assert not np.array_equal(matrix[last, "probe"][0], same)
    np.testing.assert_array_equal(matrix["EMA", "running"][0], same)
    assert np.isnan(matrix["OPCM", "independent"][:2]).all()
    assert results.entry("OPCM", "independent").method == "opcm()"
    assert results.entry("MagMax", "again").factors[-1] in (0.3, 0.6)


def test_each_factor_as_a_row_of_its_own(toy, tmp_path):
    """What a sweep asks for: no factor is chosen; one fold a factor where the factor enters it."""
    swept = lambda method, **more: {
        "method": method, "factor": [0.3, 0.6], "each": True, "always": False, **more
    }  # fmt: skip
    merges = {"magmax": swept("magmax"), "c ties": swept("continual_ties", density=0.4)}
    streams = {
        "sequential": None,
        "independent": {"deploys": ["last model", *merges], "vectors": False},
    }
    config = changed(command.load(toy), {"seeds": 1, "merges": merges, "streams": streams})
    scenario = config.scenario(0)
    learner = config.learner(scenario)
    how = lambda task=None: config.how(task)
    run, _ = run_seed(scenario, learner, config.plans(), seed=0, how=how, batch=32)
    rows = {e.label: e for e in run.entries}
    assert list(rows) == [
        "zero-shot", "last model", "magmax, factor 0.3", "magmax, factor 0.6",
        "c ties, factor 0.3", "c ties, factor 0.6", "joint",
    ]  # fmt: skip
    stream = Stream(
        scenario, learner, start=from_base, training=how, keep=True, batch=32, seed=0
    ).run()
    for method, label in ((jm.magmax, "magmax"), (partial(jm.continual_ties, 0.4), "c ties")):
        for factor in (0.3, 0.6):
            params = jm.merge(method(factor), learner.params, stream.models)
            entry = rows[f"{label}, factor {factor}"]
            assert entry.matrix[-1] == stream.measure(params, stream.test)[0].tolist()
            assert entry.fixed == factor
    alone = np.diag(np.array(rows["last model"].aware, float))
    for label in ("joint", "magmax, factor 0.6"):
        expected = np.mean(np.array(rows[label].aware[-1]) / alone)
        assert rows[label].metrics["normalised"] == pytest.approx(expected)
    actual = predict.logits(learner, [stream.last], stream.test)[0].argmax(-1)
    columns = stream.test.columns
    shares = [np.mean(actual[columns == c] == c) for c in np.unique(columns)]
    assert rows["last model"].metrics["per_class"] == pytest.approx(np.mean(shares))


@pytest.mark.parametrize(
    "settings, message",
    [
        (["streams.sequential.start=first"], "no start is named 'first': .*base, last"),
        (["streams.sequential.strat=lwf"], "a stream has no 'strat': did you mean"),
        (["streams.LwF.methods=[lfw]"], "stream 'LwF': No method is named 'lfw'.*lwf"),
        (["streams.sequential.deploys=[MagMx]"], "no merge is named 'MagMx': did you mean MagMax"),
        (["merges.MagMax.method=magmx"], "No method is named 'magmx': did you mean magmax"),
        (["merges.MagMax.faktor=1"], "no setting 'faktor': did you mean factor"),
        (
            ["merges.X.method=trim", "merges.X.density=0.2"],
            "merge 'X': trim changes one task vector",
        ),
        (["baselines=[zero]"], "no baseline is named 'zero': did you mean zero-shot"),
        (["streams.X.start=running"], "stream 'X': Training starts from the running merge"),
        (["streams.sequential.training.epoch=1"], "training has no 'epoch': did you mean epochs"),
        (["streams.X.training.dtype=bf16"], "stream 'X': .*float32 or bfloat16, got 'bf16'"),
        (["streams.X.training.epochs=two"], "epochs must be at least 1, and whole, got 'two'"),
        (["streams.X.deploys=MagMax"], "deploys is a list of labels, got 'MagMax'"),
        (["streams.X.deploys=[]"], "nothing is deployed; expected one of .*MagMax"),
        (["streams.X.vectors=maybe"], "vectors is true or false, got 'maybe'"),
        (
            ["streams.X={methods: [{method: ewc, strenght: 1}]}"],
            "ewc has no setting 'strenght': did you mean strength",
        ),
        (["merges.MagMax.factor=[0.5, high]"], "merge 'MagMax': magmax: factor must be a number"),
        (["merges.MagMax.factor=[]"], "the list of factors is empty"),
        (["merges.MagMax.always=3"], "always is true or false, got 3"),
        (["weight_decay=-1"], "weight_decay must not be negative"),
    ],
)
def test_wrong_streams_and_merges_are_named(toy, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        command.run(toy, set=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_kept_nothing_leaves_its_folder_free(toy, tmp_path, monkeypatch, capsys):
    """Data that is not there, or Ctrl-C before the first checkpoint."""
    for error in (UserError("no data"), FileNotFoundError("no data"), KeyboardInterrupt()):
        with monkeypatch.context() as patch:
            patch.setattr(runs, "execute", lambda *_, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(type(error)):
                command.run(toy, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert "To go on" not in capsys.readouterr().err
    with monkeypatch.context() as patch:  # a run that was there before keeps its settings
        patch.setattr(runs, "execute", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        run_folder.new_run(command.load(toy), tmp_path / "old")
        with pytest.raises(KeyboardInterrupt):
            command.run(toy, resume=tmp_path / "old")
    assert (tmp_path / "old" / "config.json").exists()
    assert "To go on" in capsys.readouterr().err


def test_resume_with_other_settings_or_another_experiment_is_refused(
    toy, tmp_path, monkeypatch, capsys
):
    def interrupted(experiment, folder, method):
        (folder / "state").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "execute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            command.run(toy, out=tmp_path / "run")
    assert f"To go on:  jaxmerge run {toy} --resume" in capsys.readouterr().err
    with pytest.raises(UserError, match="epochs: 2 in the run, 7 now"):
        command.run(toy, set=["epochs=7"], resume=tmp_path / "run")
    edited = toy.with_name("edited.py")
    edited.write_text(toy.read_text().replace("lr: float = 0.02", "lr: float = 0.03"))
    with pytest.raises(UserError, match=r"lr: 0\.02 in the run, 0\.03 now"):
        command.run(edited, resume=tmp_path / "run")
    with monkeypatch.context() as patch:  # a finished run shows its table, also of an edited file
        patch.setattr(run_folder, "finished", lambda folder: True)
        patch.setattr(runs, "finish", lambda asked, *_, **__: asked)
        assert command.run(edited, resume=tmp_path / "run").lr == 0.02
        with pytest.raises(UserError, match="epochs: 2 in the run, 7 now"):
            command.run(toy, set=["epochs=7"], resume=tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"toy"', '"other"'))
    with pytest.raises(UserError, match="it is not of 'toy'"):
        command.run(toy, resume=tmp_path / "run")


def test_corrupt_images_may_be_left_out_from_a_resume_on(toy, tmp_path, monkeypatch):
    """The advice of the message can be followed, and nothing that was learnt is lost."""
    file = tmp_path / "pictures.py"
    file.write_text(
        toy.read_text().replace(
            'name: ClassVar[str] = "toy"',
            'name: ClassVar[str] = "toy"\n'
            '    movable: ClassVar[tuple] = ("corrupt",)\n    corrupt: str = "stop"',
        )
    )
    assert "corrupt" in ImageExperiment.movable
    monkeypatch.setattr(runs, "finish", lambda asked, *_, **__: asked)
    assert command.run(file, out=tmp_path / "run", set=["lr=0.01"]).corrupt == "stop"
    half = tmp_path / "run" / "state" / "seed_0" / "sequential" / "training_01"
    half.mkdir(parents=True)
    (half.parent / "state.safetensors").touch()
    with pytest.raises(UserError, match="epochs: 2 in the run, 7 now"):
        command.run(file, set=["corrupt=skip", "epochs=7"], resume=tmp_path / "run")
    assert half.exists()
    for given in (["corrupt=skip"], []):  # it is noted: the next resume needs not say it again
        results = command.run(file, set=given, resume=tmp_path / "run")
        assert (results.corrupt, results.lr) == ("skip", 0.01)
    assert not half.exists()
    assert (half.parent / "state.safetensors").exists()


# ------------------------------------------------------------ the files of experiments/


@pytest.mark.parametrize("name", ["clinc150", "banking77", "mini_images"])
def test_experiments_build(name):
    experiment = command.load(EXPERIMENTS / f"{name}.py")
    experiment.check()
    assert {p.name for p in experiment.plans()} == set(experiment.streams)


TASKS = {
    "sign_digits": 5, "cifar10": 5, "pacs": 4, "omniglot8": 8, "caltech101": 10,
}  # fmt: skip


@pytest.mark.parametrize("stream", TASKS)
def test_image_streams_are_cut_from_the_real_files(shared, stream):
    settings = {"data": str(shared / "data"), "stream": stream, "few": {"train": 4}}
    config = changed(command.load(EXPERIMENTS / "mini_images.py"), settings)
    scenario = config.scenario(0)
    assert len(scenario) == TASKS[stream]


@pytest.mark.slow
def test_mini_learns_a_little_of_cifar10(shared, tmp_path):
    settings = [f"data={shared / 'data'}", "few={train: 8}", "seeds=1", "epochs=1"]
    results = command.run(
        EXPERIMENTS / "mini_images.py", set=settings, out=tmp_path / "run", quiet=True
    )
    assert len(results.seeds[0].tasks) == 5
