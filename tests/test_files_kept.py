"""Nothing is lost: outputs, read errors, full disks, reboots, kill -9 at random moments."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from leaves import family, saved

import jaxmerge as jm
from jaxmerge.drivers.files.api import merge_jobs
from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError
from jaxmerge.io.install import partial_folder
from jaxmerge.io.safetensors import File


def test_an_output_is_not_replaced_without_force(tmp_path):
    files = saved(tmp_path, family())
    job = Job(jm.mean(), files[1:], files[0])
    merge_jobs([job], tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists"):
        merge_jobs([Job(jm.magmax(), files[1:], files[0])], tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    merge_jobs([Job(jm.magmax(), files[1:], files[0])], tmp_path / "out", force=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
@pytest.mark.parametrize("swap", [True, False])
def test_an_output_is_replaced_without_a_gap(tmp_path, monkeypatch, kind, swap):
    """Where the system can exchange two paths; elsewhere the old one steps aside first."""
    from jaxmerge.io import install

    out, exchange, rename, there = tmp_path / "out", install._exchange, os.rename, []

    def noted(a, b):
        there.append(os.path.lexists(out))
        rename(a, b)

    monkeypatch.setattr(os, "rename", noted)
    monkeypatch.setattr(install, "_exchange", lambda a, b: swap and exchange(a, b))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("x")
    if kind == "folder":
        out.mkdir()
        (out / "old").write_text("x")
    elif kind == "file":
        out.write_text("x")
    else:
        out.symlink_to(tmp_path / "elsewhere")
    files = saved(tmp_path, family())
    merge_jobs([Job(jm.mean(), files[1:], files[0])], out, force=True)
    assert sorted(p.name for p in out.iterdir()) == ["model.safetensors"]
    assert (tmp_path / "elsewhere" / "kept").exists()
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    if swap and os.uname().sysname == "Linux":
        assert all(there)


def test_shards_and_their_index(tmp_path):
    from jaxmerge.io.sources import open_source

    files = saved(tmp_path, family())
    job = Job(jm.mean(), files[1:], files[0])
    merge_jobs([job], tmp_path / "one")
    merge_jobs([job], tmp_path / "many", shard_size=6000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 3
    one, many = open_source(tmp_path / "one"), open_source(tmp_path / "many")
    assert {n: x.tobytes() for n, x in one.items()} == {n: x.tobytes() for n, x in many.items()}


class Failing(File):
    """A file whose reads fail from some leaf on."""

    def into(self, out, name, start=0):
        if name == "layers.1.w":
            raise OSError(errno.EIO, "Input/output error", str(self.path))
        super().into(out, name, start)


def test_a_read_error_keeps_the_work(tmp_path):
    files = saved(tmp_path, family())
    job = Job(jm.mean(), files[1:], files[0])
    merge_jobs([job], tmp_path / "want")
    broken = Job(jm.mean(), [*files[1:3], Failing(files[3].path)], files[0])
    with pytest.raises(OSError, match="Input/output"):
        merge_jobs([broken], tmp_path / "out", digest="x")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--resume"):
        merge_jobs([job], tmp_path / "out", digest="x")
    with pytest.raises(UserError, match="another one"):
        merge_jobs([job], tmp_path / "out", digest="y", resume=True)
    report = merge_jobs([job], tmp_path / "out", digest="x", resume=True)
    assert report.resumed > 0
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "want" / name).read_bytes()


def test_a_full_disk_keeps_the_work(tmp_path, monkeypatch):
    files = saved(tmp_path, family())
    job = Job(jm.mean(), files[1:], files[0])
    merge_jobs([job], tmp_path / "want")
    pwrite, room = os.pwrite, [9000]

    def full(fd, data, offset):
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        merge_jobs([job], tmp_path / "out")
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert not (tmp_path / "out").exists()
    merge_jobs([job], tmp_path / "out", resume=True)
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "want" / name).read_bytes()


def test_disk_space_is_checked_before_the_first_byte(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    files = saved(tmp_path, family())
    with pytest.raises(UserError, match="GB free"):
        merge_jobs([Job(jm.mean(), files[1:], files[0])], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not partial_folder(tmp_path / "out").exists()


def test_after_a_reboot_only_synced_leaves_count(tmp_path, monkeypatch):
    from jaxmerge.io import journal, writer

    tensors = {n: ("F32", (2,)) for n in "abc"}
    first = writer.Writer(tmp_path / "out", tensors, digest="x")
    for n in "ab":
        first.write(n, np.ones(2, np.float32))
        first.finish_leaf(n)
        if n == "a":
            first._sync(1)
    first.close()
    monkeypatch.setattr(journal, "boot", lambda: "another")
    again = writer.Writer(tmp_path / "out", tensors, digest="x", resume=True)
    assert again.done == {"a"}
    again.close()


def test_a_torn_last_line_of_the_journal(tmp_path):
    from jaxmerge.io import writer

    tensors = {n: ("F32", (2,)) for n in "ab"}
    first = writer.Writer(tmp_path / "out", tensors, digest="x")
    first.write("a", np.ones(2, np.float32))
    first.finish_leaf("a")
    first.close()
    with open(first.folder / "journal.jsonl", "a") as file:
        file.write('{"leaf": "b')
    again = writer.Writer(tmp_path / "out", tensors, digest="x", resume=True)
    assert again.done == {"a"}
    again.write("b", np.ones(2, np.float32))
    again.finish_leaf("b")
    again.commit({})
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_two_processes_do_not_write_one_output(tmp_path):
    from jaxmerge.io import writer

    tensors = {"a": ("F32", (2,))}
    first = writer.Writer(tmp_path / "out", tensors, digest="x")
    for options in ({"resume": True}, {"force": True}):
        with pytest.raises(UserError, match="Another process"):
            writer.Writer(tmp_path / "out", tensors, digest="x", **options)
    first.close()


SLOW = """
import sys, time
from pathlib import Path
import jaxmerge as jm
from jaxmerge.drivers.files.api import merge_jobs
from jaxmerge.drivers.files.job import Job
from jaxmerge.io.safetensors import File
from jaxmerge.io.writer import Writer

