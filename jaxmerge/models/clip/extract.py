"""Features of a whole data set, and accuracies of many models on it.

A pool of threads reads, resizes and crops the next batches (PIL lets go of the interpreter while
it decodes and resizes) while the device computes; they go to it as bytes and are normalised there.
The device gets one batch after the other without waiting for results, but never more than two
ahead. All batches have one shape and parameters are an argument of the compiled step, so one
compilation serves any number of pictures and of merged models.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.models.clip.checkpoint import Model
from jaxmerge.models.clip.config import Config
from jaxmerge.models.clip.modeling import image_features
from jaxmerge.models.clip.preprocess import Preprocess
from jaxmerge.models.heads import normalise
from jaxmerge.models.transformer import Compute

if TYPE_CHECKING:
    from PIL.Image import Image

    Images = np.ndarray | Sequence[Image | str | os.PathLike]

AHEAD = 2  # steps that the device may be given before the oldest one has ended


def encode_images(
    model: Model,
    images: Images,
    batch: int = 256,
    workers: int = 2,
    compute: Compute = Compute(),
) -> np.ndarray:
    """Image features, not normalised, float32 `[images, projection_dim]`, in the order given.

    Args:
      model: a model with an image tower.
      images: uint8 `[images, height, width, 3]` or `[images, height, width]` (a memory map is read
        batch by batch), or a sequence of PIL pictures or of paths to picture files.
      batch: pictures a step.
      workers: threads that prepare batches.
      compute: as for `image_features`.

    Raises:
      ValueError, TypeError: as `preprocess`; no image tower.

    Memory: `workers + 1` prepared batches, and two on the device, beside the model.

    >>> from jaxmerge.models.clip.config import Vision
    >>> from jaxmerge.models.clip.modeling import init
    >>> tower = Vision(image=16, patch=8, width=16, layers=1, heads=2, hidden=32)
    >>> config = Config(tower, None, projection_dim=8)
    >>> model = Model(config, init(config, jax.random.key(0)))
    >>> images = np.zeros((3, 20, 16, 3), np.uint8)
    >>> encode_images(model, images, batch=2).shape
    (3, 8)
    """
    prepare, done = _prepare(model), []
    for pixels in _batches(prepare, images, batch, workers):
        done.append(_features(model.config, prepare, compute, model.params, pixels))
        jax.block_until_ready(done[-AHEAD - 1 : -AHEAD])
    if not done:
        return np.empty(
            (0, model.config.projection_dim or model.config.image_tower.width), np.float32
        )
    return np.concatenate(jax.device_get(done))[: len(images)]


def accuracies(
    model: Model,
    merged: Sequence[Mapping[str, jax.Array]],
    images: Images,
    labels: Sequence[int] | np.ndarray,
    head: jax.Array,
    batch: int = 256,
    workers: int = 2,
    compute: Compute = Compute(),
) -> np.ndarray:
    """The share of pictures that each of many models puts into their class.

    Every picture is read and prepared once, for all models; they run through one compiled step, and
    their hits are counted on the device.

    Args:
      model: says the architecture and the preprocessing; its parameters are not read.
      merged: the models, parameters of the image tower by name.
      images, batch, workers, compute: as for `encode_images`.
      labels: one a picture, columns of the head.
      head: `[projection_dim, classes]`, as `zero_shot_head` makes it.

    Returns:
      float64 `[models]`.

    Raises:
      ValueError: another number of labels than of images, labels outside of the head; as
        `encode_images`.

    >>> from jaxmerge.models.clip.config import Vision
    >>> from jaxmerge.models.clip.modeling import init
    >>> tower = Vision(image=16, patch=8, width=16, layers=1, heads=2, hidden=32)
    >>> config = Config(tower, None, projection_dim=8)
    >>> model = Model(config, init(config, jax.random.key(0)))
    >>> images = np.zeros((3, 20, 16, 3), np.uint8)
    >>> head = np.eye(8, 2, dtype=np.float32)
    >>> accuracies(model, [model.params], images, [0, 0, 0], head, batch=2).shape
    (1,)
    """
    labels = np.asarray(labels)
    classes = head.shape[1]
    if len(labels) != len(images):
        raise ValueError(f"labels: found {len(labels)} for {len(images)} images")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels: found {labels.min()} to {labels.max()}, expected 0 to {classes - 1}, the"
            " columns of the head"
        )
    prepare, steps = _prepare(model), collections.deque()
    padded = np.concatenate([labels, np.full(-len(labels) % batch, -1)]).astype(np.int32)
    hits = [jnp.int32(0)] * len(merged)
    for index, pixels in enumerate(_batches(prepare, images, batch, workers)):
        pixels, truth = jax.device_put((pixels, padded[index * batch : (index + 1) * batch]))
        hits = [
            _hits(model.config, prepare, compute, params, pixels, truth, head, before)
            for params, before in zip(merged, hits, strict=True)
        ]
        steps.append(hits)
        if len(steps) > AHEAD:
            jax.block_until_ready(steps.popleft())
    return np.asarray(jax.device_get(hits), float) / max(len(labels), 1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(config: Config, prepare: Preprocess, compute: Compute, params, pixels) -> jax.Array:
    return image_features(config, params, prepare.normalise(pixels), compute=compute)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _hits(config, prepare, compute, params, pixels, labels, head, before) -> jax.Array:
    features = normalise(_features(config, prepare, compute, params, pixels))
    return before + jnp.sum(jnp.argmax(features @ head, axis=1) == labels, dtype=jnp.int32)


def _prepare(model: Model) -> Preprocess:
    if model.config.vision is None:
        raise ValueError("images given to a model without vision tower (config.vision is None)")
    return model.preprocess or Preprocess(model.config.vision.image)


def _batches(prepare: Preprocess, images, batch: int, workers: int) -> Iterator[np.ndarray]:
    """Cropped batches of one size, the last one filled up with its first picture."""
    if isinstance(images, (str, os.PathLike)):
        raise ValueError(f"images: found one path, {os.fspath(images)!r}; give a list of them")

    def ready(start: int) -> np.ndarray:
        pixels, _ = prepare.crop(_read(images[start : start + batch]))
        return np.concatenate([pixels, np.repeat(pixels[:1], batch - len(pixels), axis=0)])

    waiting: collections.deque = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(images), batch):
            waiting.append(pool.submit(ready, start))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(part: np.ndarray | Sequence[Any]) -> np.ndarray | list[Any]:
    if isinstance(part, np.ndarray):
        return np.asarray(part)
    return [_open(item) if isinstance(item, (str, os.PathLike)) else item for item in part]


def _open(path: str | os.PathLike):
    from PIL import Image

    with Image.open(Path(path)) as picture:
        return picture.convert("RGB")
