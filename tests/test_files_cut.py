"""Large leaves in pieces: whole rows, histograms and counts added up, side information beside."""

from __future__ import annotations

import jax
import laws
import numpy as np
import pytest
from leaves import family, saved

import jaxmerge as jm
from jaxmerge.core.types import leaf_sum
from jaxmerge.drivers.files import chunks, measuring, measuring_cuts, strategy, worker
from jaxmerge.drivers.files.api import merge_jobs
from jaxmerge.drivers.files.elementwise_proof import by_rows, sums
from jaxmerge.drivers.files.job import Job
from jaxmerge.io.safetensors import File, Like
from jaxmerge.numerics import host_order_statistics, host_rows

SHAPES = {"w": (90, 40), "norm": (7,)}
METHODS = {
    "arcee_fusion": lambda: jm.arcee_fusion(),
    "sce": lambda: jm.sce(),
    "sce half": lambda: jm.sce(density=0.5),
    "della": lambda: jm.della(),
    "della_linear l1": lambda: jm.della_linear(rescale="l1"),
    "continual_ties": lambda: jm.continual_ties(),
    "emr_task": lambda: jm.emr_task(),
    "pcb": lambda: jm.pcb(),
    "ram_plus": lambda: jm.ram_plus(),
    "ram_plus leaf": lambda: jm.ram_plus(scope="leaf"),
    "nuslerp row": lambda: jm.nuslerp(per="row"),
    "multislerp row": lambda: jm.multislerp(per="row"),
    "model_stock model": lambda: jm.model_stock(per="model"),
}
FEWER = {"arcee_fusion": 1, "nuslerp row": 2}


@pytest.fixture
def cut(monkeypatch):
    """Every leaf is larger than the budget; the names of those that are merged in pieces."""
    names, whole = set(), worker.Run.in_pieces

    def noted(self, job, name, *rest):
        names.add(name)
        whole(self, job, name, *rest)

    for module in (chunks, strategy):
        monkeypatch.setattr(module, "MIN_PIECE", 64)
    for module in (measuring_cuts, strategy, worker):
        monkeypatch.setattr(module, "ROOM", 100)
    monkeypatch.setattr(measuring, "PIECE_ENTRIES", 512)
    monkeypatch.setattr(worker, "PIECES", 20_000)
    monkeypatch.setattr("jaxmerge.drivers.files.elementwise_proof.PIECE", 97)
    monkeypatch.setattr(worker.Run, "in_pieces", noted)
    return names


@pytest.mark.parametrize("name", METHODS)
def test_a_leaf_beyond_the_budget_is_cut_and_gives_the_same(tmp_path, cut, name):
    models, key = family(np.float32, shapes=SHAPES)[: 1 + FEWER.get(name, 3)], jax.random.key(7)
    files, method = saved(tmp_path, models), METHODS[name]()
    merge_jobs([Job(method, files[1:], files[0], key)], tmp_path / "out")
    nonempty = [{n: x for n, x in m.items() if x.size} for m in models]
    want = jm.merge(method, nonempty[0], nonempty[1:], key=key)
    got = File(tmp_path / "out" / "model.safetensors")
    assert cut == {"w"}
    for n in want:
        np.testing.assert_allclose(got[n], want[n], rtol=6e-7, atol=2.5e-8, err_msg=n)


RANKED = {
    "ties": lambda: jm.ties(),
    "ties leaf": lambda: jm.ties(scope="leaf"),
    "ties exact": lambda: jm.ties(scope="leaf", exact=True),
    "breadcrumbs": lambda: jm.breadcrumbs(),
    "breadcrumbs exact": lambda: jm.chain(jm.drop_outliers(0.5, 0.1, exact=True), jm.mean()),
}


@pytest.mark.parametrize("name", [*METHODS, *RANKED])
def test_changes_that_are_zero_or_equal_are_cut_alike(tmp_path, cut, monkeypatch, name):
    monkeypatch.setattr(host_order_statistics, "SMALL", 64)
    for key, small in (("BLOCK", 256), ("PROCESSORS", 3)):
        monkeypatch.setattr(host_rows, key, small)
    monkeypatch.setattr(host_order_statistics.gather, "__defaults__", (64,))
    rng, count = np.random.default_rng(0), FEWER.get(name, 3)
    coarse = lambda x: np.round(x * 64) / np.float32(64) if x.dtype.kind == "f" else x
    base = {n: coarse(x) for n, x in family(np.float32, shapes=SHAPES)[0].items()}
    few = lambda x: (rng.integers(-1, 2, x.shape) * 2.0**-6).astype(np.float32)
    rare = lambda x: np.where(rng.random(x.shape) < 0.01, few(x), 0).astype(np.float32)
    models = [base]
    for change in (few, np.zeros_like, rare)[:count]:
        floats = {n: x + change(x) for n, x in base.items() if x.dtype.kind == "f"}
        models.append(base | floats)
    key, method = jax.random.key(7), (METHODS | RANKED)[name]()
    files = saved(tmp_path, models)
    merge_jobs([Job(method, files[1:], files[0], key)], tmp_path / "out")
    nonempty = [{n: x for n, x in m.items() if x.size} for m in models]
    want = jm.merge(method, nonempty[0], nonempty[1:], key=key)
    got = File(tmp_path / "out" / "model.safetensors")
    for n in want:
        np.testing.assert_allclose(got[n], want[n], rtol=6e-7, atol=2.5e-8, err_msg=n)


