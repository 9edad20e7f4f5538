"""Nobody gets in: files that wait, lead elsewhere, lie where we write, change while being read."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import yaml
from hostile import LEAVES, folder, recipe, two_models
from leaves import family, saved
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.cli import merge as command
from jaxmerge.drivers.files.api import merge_jobs
from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError
from jaxmerge.io import places, writer
from jaxmerge.io.install import keep_apart
from jaxmerge.io.sources import open_source


@pytest.fixture
def two(tmp_path):
    return two_models(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_is_refused_and_not_waited_for(two, name):
    (two / "base" / name).unlink(missing_ok=True)
    os.mkfifo(two / "base" / name)
    with pytest.raises(UserError, match=f"{name} is a pipe"):
        command.run(recipe(two, tokenizer="base"), two / "out", quiet=True)
    assert not (two / "out").exists()


@pytest.mark.parametrize("how, says", [(os.mkfifo, "is a pipe"), (os.mkdir, "is a folder")])
@pytest.mark.parametrize("name", ["r.yaml", "r.py", "t.csv", "e.py", "m.safetensors"])
def test_what_lies_in_place_of_a_file_is_said(tmp_path, name, how, says):
    from jaxmerge.cli.run import load as load_experiment
    from jaxmerge.data.tables import table
    from jaxmerge.recipes.native import load

    read = {"t.csv": table, "e.py": load_experiment, "m.safetensors": open_source}.get(name, load)
    how(tmp_path / name)
    if name == "m.safetensors" and how is os.mkdir:
        says = "holds no weights"  # a folder is a model
    with pytest.raises(UserError, match=f"{name} {says}"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_link_out_of_a_models_folder_is_not_followed(two, name):
    secret = two / "secret"
    secret.write_bytes((two / "a" / "model.safetensors").read_bytes())
    (two / "base" / name).unlink(missing_ok=True)
    (two / "base" / name).symlink_to(secret)
    with pytest.raises(UserError, match="out of its folder"):
        command.run(recipe(two), two / "out", quiet=True)
    assert not (two / "out").exists()


def test_links_within_a_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file(LEAVES, blobs / "1")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    assert list(open_source(snapshot)) == list(LEAVES)


@pytest.mark.parametrize("where", [".out.old", ".out.partial", "out"])
def test_inputs_in_the_way_of_an_output_are_kept(tmp_path, where):
    inside = folder(tmp_path / where / "m")
    folder(tmp_path / "base")
    folder(tmp_path / "a")
    content = {"base": str(tmp_path / "base"), "models": [str(inside)], "method": "average"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="input"):
        command.run(tmp_path / "r.yaml", tmp_path / "out", force=True, quiet=True)
    assert (inside / "model.safetensors").exists()


def test_a_linked_input_in_the_way_is_kept_too(tmp_path):
    (tmp_path / "out").mkdir()
    real = folder(tmp_path / "real")
    (tmp_path / "out" / "m").symlink_to(real)
    with pytest.raises(UserError, match="take the place"):
        keep_apart(tmp_path / "out", [tmp_path / "out" / "m" / "model.safetensors"])


# ------------------------------------------------------------ what lies where we write


def planted(tmp_path, name, how):
    """An interrupted merge in whose folder somebody left a link to a file of another's."""
    files = saved(tmp_path, family())
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".out.partial").mkdir()
    if how == "symbolic":
        (tmp_path / ".out.partial" / name).symlink_to(victim)
    else:
        os.link(victim, tmp_path / ".out.partial" / name)
    return Job(jm.mean(), files[1:], files[0]), victim


@pytest.mark.parametrize("how", ["symbolic", "hard"])
@pytest.mark.parametrize("name", ["model.safetensors", "journal.jsonl"])
def test_a_planted_link_does_not_lead_a_resume_elsewhere(tmp_path, name, how):
    job, victim = planted(tmp_path, name, how)
    with pytest.raises(UserError, match="link, or has a second name"):
        merge_jobs([job], tmp_path / "out", resume=True)
    assert victim.read_text() == "mine"
    merge_jobs([job], tmp_path / "out", force=True)  # nothing is left that blocks the next try
    assert victim.read_text() == "mine"
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_further_files_are_written_in_place_of_links(tmp_path):
    job, victim = planted(tmp_path, "config.json", "symbolic")
    merge_jobs([job], tmp_path / "out", resume=True, files=lambda report: {"config.json": b"{}"})
    assert victim.read_text() == "mine"
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_a_link_in_place_of_the_partial_folder(tmp_path):
    files = saved(tmp_path, family())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("mine")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "elsewhere")
    job = Job(jm.mean(), files[1:], files[0])
    with pytest.raises(UserError, match="not a folder"):
        merge_jobs([job], tmp_path / "out", resume=True)
    merge_jobs([job], tmp_path / "out", force=True)
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["kept"]


