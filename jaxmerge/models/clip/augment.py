"""The training augmentation of CLIP's recipe: a random crop, resized to the model's size.

A crop takes between 90 and 100 % of the area (a share drawn evenly) at an aspect ratio between
3/4 and 4/3 (its logarithm drawn evenly) from a place drawn evenly; shapes that do not fit are
drawn again, and after ten draws the largest centred crop of an allowed ratio is taken.

Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4 ("a random square crop from resized
images is the only data augmentation"); the share as in OpenCLIP's fine-tuning recipes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def random_resized_crop(
    images: np.ndarray | Sequence[Picture],
    side: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Random crops of pictures, resized (bicubic) to squares.

    Args:
      images: uint8 `[batch, height, width, 3]`, or a sequence of PIL pictures.
      side: of the squares, in pixels.
      rng: draws four numbers or more a picture, pictures in order.
      scale: least and largest share of the area.
      ratio: least and largest width / height.

    Returns:
      uint8 `[batch, side, side, 3]`; `Preprocess` at the same side normalises it.

    >>> draw = np.random.default_rng(0)
    >>> random_resized_crop(np.zeros((2, 40, 30, 3), np.uint8), 8, draw).shape
    (2, 8, 8, 3)
    """
    from PIL import Image

    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"images: found {images.dtype} {images.shape}, expected uint8 (batch, height,"
                " width, 3)"
            )
        images = [Image.fromarray(image) for image in images]
    elif not isinstance(images, Sequence):
        raise TypeError(f"images: found {type(images).__name__}, expected an array or a sequence")
    out = np.empty((len(images), side, side, 3), np.uint8)
    for square, picture in zip(out, images, strict=True):
        left, top, width, height = crop_box(picture.width, picture.height, rng, scale, ratio)
        crop = picture.convert("RGB").crop((left, top, left + width, top + height))
        square[:] = np.asarray(crop.resize((side, side), Image.Resampling.BICUBIC))
    return out


def crop_box(
    width: int, height: int, rng: np.random.Generator, scale, ratio
) -> tuple[int, int, int, int]:
    """A random crop of a picture: left, top, width, height."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left = int(rng.integers(0, width - wide + 1))
            top = int(rng.integers(0, height - tall + 1))
            return left, top, wide, tall
    wide = min(width, round(height * ratio[1]))
    tall = min(height, round(width / ratio[0]))
    return (width - wide) // 2, (height - tall) // 2, wide, tall
