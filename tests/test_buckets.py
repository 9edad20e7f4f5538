"""References, recipes and outputs by URL, through fsspec's file system in memory."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load, save_file

import jaxmerge as jm
from jaxmerge.cli import convert, inspect, merge
from jaxmerge.errors import UserError
from jaxmerge.io import buckets, ranges
from jaxmerge.io.header import HeaderError
from jaxmerge.io.sources import open_source
from jaxmerge.studies import result_store

fsspec = pytest.importorskip("fsspec")
RNG = np.random.default_rng(0)
BASE = {"a/kernel": RNG.normal(size=(4, 3)).astype(np.float32), "b/scale": np.ones(3, np.float32)}
MODELS = {n: {k: x + RNG.normal(size=x.shape).astype(np.float32) for k, x in BASE.items()}
          for n in ("one", "two")}  # fmt: skip


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket with a base, two models and a recipe; an empty cache."""
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    with contextlib.suppress(FileNotFoundError):
        fs.rm("/b", recursive=True)
    for name, tree in ({"base": BASE} | MODELS).items():
        folder = tmp_path / name
        folder.mkdir()
        save_file(tree, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "own"}')
        buckets.uploaded(folder, f"memory://b/models/{name}")
    recipe = {"base": "models/base", "models": ["models/one", "models/two"], "method": "magmax"}
    fs.pipe("/b/recipe.yaml", yaml.safe_dump(recipe).encode())
    return fs


def test_a_model_is_copied_once_and_again_where_it_changed(bucket, monkeypatch):
    source = open_source("memory://b/models/one")
    assert source.ref == "memory://b/models/one"
    np.testing.assert_array_equal(source["a/kernel"], MODELS["one"]["a/kernel"])
    assert source.config() == {"model_type": "own"}
    copied = []
    get = type(bucket).get_file
    monkeypatch.setattr(
        type(bucket), "get_file", lambda fs, path, *a, **k: copied.append(path) or get(fs, path, *a)
    )
    open_source("memory://b/models/one")
    assert not copied
    bucket.pipe("/b/models/one/config.json", b'{"model_type": "other"}')
    assert open_source("memory://b/models/one").config() == {"model_type": "other"}
    assert [p.rpartition("/")[2] for p in copied] == ["config.json"]
    part = open_source("memory://b/models/one#a")
    assert set(part) == {"kernel"}
    one = open_source("memory://b/models/one/model.safetensors")
    np.testing.assert_array_equal(one["b/scale"], MODELS["one"]["b/scale"])


def test_a_recipe_and_its_output_in_a_bucket(bucket, capsys):
    merge.run("memory://b/recipe.yaml", "memory://b/out", quiet=True)
    out = load(bucket.cat("/b/out/model.safetensors"))
    assert set(out) == set(BASE)
    taus = [m["a/kernel"] - BASE["a/kernel"] for m in MODELS.values()]
    largest = np.where(np.abs(taus[1]) >= np.abs(taus[0]), taus[1], taus[0])
    np.testing.assert_allclose(out["a/kernel"], BASE["a/kernel"] + 0.5 * largest, atol=1e-6)
    resolved = yaml.safe_load(bucket.cat("/b/out/recipe.resolved.yaml"))
    assert resolved["base"] == "memory://b/models/base"  # not a path of the cache
    with pytest.raises(UserError, match="memory://b/out exists"):
        merge.run("memory://b/recipe.yaml", "memory://b/out", quiet=True)
    merge.run("memory://b/recipe.yaml", "memory://b/out", resume=True)
    assert "finished before" in capsys.readouterr().out
    merge.run("memory://b/recipe.yaml", "memory://b/out", force=True, quiet=True)
    with pytest.raises(ValueError):
        merge.run("memory://b/recipe.yaml", "memory://b/no", dtype="int8", quiet=True)
    assert not bucket.exists("/b/no")  # whole or not at all


def test_other_formats_come_the_same_way(bucket, tmp_path):
    convert.run("memory://b/models/two", tmp_path / "orbax", to="orbax", quiet=True)
    buckets.uploaded(tmp_path / "orbax", "memory://b/run/7")
    buckets.uploaded(tmp_path / "orbax", "memory://b/run/12")
    source = open_source("memory://b/run")
    np.testing.assert_array_equal(source["a/kernel"], MODELS["two"]["a/kernel"])
    assert all("/12/" in str(f) for f in source.files)  # the last step alone was copied
    convert.run("memory://b/run/7", "memory://b/back", quiet=True)
    np.testing.assert_array_equal(
        load(bucket.cat("/b/back/model.safetensors"))["a/kernel"], MODELS["two"]["a/kernel"]
    )


