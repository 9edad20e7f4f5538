"""Progress on standard error, and curves in TensorBoard's files and for Weights & Biases."""

import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from test_experiments import TOY

from jaxmerge.cli import progress
from jaxmerge.cli import run as command
from jaxmerge.errors import UserError

SET = ["seeds=2", "epochs=2", "streams.independent=null"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "toy.py"
    path.write_text(TOY.format(tests=str(Path(__file__).parent)))
    return path


def scalars(folder):
    """Tag -> [(step, value)] of TensorBoard's event files: records of length, crc, data, crc."""
    from tensorboardX.proto.event_pb2 import Event

    by_tag = {}
    for path in folder.glob("events.*"):
        data = path.read_bytes()
        at = 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                by_tag.setdefault(value.tag, []).append((event.step, value.simple_value))
    return by_tag


def test_tensorboard_holds_the_losses_and_accuracies_of_every_stream(toy, tmp_path):
    pytest.importorskip("tensorboardX")
    results = command.run(toy, set=SET, out=tmp_path / "run", log="tensorboard", quiet=True)
    curves = scalars(tmp_path / "run" / "tensorboard")
    for seed in (0, 1):
        tag = f"seed_{seed}/sequential/MagMax_accuracy"
        values = [v for _, v in curves[tag]]
        entry = results.entry("MagMax", "sequential", seed)
        np.testing.assert_allclose(values, entry.over_time, rtol=1e-5)
        losses = curves[f"seed_{seed}/sequential/loss"]
        assert len(losses) > 3
        assert [s for s, _ in losses] == sorted({s for s, _ in losses})
        assert min(v for _, v in curves[f"seed_{seed}/sequential/examples_a_second"]) > 0
    assert curves["seed_1/joint/loss"][-1][0] == 2 * curves["seed_0/joint/loss"][-1][0]


def test_wandb_gets_settings_and_numbers(toy, tmp_path, monkeypatch):
    class Run:
        logged, done = [], False

        def log(self, values, step):
            self.logged.append((step, values))

        def finish(self):
            type(self).done = True

    asked = {}
    fake = types.SimpleNamespace(init=lambda **options: asked.update(options) or Run())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    command.run(toy, set=["seeds=1", *SET[1:]], out=tmp_path / "run", log="wandb", quiet=True)
    assert asked["name"] == "run"
    assert asked["config"]["epochs"] == 2
    steps = [s for s, _ in Run.logged]
    assert steps == sorted(steps)
    assert Run.done
    assert any("seed 0/sequential/loss" in values for _, values in Run.logged)


def test_a_log_that_is_missing_or_unknown_leaves_no_run(toy, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="No log 'tensorbord': did you mean tensorboard"):
        command.run(toy, log="tensorbord", out=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'pip install "jaxmerge\[wandb\]"'):
        command.run(toy, log="wandb", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lines_where_there_is_no_terminal(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE", 0.0)
    command.run(toy, set=["seeds=1", *SET[1:]], out=tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert any("seed 1/1 sequential: loss " in x and "examples/s" in x for x in lines)
    assert any("sequential: MagMax" in x and " %" in x and "left" in x for x in lines)


def test_speed_and_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    speed = progress.Speed()
    assert speed.left(10) == ""
    for _ in range(10):
        now[0] += 2.0
        speed.add(8)
    assert speed() == pytest.approx(4.0)
    assert speed.left(260) == "1:05 left"
    assert speed.left(4 * 3725) == "1:02:05 left"
    assert speed.left(0) == ""
