"""The hash generator: repeatable, flat, and independent of neighbours, keys and shapes."""

import jax
import numpy as np
import pytest

from jaxmerge.numerics import hash_rng

N = 1 << 20


@pytest.fixture(scope="module")
def sample():
    return np.asarray(hash_rng.uniform(jax.random.key(0), (N,)), np.float64)


def test_uniform(sample):
    assert sample.min() >= 0
    assert sample.max() < 1
    assert abs(sample.mean() - 0.5) < 4 / np.sqrt(12 * N)
    assert abs(sample.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / N)
    counts = np.bincount((sample * 1024).astype(int), minlength=1024)
    chi2 = ((counts - N / 1024) ** 2 / (N / 1024)).sum()
    assert abs(chi2 - 1023) < 5 * np.sqrt(2 * 1023)


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64, 768, 3072, 65536])
def test_entries_do_not_depend_on_their_neighbours(sample, lag):
    assert abs(np.corrcoef(sample[:-lag], sample[lag:])[0, 1]) < 5 / np.sqrt(N)


def test_pairs_fill_the_square(sample):
    cells = np.bincount((sample[::2] * 32).astype(int) * 32 + (sample[1::2] * 32).astype(int))
    chi2 = ((cells - N / 2048) ** 2 / (N / 2048)).sum()
    assert abs(chi2 - 1023) < 5 * np.sqrt(2 * 1023)


def test_every_bit_is_fair_and_flips_with_the_key():
    key = jax.random.key(1)
    one = np.asarray(hash_rng.bits(key, (N,)))
    others = [np.asarray(hash_rng.bits(jax.random.fold_in(key, t), (N,))) for t in range(3)]
    for shift in range(32):
        bit = (one >> shift) & 1
        assert abs(bit.mean() - 0.5) < 5 * 0.5 / np.sqrt(N)
        for other in others:
            assert abs((bit ^ ((other >> shift) & 1)).mean() - 0.5) < 5 * 0.5 / np.sqrt(N)


def test_keys_of_neighbouring_cells_give_independent_masks():
    keys = [jax.random.fold_in(jax.random.key(7), t) for t in range(8)]
    masks = np.stack([np.asarray(hash_rng.coin(k, 0.1, (N,))) for k in keys]).astype(float)
    assert np.abs(masks.mean(1) - 0.1).max() < 5 * 0.3 / np.sqrt(N)
    cross = np.corrcoef(masks)[~np.eye(8, dtype=bool)]
    assert np.abs(cross).max() < 5 / np.sqrt(N)


def test_the_index_decides_not_the_shape():
    flat = hash_rng.bits(jax.random.key(3), (24,))
    np.testing.assert_array_equal(hash_rng.bits(jax.random.key(3), (2, 3, 4)).reshape(-1), flat)
    np.testing.assert_array_equal(
        jax.jit(hash_rng.bits, static_argnums=1)(jax.random.key(3), (24,)), flat
    )