ALL = [*(name for name, _ in laws.stages()), "continual_ties leaf"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_method_gives_the_same_beyond_the_budget(tmp_path, cut, monkeypatch, name):
    """Whether its leaves are cut or not: a proof that is wrong shows here."""
    monkeypatch.setattr(laws, "SHAPES", SHAPES)
    laws.case_of.cache_clear()
    case = laws.case_of(name.split()[0])
    laws.case_of.cache_clear()
    method = jm.continual_ties(scope="leaf") if name == "continual_ties leaf" else case.method
    want = jm.merge(method, case.base, case.models, key=case.key, extras=case.extras)
    files = saved(tmp_path, [case.base, *case.models])
    job = Job(method, files[1:], files[0], case.key, case.extras or ())
    merge_jobs([job], tmp_path / "out")
    got = File(tmp_path / "out" / "model.safetensors")
    for n in want:
        np.testing.assert_allclose(got[n], want[n], rtol=1e-6, atol=4e-7, err_msg=n)


@pytest.mark.parametrize("name", ["fisher", "mask"])
def test_side_information_is_cut_with_its_leaf(tmp_path, cut, name):
    models, rng = family(np.float32, shapes=SHAPES), np.random.default_rng(0)
    nonempty = [{n: x for n, x in m.items() if x.size and x.dtype.kind == "f"} for m in models]
    draw = lambda x: rng.random(x.shape).astype(np.float32)
    sides = [{n: draw(x) for n, x in m.items()} for m in nonempty[1:]]
    if name == "mask":
        sides = [{n: x > 0.5 for n, x in e.items()} for e in sides]
    method = jm.fisher_merging() if name == "fisher" else jm.stitch()
    extras, files = [{name: e} for e in sides], saved(tmp_path, models)
    (tmp_path / "sides").mkdir()
    lazy = saved(tmp_path / "sides", sides)
    want = jm.merge(method, nonempty[0], nonempty[1:], extras=extras)
    for i, beside in enumerate((extras, [{name: e} for e in lazy])):
        cut.clear()
        merge_jobs([Job(method, files[1:], files[0], None, beside)], tmp_path / f"o{i}")
        got = File(tmp_path / f"o{i}" / "model.safetensors")
        assert cut == {"w"}
        for n in want:
            np.testing.assert_allclose(got[n], want[n], rtol=1e-6, atol=1e-7)


def test_rows_are_proven_from_the_program():
    leaf = Like((300, 40), np.dtype(np.float32))
    prove = lambda f: by_rows(lambda b, m: f(b, m[0]), leaf, (leaf,))
    assert prove(lambda b, x: x - x.mean(-1, keepdims=True)) == ()
    assert prove(lambda b, x: jax.numpy.sort(x, axis=1) * b) == ()
    assert prove(lambda b, x: jax.nn.softmax(x) * leaf_sum(jax.nn.softmax(b))) == (1,)
    refused = [
        lambda b, x: x - x.mean(0),
        lambda b, x: jax.numpy.sort(x, axis=0),
        lambda b, x: x[::-1],
        lambda b, x: jax.numpy.cumsum(x, 0),
        lambda b, x: x * jax.numpy.arange(len(x), dtype=x.dtype)[:, None],
        lambda b, x: x / len(x),
        lambda b, x: x.reshape(-1).reshape(x.shape) * x.sum(),
        lambda b, x: (x @ x.T) @ b,
        lambda b, x: x * np.ones((300, 1), np.float32),
        lambda b, x: x * np.ones((300, 40), np.float32),
        lambda b, x: x * np.array([len(x)], np.float32),
        lambda b, x: x * jax.jit(lambda x: x * np.array([x.size], np.float32))(x),
    ]
    assert [prove(f) for f in refused] == [None] * len(refused)
    assert sums(lambda b, m: m[0] - m[0].mean(-1, keepdims=True), leaf, (leaf,)) is None
