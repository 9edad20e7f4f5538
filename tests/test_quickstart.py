"""`jaxmerge quickstart` on a tiny CLIP with random weights: the same code, a fraction of the work.

The figures of the shipped model are not tested here; that they are the same when a run is killed
and resumed is.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxmerge.cli import quickstart, runs
from jaxmerge.data.glyphs.vocabulary import CONTEXT, build_tokenizer, write_tokenizer
from jaxmerge.errors import UserError
from jaxmerge.models import clip
from jaxmerge.studies.results import Results
from jaxmerge.training import checkpoint

OPTIONS = {"seeds": 1, "epochs": 1, "quiet": True}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A CLIP folder of a few thousand parameters."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tokenizer(folder)
    size = build_tokenizer().get_vocab_size()
    shape = {"width": 16, "layers": 1, "heads": 2, "hidden": 32}
    config = clip.Config(
        clip.Vision(image=16, patch=8, **shape),
        clip.Text(vocab=size, context=CONTEXT, bos=size - 2, eos=size - 1, pad=0, **shape),
        projection_dim=8,
    )
    clip.save((config, clip.init(config, jax.random.key(0))), folder)
    return str(folder)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that nobody disturbed: (folder, results)."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, quickstart.run(out=folder, model=tiny, **OPTIONS)


def figures(results: Results):
    """What must be the same on the same machine: all but times."""
    plain = json.loads(results.to_json())
    for run in plain["seeds"]:
        del run["seconds"], run["streams"]
    return {k: plain[k] for k in ("scenario", "classes", "recipe", "seeds", "summary", "versions")}


def test_a_run_folder_holds_everything(whole):
    folder, results = whole
    names = {p.name for p in folder.iterdir()}
    assert names - {"cells.parquet"} == {
        "config.json", "results.json", "report.html", "plots", "merged", "merged.safetensors",
    }  # fmt: skip
    assert Results.from_json(folder / "results.json") == results
    assert len(list((folder / "plots").glob("*.png"))) >= 5
    assert "MagMax" in (folder / "report.html").read_text()
    assert not list(folder.rglob("*.new"))


def test_the_table_has_every_method(whole):
    rows = [(s.label, s.finetunes) for s in whole[1].summary]
    merges = ("MagMax", "average", "RandMix", "TIES", "task arithmetic")
    assert rows == [
        ("zero-shot", "none"), ("last model", "sequential"),
        *((m, "sequential") for m in merges), *((m, "independent") for m in merges),
        ("joint", "joint"),
    ]  # fmt: skip
    (run,) = whole[1].seeds
    assert sorted(run.order) == list(range(10))
    assert [len(t.classes) for t in run.tasks] == [2] * 5
    assert sum(t.train for t in run.tasks) == 1167
    matrix = np.array(whole[1].entry("MagMax", "sequential").matrix, float)
    assert matrix.shape == (5, 5)
    assert np.isfinite(matrix).all()


def test_the_saved_model_is_magmax_with_the_frozen_rest(whole, tiny):
    folder, results = whole
    merged, base = clip.load(folder / "merged"), clip.load(tiny)
    same = [n for n in base.params if np.array_equal(merged.params[n], base.params[n])]
    assert all(n.startswith("text/") or n == "logit_scale" for n in same)
    assert len(same) == sum(not n.startswith("vision/") for n in base.params)
    assert (folder / "merged.safetensors").read_bytes() == (
        folder / "merged" / "model.safetensors"
    ).read_bytes()
    # and it has the accuracy that the table shows
    from jaxmerge.data.digits import digits
    from jaxmerge.data.streams.scenario import class_incremental
    from jaxmerge.studies.loop import Stream
    from jaxmerge.training.learner import from_clip

    scenario = class_incremental(digits(), 5, results.seeds[0].order)
    stream = Stream(scenario, from_clip(merged, scenario), batch=90)
    free, _ = stream.measure(stream.learner.params, stream.test)
    assert free.tolist() == results.entry("MagMax", "sequential").matrix[-1]


@pytest.mark.parametrize("writes", [3, 14])
def test_interrupted_and_resumed_gives_the_same_figures(
    whole, tiny, tmp_path, monkeypatch, capsys, writes
):
    """Ctrl-C at a checkpoint of the sequential stream, and later in the independent one."""
    left, save = [writes], checkpoint.save

    def interrupted(*args):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quickstart.run(out=tmp_path / "run", model=tiny, **OPTIONS)
    assert f"--resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()
    cost = tmp_path / "run" / "state" / "cost.json"
    spent = json.loads(cost.read_text())
    assert 0 < spent["seconds"] < 1000
    assert 1e8 < spent["memory"] < 1e12
    cost.write_text(json.dumps({"seconds": 1000.0, "memory": 10**12}))
    results = quickstart.run(resume=tmp_path / "run", quiet=True)
    assert figures(results) == figures(whole[1])
    assert results.seconds["total"] > 1000
    assert results.peak_memory == 10**12


def test_resume_with_another_configuration_is_refused(tiny, tmp_path, monkeypatch):
    def interrupted(experiment, folder, method):
        (folder / "state").mkdir()  # a run that kept nothing takes its folder back
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "execute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quickstart.run(out=tmp_path / "run", model=tiny, **OPTIONS)
    with pytest.raises(UserError, match=r"lr: 0\.0003 in the run, 0\.01 now"):
        quickstart.run(resume=tmp_path / "run", lr=0.01)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "weights": "other"}))
    with pytest.raises(UserError, match="weights: 'other' in the run"):
        quickstart.run(resume=tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"speed": 1}')
    with pytest.raises(UserError, match=r"config\.json cannot be used"):
        quickstart.run(resume=tmp_path / "run")


def test_a_finished_run_is_shown_again(whole, capsys):
    quickstart.run(resume=whole[0])
    shown = capsys.readouterr().out
    assert "MagMax" in shown
    assert "report.html" in shown
    quickstart.run(resume=whole[0], json=True)
    assert json.loads(capsys.readouterr().out)["schema"] == "jaxmerge.results/1"


def test_wrong_options_and_folders_get_one_line(tiny, tmp_path):
    with pytest.raises(UserError, match=r"seeds must be.*epochs must be.*lr must be"):
        quickstart.run(seeds=0, epochs=0, lr=-1.0)
    with pytest.raises(UserError, match="is not a run"):
        quickstart.run(resume=tmp_path / "nothing")
    with pytest.raises(UserError, match="not both"):
        quickstart.run(resume=tmp_path, out=tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is in use"):
        quickstart.run(out=tmp_path / "used", model=tiny)
    with pytest.raises(UserError, match="No model at"):
        quickstart.run(out=tmp_path / "new", model=str(tmp_path))
    assert not (tmp_path / "new").exists()


def test_a_run_is_never_overwritten(whole, tiny):
    with pytest.raises(UserError, match="holds a run already"):
        quickstart.run(out=whole[0], model=tiny)


def test_a_truncated_weights_file_is_an_error_and_leaves_no_run(tiny, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor .* outside of"):
        quickstart.run(out=tmp_path / "run", model=str(broken), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_with_sigkill_and_resumed(whole, tiny, tmp_path):
    """kill -9 in the middle of a stream, for real."""
    code = (
        "from jaxmerge.cli import quickstart; import sys; "
        "quickstart.run(out=sys.argv[1], model=sys.argv[2], seeds=1, epochs=1, quiet=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run"), tiny], env=os.environ.copy()
    )
    state = tmp_path / "run" / "state" / "seed_0" / "sequential" / "task_01.safetensors"
    for _ in range(100_000):
        if state.exists() or child.poll() is not None:
            break
        time.sleep(0.003)
    assert child.poll() is None, "the run ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "run" / "results.json").exists()
    results = quickstart.run(resume=tmp_path / "run", quiet=True)
    assert figures(results) == figures(whole[1])


@pytest.mark.parametrize("given", [{"quick": True, "lr": 1e-3}, {"seeds": 2, "seed": 3}, {}])
def test_ctrl_c_says_the_whole_command(given, tiny, tmp_path, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "steps_of", stop)
    out = tmp_path / "my run"
    with pytest.raises(KeyboardInterrupt):
        quickstart.run(out=out, model=tiny, **given)
    said = capsys.readouterr().err
    assert "loses at most the task in progress" in said
    anew = shlex.split(said.partition("To start anew:")[2])
    assert anew[:2] == ["jaxmerge", "quickstart"]
    pairs = dict(zip(anew, [*anew[1:], ""], strict=True))
    assert (pairs["--out"], pairs["--model"]) == (str(out), tiny)
    for name, value in given.items():
        assert f"--{name}" in anew
        assert value is True or float(pairs[f"--{name}"]) == value


@pytest.mark.parametrize(
    "wrong", [{"model": "nowhere"}, {"lr": -1.0}, {"resume": "nowhere"}, {"out": "."}]
)
def test_what_is_wrong_is_said_before_what_is_going_to_be_done(wrong, capsys):
    with pytest.raises(UserError):
        quickstart.run(**wrong)
    assert capsys.readouterr().err == ""