def slowly(method):
    def run(self, *args):
        time.sleep({pause})
        result = method(self, *args)
        time.sleep({pause})
        return result
    return run

Writer.write, Writer.finish_leaf = slowly(Writer.write), slowly(Writer.finish_leaf)
folder = Path({folder!r})
files = [File(folder / f"m{{i}}.safetensors") for i in range(4)]
print("ready", flush=True)
merge_jobs([Job(jm.ties(0.3, scope="leaf"), files[1:], files[0])], folder / "out",
           digest="x", resume=True, shard_size=100_000)
"""


def lines_of(folder):
    journal = partial_folder(folder / "out") / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill_often(folder, kills, pause, seed):
    """Kill the merge at random moments until it is through; the number of kills it survived."""
    rng = np.random.default_rng(seed)
    program = SLOW.format(folder=str(folder), pause=pause)
    for done in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ
        )
        child.stdout.readline()
        until = lines_of(folder) + int(rng.integers(0, 3))
        while child.poll() is None and lines_of(folder) < until:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 2 * pause))
        if child.poll() is not None:
            assert child.returncode == 0
            return done
        assert not (folder / "out").exists() or child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    return kills


def check_kills(tmp_path, kills, pause, seed):
    shapes = {f"layers.{i}.w": (50, 60) for i in range(4 * kills + 24)} | {"ids": (5,)}
    files = saved(tmp_path, family(shapes=shapes))
    merge_jobs(
        [Job(jm.ties(0.3, scope="leaf"), files[1:], files[0])], tmp_path / "want",
        shard_size=100_000,
    )  # fmt: skip
    survived = kill_often(tmp_path, kills, pause, seed)
    want = {p.name: p.read_bytes() for p in (tmp_path / "want").iterdir()}
    got = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert got == want
    return survived


def test_killed_and_resumed(tmp_path):
    assert check_kills(tmp_path, 3, 0.1, seed=1) == 3


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    assert check_kills(tmp_path, 20, 0.1, seed=2) == 20
