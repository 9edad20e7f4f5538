"""Features of a whole data set: pictures are read and prepared while the device computes.

A pool of threads prepares the next batches (PIL lets go of the interpreter while it decodes and
resizes), the device gets one batch after the other without waiting for results, and these are
fetched at the end. All batches have one shape, so one compilation serves; parameters are an
argument of the compiled step, so it serves other merged models of the same config as well.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmerge.models.clip.checkpoint import Model
from jaxmerge.models.clip.modeling import image_features
from jaxmerge.models.clip.preprocess import Preprocess


def encode_images(
    model: Model,
    images: np.ndarray | Sequence[Any],
    batch: int = 256,
    workers: int = 2,
    **options,
) -> np.ndarray:
    """Image features, not normalised, float32 `[images, projection_dim]`, in the order given.

    Args:
      model: a model with an image tower.
      images: uint8 `[images, height, width, 3]` or `[images, height, width]` (a memory map is read
        batch by batch), or a sequence of PIL pictures or of paths to picture files.
      batch: pictures a step.
      workers: threads that prepare batches.
      options: for `image_features`, as `compute=Compute(dtype="bfloat16")`.

    Raises:
      ValueError, TypeError: as `preprocess`; no image tower.

    Memory: `workers + 1` prepared batches beside the model.
    """
    if model.config.vision is None:
        raise ValueError("images given to a model without vision tower (config.vision is None)")
    prepare = model.preprocess or Preprocess(model.config.vision.image)

    def ready(start: int) -> np.ndarray:
        pixels = prepare(_read(images[start : start + batch]))
        missing = batch - len(pixels)
        return np.concatenate([pixels, np.repeat(pixels[:1], missing, axis=0)])

    starts, waiting, done = iter(range(0, len(images), batch)), collections.deque(), []
    with ThreadPoolExecutor(workers) as pool:
        for start in starts:
            waiting.append(pool.submit(ready, start))
            if len(waiting) > workers:
                done.append(_step(model, waiting.popleft().result(), options))
        done += [_step(model, future.result(), options) for future in waiting]
    if not done:
        return np.empty((0, model.config.projection_dim or model.config.vision.width), np.float32)
    return np.concatenate(jax.device_get(done))[: len(images)]


def _step(model: Model, pixels: np.ndarray, options: dict) -> jax.Array:
    return image_features(model.config, model.params, pixels, **options)


def _read(part: np.ndarray | Sequence[Any]) -> np.ndarray | list[Any]:
    if isinstance(part, np.ndarray):
        return np.asarray(part)
    return [_open(item) if isinstance(item, (str, os.PathLike)) else item for item in part]


def _open(path: str | os.PathLike):
    from PIL import Image

    with Image.open(Path(path)) as picture:
        return picture.convert("RGB")
