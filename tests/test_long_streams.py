"""Streams of many models hold one state, however long they are."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmerge as jm


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("models", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_models(models):
    base = {"w": np.zeros(50_000, np.float32)}
    row = np.random.default_rng(0).standard_normal(base["w"].size).astype(np.float32)
    method = jm.magmax()
    step = jax.jit(functools.partial(jm.update, method), donate_argnums=0)
    state, early = jm.init(method, base), 0
    for t in range(models):
        state = step(state, base, {"w": np.roll(row, t)})
        if t == models // 4:
            jax.block_until_ready(state.cells)
            early = resident()
    jax.block_until_ready(state.cells)
    assert resident() < 1.05 * early
    largest = np.abs(np.stack([np.roll(row, t)[:20].copy() for t in range(models)])).max(0)
    got = np.abs(np.asarray(jm.merged(method, state, base)["w"])[:20])
    np.testing.assert_allclose(2 * got, largest, rtol=1e-6)
