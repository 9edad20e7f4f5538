"""The file driver: the same bits as in memory, pieces, dtypes, bad input refused."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
from leaves import family, saved
from safetensors.numpy import load_file

import jaxmerge as jm
from jaxmerge.core.types import leaf_sum
from jaxmerge.drivers.files import chunks, measuring, strategy, worker
from jaxmerge.drivers.files.api import merge_jobs
from jaxmerge.drivers.files.elementwise_proof import elementwise, sums
from jaxmerge.drivers.files.job import Job
from jaxmerge.io.install import partial_folder
from jaxmerge.io.safetensors import File, Like
from jaxmerge.numerics import brackets, host_order_statistics, host_rows


@pytest.fixture
def small_pieces(monkeypatch):
    """Cut leaves of a few thousand entries, so that tests see pieces."""
    monkeypatch.setattr(chunks, "MIN_PIECE", 64)
    monkeypatch.setattr(strategy, "MIN_PIECE", 64)
    monkeypatch.setattr(worker, "PIECES", 20_000)
    monkeypatch.setattr("jaxmerge.drivers.files.elementwise_proof.PIECE", 97)


METHODS = {
    "magmax": lambda: jm.magmax(),
    "linear": lambda: jm.linear([0.1, 0.2, 0.4], normalize=True),
    "task_arithmetic": lambda: jm.task_arithmetic(0.4),
    "ties": lambda: jm.ties(),
    "ties leaf": lambda: jm.ties(0.3, scope="leaf", tie="positive"),
    "ties max": lambda: jm.ties(0.3, merge="max", factor=0.5),
    "dare_ties": lambda: jm.dare_ties(0.4),
    "dare_ties l1": lambda: jm.chain(
        jm.drop_random(0.4, "l1"), jm.disjoint_mean("sum", [0.1, 0.2, 0.3], tie="positive")
    ),
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
    for module in (strategy, worker):
        monkeypatch.setattr(module, "ROOM", 100)
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
    whole = worker.Run.in_pieces

    def noted(self, job, name, *rest):
        cut.append(name)
        whole(self, job, name, *rest)

    monkeypatch.setattr(worker.Run, "in_pieces", noted)
    files = saved(tmp_path, family())
    big = {"embed", "layers.0.w", "layers.1.w"}
    for i, (method, expected) in enumerate([
        (jm.magmax(), big), (jm.ties(0.3, scope="leaf"), big), (jm.ties(), big),
        (jm.model_stock(), set()), (jm.randmix(), big), (jm.dare(0.5, rescale="l1"), set()),
    ]):  # fmt: skip
        cut.clear()
        merge_jobs([Job(method, files[1:], files[0], jax.random.key(0))], tmp_path / f"o{i}")
        assert set(cut) == expected, method


@pytest.mark.parametrize("name", ["slerp", "karcher", "multislerp", "model_stock"])
def test_a_giant_leaf_is_cut_around_sums_of_sums(tmp_path, small_pieces, monkeypatch, name):
    for module in (strategy, worker):
        monkeypatch.setattr(module, "ROOM", 100)
    cut, whole = set(), worker.Run.in_pieces

    def noted(self, job, leaf, *rest):
        cut.add(leaf)
        whole(self, job, leaf, *rest)

    monkeypatch.setattr(worker.Run, "in_pieces", noted)
    models = family(np.float32)[: 3 if name == "slerp" else None]
    files, method = saved(tmp_path, models), jm.get(name)()
    merge_jobs([Job(method, files[1:], files[0])], tmp_path / "out")
    nonempty = [{n: x for n, x in m.items() if x.size} for m in models]
    want, got = (
        jm.merge(method, nonempty[0], nonempty[1:]),
        File(tmp_path / "out" / "model.safetensors"),
    )
    assert cut == {"embed", "layers.0.w", "layers.1.w"}
    for n in want:
        np.testing.assert_allclose(got[n], want[n], rtol=0, atol=4e-7)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["dare l1", "dare_ties l1"])
def test_a_giant_leaf_is_cut_around_its_sums(tmp_path, small_pieces, monkeypatch, name, dtype):
    """Sums over the leaf are added up piece by piece: the same draws, the same to rounding."""
    for module in (strategy, worker):
        monkeypatch.setattr(module, "ROOM", 100)
    coupled, whole = {}, worker.Run.in_pieces

    def noted(self, job, name, measured, closing, blocks, cut):
        coupled[name] = cut.rounds
        whole(self, job, name, measured, closing, blocks, cut)

    monkeypatch.setattr(worker.Run, "in_pieces", noted)
    models, key = family(dtype), jax.random.key(7)
    files, method = saved(tmp_path, models), METHODS[name]()
    with_entries = [{n: x for n, x in m.items() if x.size} for m in models]
    want = jm.merge(method, with_entries[0], with_entries[1:], key=key)
    merge_jobs([Job(method, files[1:], files[0], key)], tmp_path / "out")
    got = File(tmp_path / "out" / "model.safetensors")
    assert coupled == dict.fromkeys(("embed", "layers.0.w", "layers.1.w"), (1,) * 6)
    ulps = 4 * float(ml_dtypes.finfo(dtype).eps)
    for n in want:
        values = [np.asarray(x, np.float64) for x in (got[n], want[n])]
        np.testing.assert_allclose(*values, rtol=0, atol=0.1 * ulps)


def test_measuring_a_leaf_too_large_to_keep_reads_it_in_slices(tmp_path, monkeypatch):
    for module in (strategy, worker):
        monkeypatch.setattr(module, "ROOM", 1)  # so every leaf is
    monkeypatch.setattr(host_order_statistics, "SMALL", 100)
    monkeypatch.setattr(host_rows, "BLOCK", 128)
    monkeypatch.setattr(brackets, "STRIDES", (64,))
    longest, read = [], measuring.Unread.__getitem__

    def counted(self, part):
        out = read(self, part)
        longest.append(out.size)
        return out

    monkeypatch.setattr(measuring.Unread, "__getitem__", counted)
    models = family(np.float32)
    files, method = saved(tmp_path, models), jm.ties(density=0.2, scope="leaf", tie="positive")
    job = Job(method, files[1:], files[0])
    merge_jobs([job], tmp_path / "out")
    assert longest
    assert max(longest) <= 128
    leaves = [{n: x for n, x in m.items() if n in job.grid} for m in models]
    want, got = jm.merge(method, leaves[0], leaves[1:]), File(tmp_path / "out/model.safetensors")
    for n in want:
        np.testing.assert_array_equal(got[n], want[n])


def test_sums_of_what_sums_went_into_are_of_a_later_round():
    leaf = Like((200, 100), np.dtype(np.float32))
    plain = lambda b, m: b * leaf_sum(abs(m[0])) + leaf_sum(b)
    nested = lambda b, m: b * leaf_sum(abs(m[0] - leaf_sum(m[0])))
    inside = lambda b, m: b * leaf_sum(jax.jit(lambda x, s: x - s)(b, leaf_sum(b)))
    assert [sums(f, leaf, (leaf,)) for f in (plain, nested, inside)] == [(1, 1), (1, 2), (1, 2)]


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
