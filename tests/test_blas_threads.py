"""LAPACK's threads while leaves are decomposed side by side: shared out, and given back."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.core.validation import grid_of
from jaxmerge.numerics import blas_threads


def threads() -> list[int]:
    return [lib["num_threads"] for lib in blas_threads._libraries().info()]


def test_one_thread_inside_and_all_again_behind():
    before = threads()
    with blas_threads.shared_out(100):
        assert set(threads()) == {1}
        with blas_threads.shared_out(100) as there:  # a merge within a merge
            assert there({"w": jax.numpy.ones(2)})["w"].tolist() == [1, 1]
        assert set(threads()) == {1}
    assert threads() == before
    with blas_threads.shared_out(0):
        assert threads() == before


@pytest.mark.parametrize("leaves, share", [(1, 8), (2, 4), (3, 2), (8, 1), (100, 1)])
def test_cores_are_shared_out_among_kernels(monkeypatch, leaves, share):
    limits, limited = [], blas_threads._limited
    monkeypatch.setattr(blas_threads, "_cores", lambda: 8)
    monkeypatch.setattr(blas_threads, "_limited", lambda n: limits.append(n) or limited(n))
    with blas_threads.shared_out(leaves), blas_threads.shared_out(50):  # the first one's rules
        assert limits == [share]


def test_a_failure_gives_back_what_was_taken():
    before = threads()
    with pytest.raises(ZeroDivisionError), blas_threads.shared_out(3):
        1 / 0  # noqa: B018
    assert threads() == before


def test_merges_on_several_threads_give_back_what_the_first_took():
    before, here, go = threads(), threading.Barrier(2), threading.Event()

    def first():
        with blas_threads.shared_out(9):
            here.wait(10)
            go.wait(10)  # ends last

    def second():
        with blas_threads.shared_out(9):
            here.wait(10)
        go.set()

    both = [threading.Thread(target=f) for f in (first, second)]
    for t in both:
        t.start()
    for t in both:
        t.join(10)
    assert threads() == before


def test_what_decomposes_says_so():
    base = {"block/fc/kernel": np.zeros((4, 4), np.float32), "bias": np.zeros(4, np.float32)}
    for method in (jm.tsv_m(), jm.tsv_c(2), jm.iso_c(), jm.iso_cts(), jm.opcm(), jm.dop()):
        which = {n: p.decomposes for n, p in grid_of(method, base).items()}
        assert which == {"block/fc/kernel": True, "bias": False}
    assert not any(p.decomposes for p in grid_of(jm.ties(), base).values())


class Kernel:
    """Stands for a pipeline that decomposes."""

    decomposes, fold = True, None


def test_leaves_are_decomposed_on_a_thread_each(monkeypatch):
    """The first of every shape ahead, so that no program is compiled twice; order stays."""
    monkeypatch.setattr(blas_threads, "_cores", lambda: 2)
    arrays = {"b": np.ones(3), "a": np.ones(3), "c": np.ones((2, 2)), "d": np.ones(3)}
    grid, first, both = dict.fromkeys(arrays, Kernel()), [], threading.Barrier(2)

    def run(n):
        assert threading.current_thread() is not threading.main_thread()
        if n in "ad":
            assert sorted(first) == ["b", "c"]
            both.wait(10)  # would time out if leaves were taken in turn
        first.append(n)
        return 2 * arrays[n]

    out = blas_threads.leaf_by_leaf(run, grid, arrays.get)
    assert list(out) == list(arrays)
    assert all((out[n] == 2).all() for n in out)


@pytest.mark.parametrize("why", ["traced", "settings", "one kernel", "one core"])
def test_leaves_are_taken_in_turn(why, monkeypatch):
    monkeypatch.setattr(blas_threads, "_cores", lambda: 1 if why == "one core" else 4)
    grid = dict.fromkeys("ab" if why != "one kernel" else "a", Kernel())
    here = lambda n: threading.current_thread() is threading.main_thread()

    def merged(x):
        return blas_threads.leaf_by_leaf(here, grid, lambda n: x)

    if why == "traced":
        found = []
        jax.jit(lambda x: found.append(merged(x)))(np.ones(2))
        (found,) = found
    elif why == "settings":
        with jax.enable_x64(True):
            found = merged(np.ones(2))
    else:
        found = merged(np.ones(2))
    assert found == dict.fromkeys(grid, True)


def test_what_fails_on_a_thread_fails_the_merge(monkeypatch):
    monkeypatch.setattr(blas_threads, "_cores", lambda: 2)
    grid = dict.fromkeys("ab", Kernel())
    with pytest.raises(ZeroDivisionError):
        blas_threads.leaf_by_leaf(lambda n: 1 / 0, grid, lambda n: np.ones(2))


@pytest.mark.parametrize("made", [jm.tsv_m, jm.iso_c, lambda f: jm.chain(jm.opcm(), jm.scale(f))])
def test_merges_that_decompose_may_be_transformed(made, monkeypatch):
    """What is traced is the factor alone, or nothing; the arrays are concrete."""
    monkeypatch.setattr(blas_threads, "_cores", lambda: 2)
    rng = np.random.default_rng(0)
    draw = lambda: {f"{i}/fc/kernel": rng.normal(size=(6, 4)).astype(np.float32) for i in range(3)}
    base, models = draw(), [draw(), draw()]
    merged = lambda f: jm.merge(made(f), base, models)["0/fc/kernel"]
    expected = [merged(f) for f in (0.1, 0.5)]
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)
    for f, one in zip((0.1, 0.5), expected, strict=True):
        close(jax.jit(merged)(f), one)
        close(jax.jit(lambda f=f: merged(f))(), one)
    close(jax.vmap(merged)(np.float32([0.1, 0.5])), expected)
    slope = jax.grad(lambda f: jax.numpy.sum(merged(f)))(0.5)
    close(slope, (expected[1] - expected[0]).sum() / 0.4)
    assert jax.eval_shape(merged, 0.5).shape == (6, 4)


@pytest.mark.parametrize("method", [jm.tsv_m(), jm.opcm(), jm.chain(jm.tsv_m(), jm.scale(0.5))])
def test_leaves_side_by_side_give_what_they_give_in_turn(method, monkeypatch):
    rng = np.random.default_rng(0)
    draw = lambda: {f"{i}/fc/kernel": rng.normal(size=(6, 4 + i % 2)) for i in range(5)}
    base, models = draw(), [draw(), draw()]
    results = []
    for cores in (1, 4):
        monkeypatch.setattr(blas_threads, "_cores", lambda cores=cores: cores)
        state = jm.init(method, base)
        for model in models:
            state = jm.update(method, state, base, model)
        results += [jm.merge(method, base, models), jm.merged(method, state, base)]
    for one in results[1:]:
        for n in base:
            np.testing.assert_allclose(one[n], results[0][n], rtol=1e-5)
            assert one[n].dtype == base[n].dtype
