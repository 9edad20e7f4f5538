"""Experiment files: each builds, runs a little on its real data, and refuses wrong settings."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxmerge.commands import run as command
from jaxmerge.commands import runs
from jaxmerge.errors import UserError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
TOY = """
import dataclasses, sys
from typing import ClassVar
sys.path.insert(0, {tests!r})
import clouds
from jaxmerge.continual.experiment import Experiment

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
    found = command.run(
        toy, set=["epochs=1", "factors.MagMax=[0.5]", "lr=1e-2"], out=tmp_path / "run", quiet=True
    )
    assert "MagMax" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["experiment"], config["epochs"], config["lr"]) == ("toy", 1, 0.01)
    assert config["factors"]["MagMax"] == [0.5]
    assert config["factors"]["TIES"] == [0.35, 0.5, 0.65, 0.8, 1.0]
    assert [s.seed for s in found.seeds] == [0, 1]
    assert found.entry("MagMax", "sequential").sweep is None  # one factor is not tried
    from jaxmerge.continual import checkpoint

    leaves, _ = checkpoint.load(tmp_path / "run" / "merged.safetensors")
    assert set(leaves) == {"a/kernel", "a/bias", "b/kernel"}
    again = command.run(toy, resume=tmp_path / "run", json=True)
    assert json.loads(capsys.readouterr().out)["seeds"][1]["seed"] == 1
    assert again == found


def test_a_strategy_from_the_command_line(toy, tmp_path):
    options = ["seeds=1", "strategy=lwf", "strategy_settings.strength=0.5"]
    found = command.run(toy, set=options, out=tmp_path / "run", quiet=True)
    assert found.recipe["strategy_settings"] == {"strength": 0.5}
    plain = command.run(toy, set=["seeds=1"], out=tmp_path / "plain", quiet=True)
    last = lambda r: np.array(r.entry("last model", "sequential").matrix)
    assert not np.array_equal(last(found)[1:], last(plain)[1:])
    np.testing.assert_array_equal(last(found)[0], last(plain)[0])


def test_wrong_settings_are_refused_before_anything_is_made(toy, tmp_path):
    for settings, message in (
        (["epoch=1"], "No setting 'epoch': did you mean epochs"),
        (["epochs=many"], "epochs is a int, got 'many'"),
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


def test_resume_with_other_settings_or_another_experiment_is_refused(toy, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs, "execute", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            command.run(toy, out=tmp_path / "run")
    with pytest.raises(UserError, match="epochs: 2 in the run, 7 now"):
        command.run(toy, set=["epochs=7"], resume=tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"toy"', '"other"'))
    with pytest.raises(UserError, match="it is not of 'toy'"):
        command.run(toy, resume=tmp_path / "run")


# ------------------------------------------------------------ the files of experiments/


@pytest.mark.parametrize("name", ["clinc150", "mini_images"])
def test_experiments_build(name):
    found = command.load(EXPERIMENTS / f"{name}.py")
    found.check()
    assert len(found.deploys()) == 5
    assert found.adapt().name == found.strategy


@pytest.mark.parametrize("stream", ["cifar10", "pacs", "omniglot8", "caltech101"])
def test_image_streams_are_cut_from_the_real_files(shared, stream):
    from jaxmerge.continual.experiment import changed

    settings = {"data": str(shared / "data"), "stream": stream, "per_class": 4}
    config = changed(command.load(EXPERIMENTS / "mini_images.py"), settings)
    scenario = config.scenario(0)
    assert len(scenario) == {"cifar10": 5, "pacs": 4, "omniglot8": 8, "caltech101": 10}[stream]


@pytest.mark.slow
def test_mini_learns_a_little_of_cifar10(shared, tmp_path):
    settings = [f"data={shared / 'data'}", "per_class=8", "seeds=1", "epochs=1"]
    found = command.run(
        EXPERIMENTS / "mini_images.py", set=settings, out=tmp_path / "run", quiet=True
    )
    assert len(found.seeds[0].tasks) == 5