def test_what_is_not_there_is_one_line(bucket, tmp_path):
    for call in (
        lambda: open_source("memory://b/models/none"),
        lambda: open_source("nonsense://b/models/none"),
        lambda: merge.run("memory://b/no.yaml", tmp_path / "out"),
        lambda: result_store.read("memory://b/nothing"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert ":/" in str(caught.value)


def test_an_output_is_copied_after_an_error_where_that_helps(bucket, tmp_path):
    calls = []

    @buckets.into_bucket(last="done", always=True)
    def command(*, out=None, resume=None):
        folder = out or resume
        folder.mkdir(exist_ok=True)
        calls.append(sorted(p.name for p in folder.iterdir()))
        (folder / f"state{len(calls)}").write_text("x")
        if len(calls) == 1:
            raise OSError("full")
        (folder / "done").write_text(json.dumps(calls))

    with pytest.raises(OSError, match="full"):
        command(out="memory://b/run1")
    assert bucket.ls("/b/run1", detail=False) == ["/b/run1/state1"]
    assert not any((buckets.cache_folder() / "outputs").rglob("state1"))  # gone on elsewhere
    command(resume="memory://b/run1")
    assert calls == [[], ["state1"]]
    assert bucket.exists("/b/run1/done")


def test_what_needs_a_part_reads_it_by_range(bucket, tmp_path, monkeypatch, capsys):
    """Headers for --check and inspect, rows for shard; never a copy of the weights."""
    spans = []
    cat = type(bucket).cat_file

    def counted(fs, path, start=None, end=None, **options):
        spans.append((path.rpartition("/")[2], start, end))
        return cat(fs, path, start=start, end=end, **options)

    def get(fs, path, *args, **options):
        assert not path.endswith(".safetensors"), path
        return copy(fs, path, *args, **options)

    copy = type(bucket).get_file
    monkeypatch.setattr(type(bucket), "cat_file", counted)
    monkeypatch.setattr(type(bucket), "get_file", get)
    big = {"w": np.arange(1 << 16, dtype=np.float32).reshape(256, 256), "v": np.ones(3, np.float32)}
    (tmp_path / "big").mkdir()
    save_file(big, tmp_path / "big" / "model.safetensors")
    buckets.uploaded(tmp_path / "big", "memory://b/big")
    inspect.run("memory://b/big", json=True)
    assert json.loads(capsys.readouterr().out)["parameters"] == (1 << 16) + 3
    assert all(end <= 1000 for _, _, end in spans)
    source = open_source("memory://b/big", by_range=True)
    spans.clear()
    np.testing.assert_array_equal(source.read("w", 256, 512), big["w"][1])
    assert [end - start for _, start, end in spans] == [1024]
    spans.clear()
    placed = jm.shard("memory://b/big", jm.mesh(1, 2))
    assert {n: np.asarray(x).tobytes() for n, x in placed.items()} == {
        n: x.tobytes() for n, x in big.items()
    }
    assert sum(end - start for _, start, end in spans) < big["w"].nbytes + 2000
    monkeypatch.undo()
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "cache"))
    save_file({n: x[:1] for n, x in big.items()}, tmp_path / "big" / "model.safetensors")
    buckets.uploaded(tmp_path / "big", "memory://b/big")
    assert source.replaced()
    assert jm.shard("memory://b/big", jm.mesh(1, 1))["w"].shape == (1, 256)
    copied = open_source("memory://b/big")  # a copy of its own
    np.testing.assert_array_equal(copied["w"], big["w"][:1])


def test_a_check_reads_headers_alone(bucket, monkeypatch, capsys):
    monkeypatch.setattr(ranges.RangeFile, "_fill", lambda *_: pytest.fail("a check reads no leaf"))
    merge.run("memory://b/recipe.yaml", check=True)
    assert "magmax" in capsys.readouterr().out


def test_a_hostile_header_in_a_bucket_is_refused(bucket):
    bucket.pipe("/b/bad/model.safetensors", b"\xff" * 8 + b"{}")
    with pytest.raises(HeaderError, match="truncated"):
        open_source("memory://b/bad", by_range=True)
    bucket.pipe("/b/bad/model.safetensors", b"abc")
    with pytest.raises(HeaderError, match="too few"):
        open_source("memory://b/bad", by_range=True)