def test_files_of_sub_folders_stay_inside(tmp_path):
    place = places.Place(tmp_path / "p")
    place.write("a/b/c.json", b"1")
    assert (tmp_path / "p" / "a" / "b" / "c.json").read_bytes() == b"1"
    (tmp_path / "p" / "l").symlink_to(tmp_path)
    for name in ("../x", "l/x", "/x", "a/../../x"):
        with pytest.raises(ValueError, match=r"not the name|not a folder"):
            place.write(name, b"1")
    place.close()


def test_a_shard_that_somebody_deleted_is_written_again(tmp_path):
    tensors = {n: ("F32", (2,)) for n in "ab"}
    first = writer.Writer(tmp_path / "out", tensors, digest="x")
    first.write("a", np.ones(2, np.float32))
    first.finish_leaf("a")
    first.close()
    (first.folder / "model.safetensors").unlink()
    again = writer.Writer(tmp_path / "out", tensors, digest="x", resume=True)
    assert again.done == set()
    again.close()


# ------------------------------------------------------------ one at a time


def test_a_lock_names_its_owner_and_goes(tmp_path):
    lock = places.Lock(tmp_path / ".out.lock", "out")
    with pytest.raises(UserError, match=f"process {os.getpid()} on "):
        places.Lock(tmp_path / ".out.lock", "out")
    lock.release()
    assert not (tmp_path / ".out.lock").exists()


def test_a_lock_of_another_host_is_believed(tmp_path):
    path = tmp_path / ".out.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "boot": "x"}))
    with pytest.raises(UserError, match=r"Process 7 on elsewhere .* delete"):
        places.Lock(path, "out")
    path.write_text(json.dumps({"host": "a container", "pid": 7, "boot": places.boot()}))
    places.Lock(path, "out").release()  # the same kernel: it would hold the lock if it lived


def test_two_commands_do_not_work_in_one_run_folder(tmp_path):
    from jaxmerge.cli import run_folder

    lock = places.working(tmp_path / "run")
    with pytest.raises(UserError, match="Another process"), run_folder.alone(tmp_path / "run"):
        pass
    lock.release()
    with run_folder.alone(tmp_path / "run"):
        assert (tmp_path / ".run.lock").exists()
    assert not (tmp_path / ".run.lock").exists()


@pytest.mark.parametrize("how", ["link", "pipe"])
def test_a_planted_lock_is_refused(tmp_path, how):
    path, victim = tmp_path / ".out.lock", tmp_path / "victim"
    victim.write_text("mine")
    path.symlink_to(victim) if how == "link" else os.mkfifo(path)
    with pytest.raises(UserError, match="no regular file"):
        places.Lock(path, "out")
    assert victim.read_text() == "mine"


# ------------------------------------------------------------ inputs that change


@pytest.mark.parametrize("how", ["in place", "rename", "vanish"])
def test_an_input_that_changes_during_the_merge_is_refused(tmp_path, how):
    files = saved(tmp_path, family())
    before = np.array(files[1]["embed"])

    def change(phase, done, total):
        path = files[1].path
        if how == "in place":
            with open(path, "r+b") as file:
                file.seek(-4, 2)
                file.write(b"\0\0\0\0")
        elif how == "rename":
            save_file({n: np.asarray(x + 1) for n, x in load_file(path).items()}, tmp_path / "new")
            os.replace(tmp_path / "new", path)
        else:
            path.unlink(missing_ok=True)

    with pytest.raises(UserError, match=r"changed while they were merged: .*m1.safetensors"):
        merge_jobs([Job(jm.mean(), files[1:], files[0])], tmp_path / "out", progress=change)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
    assert before.shape == (60, 20)
