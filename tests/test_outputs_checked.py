"""What is written is looked at: finite inputs stay finite, or the leaf is named."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.cli import merge
from jaxmerge.drivers.files.chunks import all_finite, bounds
from jaxmerge.errors import UserError
from jaxmerge.io.install import partial_folder

BF = ml_dtypes.bfloat16


def saved(folder, **leaves):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"fine": np.ones(4, np.float32), **leaves}, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("size", [8, 300_000])  # whole, and in pieces
@pytest.mark.parametrize("merged", [True, False])
def test_values_beyond_the_output_are_refused_by_leaf(tmp_path, size, merged):
    x = np.full(size, 9e4, BF)
    x[1:] = 1
    refs = [saved(tmp_path / n, big=x) for n in "ab"]
    method = jm.mean() if merged else jm.partition(
        {"a": jm.mean(), "b": jm.keep_base()}, [("big", "b"), (".*", "a")]
    )  # fmt: skip
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"leaf 'big': 1 entries .* in float16 \(up to 90112") as e:
        jm.merge_files(method, models=refs, out=out, dtype="float16")
    assert "\n" not in str(e.value)
    assert not out.exists()
    assert not partial_folder(out).exists()  # the same command can be given again
    jm.merge_files(method, models=refs, out=out, dtype="float16", overflow="clip")
    got = load_file(out / "model.safetensors")["big"]
    assert got[0] == 65504
    assert (got[1:] == 1).all()
    jm.merge_files(method, models=refs, out=out, dtype="float16", overflow="allow", force=True)
    assert np.isinf(load_file(out / "model.safetensors")["big"][0])
    jm.merge_files(method, models=refs, out=out, dtype="bfloat16", force=True)
    assert load_file(out / "model.safetensors")["big"][0] == BF(9e4)


@pytest.mark.parametrize(
    ("kind", "value"), [("float8_e4m3fn", 500), ("float8_e5m2", 7e4), ("float8_e8m0fnu", -1)]
)
def test_float8(tmp_path, kind, value):
    refs = [saved(tmp_path / n, w=np.full(8, value, np.float32)) for n in "ab"]
    with pytest.raises(ValueError, match=f"not finite in {kind}"):
        jm.merge_files(jm.mean(), models=refs, out=tmp_path / "out", dtype=kind)
    jm.merge_files(jm.mean(), models=refs, out=tmp_path / "out", dtype=kind, overflow="clip")
    got = load_file_f8(tmp_path / "out/model.safetensors")
    assert (got == bounds(np.dtype(getattr(ml_dtypes, kind)))[value > 0]).all()


def load_file_f8(path):
    from jaxmerge.io.safetensors import File

    return File(path)["w"].astype(np.float32)


def test_a_merge_that_overflows_by_itself(tmp_path):
    """float16 inputs of which the sum is too large, in their own dtype."""
    refs = [saved(tmp_path / n, w=np.full(8, 6e4, np.float16)) for n in "ab"]
    method = jm.linear((1.0, 1.0), normalize=False)
    with pytest.raises(ValueError, match="leaf 'w': 8 entries"):
        jm.merge_files(method, models=refs, out=tmp_path / "out")
    jm.merge_files(method, models=refs, out=tmp_path / "out", overflow="clip")
    assert (load_file(tmp_path / "out/model.safetensors")["w"] == 65504).all()


def test_what_was_not_finite_in_the_base_may_stay(tmp_path):
    x = np.float32([np.inf, 1, 2])
    refs = [saved(tmp_path / n, w=x) for n in "ab"]
    jm.merge_files(jm.mean(), base=refs[0], models=refs, out=tmp_path / "o", nonfinite="zero",
                   dtype="bfloat16")  # fmt: skip
    keep = jm.partition({"a": jm.mean(), "b": jm.keep_base()}, [("w", "b"), (".*", "a")])
    jm.merge_files(keep, base=refs[0], models=refs, out=tmp_path / "p", dtype="float16")
    assert np.isinf(load_file(tmp_path / "p/model.safetensors")["w"][0])


def test_both_parts_of_complex_leaves_are_looked_at(tmp_path):
    assert not all_finite(np.complex64([1, complex(1, np.inf)]))
    assert not all_finite(np.complex64([1, complex(np.nan, 1)]))
    assert all_finite(np.complex64([1, 1j]))
    x = np.complex64([1, complex(1, np.nan)])
    with pytest.raises(ValueError, match="1 of 2 entries"):
        jm.merge(jm.mean(), None, [{"w": x}, {"w": x}])


@pytest.mark.parametrize("form", ["own", "mergekit"])
def test_by_recipe_and_by_option(tmp_path, form):
    refs = [saved(tmp_path / n, w=np.full(8, 9e4, np.float32)) for n in "ab"]
    recipe = {"models": refs, "method": "mean", "out_dtype": "float16"}
    if form == "mergekit":
        models = [{"model": r, "parameters": {"weight": 1}} for r in refs]
        recipe = {"merge_method": "linear", "models": models, "out_dtype": "float16"}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="not finite in float16"):
        merge.run(path, tmp_path / "out", quiet=True)
    merge.run(path, tmp_path / "out", quiet=True, overflow="clip")
    again = tmp_path / "out/recipe.resolved.yaml"
    assert yaml.safe_load(again.read_text())["overflow"] == "clip"
    merge.run(again, tmp_path / "again", quiet=True)
    assert (load_file(tmp_path / "again/model.safetensors")["w"] == 65504).all()
    path.write_text(yaml.safe_dump({**recipe, "overflow": "wrap"}))
    with pytest.raises(UserError, match="overflow must be one of raise, clip, allow"):
        merge.run(path, tmp_path / "out", quiet=True)
