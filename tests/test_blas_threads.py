"""LAPACK's threads while leaves are decomposed side by side: shared out, and given back."""

from __future__ import annotations

import os
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
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
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
