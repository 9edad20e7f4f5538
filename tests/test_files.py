"""The file driver: the same bits as in memory, nothing lost, bad input refused."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge import pieces, walk
from jaxmerge.cutting import elementwise
from jaxmerge.errors import UserError
from jaxmerge.files import Job, merge_jobs
from jaxmerge.io.safetensors import File, Like
from jaxmerge.io.writer import partial_folder

SHAPES = {
    "embed": (60, 20), "layers.0.w": (33, 40), "layers.0.b": (33,), "layers.1.w": (33, 40),
    "scalar": (), "empty": (0, 3), "ids": (5,),
}  # fmt: skip


def family(dtype=np.float32, models=3, shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    base = {n: np.asarray(rng.normal(size=s) * 0.1).astype(dtype) for n, s in shapes.items()}
    base["ids"] = np.arange(5)
    out = [base]
    for _ in range(models):
        more = {n: np.asarray(rng.normal(size=s) * 0.01) for n, s in shapes.items()}
        model = {
            n: np.asarray(base[n].astype(np.float64) + more[n]).astype(base[n].dtype)
            for n in shapes
        }
        out.append(model | {"ids": base["ids"]})
    return out


def saved(folder, models):
    for i, model in enumerate(models):
        save_file(model, folder / f"m{i}.safetensors")
    return [File(folder / f"m{i}.safetensors") for i in range(len(models))]


@pytest.fixture
def small_pieces(monkeypatch):
    """Cut leaves of a few thousand entries, so that tests see pieces."""
    monkeypatch.setattr(pieces, "MIN_PIECE", 64)
    monkeypatch.setattr(walk, "MIN_PIECE", 64)
    monkeypatch.setattr(walk, "PIECES", 20_000)
    monkeypatch.setattr("jaxmerge.cutting.PIECE", 97)


METHODS = {
    "magmax": lambda: jm.magmax(),
    "linear": lambda: jm.linear([0.1, 0.2, 0.4], normalize=True),
    "task_arithmetic": lambda: jm.task_arithmetic(0.4),
    "ties": lambda: jm.ties(),
    "ties leaf": lambda: jm.ties(0.3, scope="leaf", tie="positive"),
    "ties max": lambda: jm.ties(0.3, merge="max", factor=0.5),
    "dare_ties": lambda: jm.dare_ties(0.4),
    "dare l1": lambda: jm.dare(0.4, rescale="l1"),
    "breadcrumbs": lambda: jm.breadcrumbs(),
    "opcm": lambda: jm.opcm(),
    "model_stock": lambda: jm.model_stock(),
    "model_stock model": lambda: jm.model_stock(per="model"),
    "partition": lambda: jm.partition(
        {"w": jm.magmax(), "rest": jm.keep_base()}, [(r"\.w$", "w"), (".*", "rest")]
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_same_bits_as_in_memory(tmp_path, small_pieces, name, dtype):
    models = family(dtype)
    files = saved(tmp_path, models)
    method, key = METHODS[name](), jax.random.key(7)
    with_entries = [{n: x for n, x in m.items() if x.size} for m in models]
    want = jm.merge(method, with_entries[0], with_entries[1:], key=key)
    merge_jobs([Job(method, files[1:], files[0], key)], tmp_path / "out")
    got = File(tmp_path / "out" / "model.safetensors")
    assert set(got) == set(models[0])
    different = [n for n in want if got[n].tobytes() != np.asarray(want[n]).tobytes()]
    assert different == []


@pytest.mark.parametrize("name", ["dare_ties", "dare l1", "breadcrumbs", "model_stock"])
def test_same_bits_one_model_at_a_time(tmp_path, monkeypatch, name):
    """Leaves too large for all models at once are folded model by model."""
    monkeypatch.setattr(walk, "ROOM", 100)
    models = family(ml_dtypes.bfloat16)
    files = saved(tmp_path, models)
    method, key = METHODS[name](), jax.random.key(7)
    with_entries = [{n: x for n, x in m.items() if x.size} for m in models]
    want = jm.merge(method, with_entries[0], with_entries[1:], key=key)
    merge_jobs([Job(method, files[1:], files[0], key)], tmp_path / "out")
    got = File(tmp_path / "out" / "model.safetensors")
    assert [n for n in want if got[n].tobytes() != np.asarray(want[n]).tobytes()] == []


def test_pieces_are_used_where_entries_do_not_mix(tmp_path, small_pieces, monkeypatch):
    cut = []
    whole = walk.Run.in_pieces

    def noted(self, job, name, *rest):
        cut.append(name)
        whole(self, job, name, *rest)

    monkeypatch.setattr(walk.Run, "in_pieces", noted)
    files = saved(tmp_path, family())
    big = {"embed", "layers.0.w", "layers.1.w"}
    for i, (method, expected) in enumerate([
        (jm.magmax(), big), (jm.ties(0.3, scope="leaf"), big), (jm.ties(), big),
        (jm.model_stock(), set()), (jm.randmix(), set()),
    ]):  # fmt: skip
        cut.clear()
        merge_jobs([Job(method, files[1:], files[0], jax.random.key(0))], tmp_path / f"o{i}")
        assert set(cut) == expected, method


def test_elementwise_is_proven_from_the_program():
    leaf, flat = Like((200, 100), np.dtype(np.float32)), (Like((200, 100), np.dtype(np.float32)),)
    yes = [lambda b, m: b + 2 * m[0], lambda b, m: jax.numpy.where(abs(m[0]) > 0.1, b, m[0])]
    no = [
        lambda b, m: b + m[0].mean(),
        lambda b, m: b * (2 if b.ndim == 2 else 1),
        lambda b, m: b / b.size,
        lambda b, m: m[0][::-1] + b,
        lambda b, m: b + jax.random.uniform(jax.random.key(0), b.shape),
        lambda b, m: jax.numpy.cumsum(b, 0),
        lambda b, m: jax.numpy.sort(m[0]),
    ]
    assert all(elementwise(f, leaf, flat) for f in yes)
    assert not any(elementwise(f, leaf, flat) for f in no)


def test_without_a_base_and_with_another_dtype(tmp_path):
    models = family(ml_dtypes.bfloat16)
    files = saved(tmp_path, models)
    merge_jobs([Job(jm.linear([0.5, 0.5, 0.5]), files[1:])], tmp_path / "a", out_dtype=np.float32)
    got = load_file(tmp_path / "a" / "model.safetensors")
    want = sum(m["embed"].astype(np.float64) / 2 for m in models[1:])
    assert got["embed"].dtype == np.float32
    np.testing.assert_allclose(got["embed"], want, atol=1e-6)
    np.testing.assert_array_equal(got["ids"], np.arange(5))
    merge_jobs([Job(jm.mean(), files[1:], files[0])], tmp_path / "b", out_dtype=ml_dtypes.bfloat16)
    assert File(tmp_path / "b" / "model.safetensors")["embed"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_float8_is_merged_and_int4_copied(tmp_path, kind):
    from jaxmerge.io.header import CODES
    from jaxmerge.io.writer import Writer

    rng = np.random.default_rng(0)
    models = [
        {"w": rng.normal(size=(300, 300)).astype(kind), "q": np.arange(-8, 8).astype("int4")}
        for _ in range(3)
    ]
    files = []
    for i, model in enumerate(models):
        tensors = {n: (CODES[x.dtype], x.shape) for n, x in model.items()}
        writer = Writer(tmp_path / f"m{i}", tensors, digest="")
        for n, x in model.items():
            writer.write(n, x)
            writer.finish_leaf(n)
        writer.commit({})
        files.append(File(tmp_path / f"m{i}" / "model.safetensors"))
    report = merge_jobs([Job(jm.mean(), files[1:], files[0])], tmp_path / "out")
    got = File(tmp_path / "out" / "model.safetensors")
    want = (models[1]["w"].astype(np.float32) + models[2]["w"].astype(np.float32)) / 2
    error = np.abs(got["w"].astype(np.float32) - want) / np.maximum(np.abs(want), 0.02)
    assert error.max() <= (0.14 if kind == ml_dtypes.float8_e5m2 else 0.07)
    assert got["q"].tobytes() == models[0]["q"].tobytes()
    assert (report.merged, report.copied) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_and_inf_are_refused_by_leaf(tmp_path, dtype, bad):
    models = family(dtype)
    models[2]["layers.1.w"].reshape(-1)[7] = bad
    files = saved(tmp_path, models)
    job = Job(jm.mean(), files[1:], files[0])
    with pytest.raises(ValueError, match=r"model 1, leaf 'layers\.1\.w'"):
        merge_jobs([job], tmp_path / "out")
    merge_jobs([job], tmp_path / "out", nonfinite="zero", force=True)
    assert np.isfinite(
        File(tmp_path / "out" / "model.safetensors")["layers.1.w"].astype(float)
    ).all()


def test_every_mismatch_is_named(tmp_path):
    models = family()
    del models[1]["embed"]
    models[2]["layers.0.w"] = np.ones((3, 3), np.float32)
    models[3]["more"] = np.ones(2)
    files = saved(tmp_path, models)
    with pytest.raises(ValueError, match="do not fit") as error:
        merge_jobs([Job(jm.mean(), files[1:], files[0])], tmp_path / "out")
    for says in ("missing leaf 'embed'", "float32[3,3], the base has float32[33,40]", "'more'"):
        assert says in str(error.value)
    assert not partial_folder(tmp_path / "out").exists()


# ---------------------------------------------------------------- nothing lost


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
    from jaxmerge.io import writer

    tensors = {n: ("F32", (2,)) for n in "abc"}
    first = writer.Writer(tmp_path / "out", tensors, digest="x")
    for n in "ab":
        first.write(n, np.ones(2, np.float32))
        first.finish_leaf(n)
        if n == "a":
            first._sync(1)
    first.close()
    monkeypatch.setattr(writer, "_boot", lambda: "another")
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
from jaxmerge.files import Job, merge_jobs
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
