"""Streams whose tasks turn the images, such as rotated MNIST."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from jaxmerge.continual.stream_records import Stream
from jaxmerge.continual.streams import Data, permuted
from jaxmerge.core.types import Array


def rotated(
    train: Data,
    test: Data,
    tasks: int = 10,
    *,
    degrees: float = 180.0,
    batch: int = 10,
    epochs: int = 1,
    examples: int | None = None,
    seed: int = 0,
) -> Stream:
    """All classes in every task, the images turned by an angle of each task's own.

    Task t turns by ``t / tasks * degrees``, the first not at all: ``info["degrees"]`` [tasks],
    applied by `turned` as the view of the problem.

    Args:
        train, test: images [N, height, width] and int labels [N].
        tasks: how many, 1 or more.
        degrees: that all tasks share out, anticlockwise.
        batch: examples of a step, 1 or more.
        epochs: passes over a task.
        examples: of a task, drawn anew for each; None: all.
        seed: of all that is drawn.

    >>> x, y = np.zeros((8, 3, 3), np.uint8), np.arange(8) % 4
    >>> rotated((x, y), (x, y), tasks=2, batch=4).info["degrees"].tolist()
    [0.0, 90.0]
    """
    stream = permuted(
        train, test, tasks, batch=batch, epochs=epochs, examples=examples, seed=seed, first=False
    )
    turns = (np.arange(tasks) * degrees / tasks).astype(np.float32)
    return stream._replace(info={"own": stream.info["own"], "degrees": turns})


def turned(stored: Array, info: Mapping[str, Array], task: Array, key: Array | None) -> Array:
    """Bytes as one vector in [0, 1], each image turned about its centre by its task's angle.

    Values between pixels are interpolated linearly, those from outside the image are 0.

    Args:
        stored: uint8 [B, height, width].
        info: of the stream; ``"degrees"``, float [tasks], is read.
        task: int32 [B].
        key: not used.

    >>> image = jnp.array([[[255, 0], [0, 0]]], jnp.uint8)
    >>> turned(image, {"degrees": jnp.array([90.0])}, jnp.zeros(1, int), None).round(3).tolist()
    [[0.0, 0.0, 1.0, 0.0]]
    """
    height, width = stored.shape[1:]
    centre = (height - 1) / 2, (width - 1) / 2
    down, right = jnp.meshgrid(
        jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij"
    )

    def one(image: Array, angle: Array) -> Array:
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        from_ = [cos * down + sin * right + centre[0], cos * right - sin * down + centre[1]]
        return map_coordinates(image, from_, order=1, mode="constant")

    angles = jnp.deg2rad(jnp.asarray(info["degrees"])[task])
    x = jax.vmap(one)(stored / jnp.float32(255), angles)
    return x.reshape(stored.shape[0], -1)
