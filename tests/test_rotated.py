"""Turned images are scipy's, and every task turns further."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import rotate

from jaxmerge.continual.rotated import rotated, turned

images = np.random.default_rng(0).integers(0, 256, (4, 9, 7), np.uint8)
labels = np.arange(4, dtype=np.int32) % 2


@pytest.mark.parametrize("degrees", [0.0, 18.0, 90.0, 200.0])
def test_against_scipy(degrees):
    info = {"degrees": jnp.array([0.0, degrees])}
    ours = turned(jnp.asarray(images), info, jnp.ones(4, int), None).reshape(images.shape)
    theirs = [rotate(x / np.float32(255), degrees, reshape=False, order=1) for x in images]
    inner = ours[:, 1:-1, 1:-1], np.stack(theirs)[:, 1:-1, 1:-1]  # at an edge rounding decides
    np.testing.assert_allclose(*inner, atol=1e-5)


def test_tasks_share_out_the_degrees_and_all_examples():
    stream = rotated((images, labels), (images, labels), 3, degrees=90, batch=2)
    assert stream.info["degrees"].tolist() == [0, 30, 60]
    assert all(sorted(rows.ravel().tolist()) == [0, 1, 2, 3] for rows in stream.rows)
