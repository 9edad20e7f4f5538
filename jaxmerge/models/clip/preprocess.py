"""Pictures to the normalised floats that CLIP's image tower reads.

Resize the shorter side (bicubic, with PIL itself), cut out the centre, divide by 255, subtract
the mean and divide by the standard deviation of each channel. Everything happens on the host;
`crop` and `normalise` are the two halves, for those who normalise on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from jaxmerge.models.clip.config import Config
from jaxmerge.models.folders import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

    Pictures = Image | Sequence[Image] | np.ndarray

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """`preprocess(images)` -> float32 `[batch, side, side, 3]` (one picture: `[side, side, 3]`).

    Attributes:
      side: of the square that comes out, in pixels.
      mean, std: of each channel, of pixels between 0 and 1.

    >>> pixels, single = Preprocess(8).crop(np.zeros((16, 12, 3), np.uint8))
    >>> pixels.shape, single, Preprocess(8).normalise(pixels).shape
    ((1, 8, 8, 3), True, (1, 8, 8, 3))
    >>> [x.shape for x in Preprocess(8).affine], Preprocess(8).to_hf()["crop_size"]
    ([(3,), (3,)], {'height': 8, 'width': 8})
    """

    side: int = 224
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, images: Any) -> np.ndarray:
        """Prepares PIL pictures or uint8 arrays.

        Args:
          images: a PIL picture, a sequence of them, or uint8 `[height, width, 3]`,
            `[batch, height, width, 3 or 1]` or `[batch, height, width]` (grey).

        Raises:
          TypeError: arrays that are not uint8; neither arrays nor pictures.
          ValueError: arrays of another shape.
        """
        pixels, single = self.crop(images)
        scale, shift = self.affine
        # In place and on whole pixel rows: long inner loops, three times as fast.
        rows = pixels.reshape(-1, pixels.shape[2] * 3).astype(np.float32)
        rows *= np.tile(scale, pixels.shape[2])
        rows -= np.tile(shift, pixels.shape[2])
        ready = rows.reshape(pixels.shape)
        return ready[0] if single else ready

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of each channel: `pixels * scale - shift` are the floats."""
        std = np.asarray(self.std, np.float32)
        return np.float32(1 / 255) / std, np.asarray(self.mean, np.float32) / std

    def normalise(self, pixels: jax.Array) -> jax.Array:
        """Cropped uint8 pixels to floats, on the device: a quarter of the bytes go there.

        Args:
          pixels: uint8 `[..., side, side, 3]`.
        """
        scale, shift = self.affine
        return pixels.astype(np.float32) * scale - shift

    def crop(self, images: Pictures) -> tuple[np.ndarray, bool]:
        """Resized and cropped uint8 `[batch, side, side, 3]`, and whether it was one picture.

        Args:
          images: as `__call__` takes them.
        """
        if not isinstance(images, np.ndarray):
            single, given = not isinstance(images, Sequence), cast(Any, images)
            pictures = [given] if single else given
            odd = [type(p).__name__ for p in pictures if not hasattr(p, "convert")]
            if odd or isinstance(images, str):
                raise TypeError(
                    f"images: found {'str' if isinstance(images, str) else odd[0]}, expected PIL"
                    " pictures or a uint8 array; clip.encode_images reads files"
                )
            if not pictures:
                return np.empty((0, self.side, self.side, 3), np.uint8), False
            return np.stack([self._crop_picture(picture) for picture in pictures]), single
        if images.dtype != np.uint8:
            raise TypeError(f"images: found dtype {images.dtype}, expected uint8")
        single = images.ndim == 3 and images.shape[-1] == 3
        batch = images[None] if single else images
        if batch.ndim == 3:
            batch = batch[..., None]
        if batch.ndim != 4 or batch.shape[-1] not in (1, 3):
            raise ValueError(
                f"images: found shape {images.shape}, expected (height, width, 3),"
                " (batch, height, width, 3 or 1) or (batch, height, width)"
            )
        if batch.shape[-1] == 1:
            batch = np.repeat(batch, 3, axis=-1)
        if batch.shape[1:3] == (self.side, self.side):
            return batch, single
        from PIL import Image

        return np.stack([self._crop_picture(Image.fromarray(x)) for x in batch]), single

    def _crop_picture(self, picture) -> np.ndarray:
        from PIL import Image

        picture = picture.convert("RGB")
        width, height = picture.size
        short = min(width, height)
        if short != self.side:
            width, height = (int(self.side * length / short) for length in (width, height))
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        return np.asarray(picture.crop((left, top, left + self.side, top + self.side)))

    def to_hf(self) -> dict:
        """The `preprocessor_config.json` with which transformers does the same."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": self.side, "width": self.side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }


def preprocess(images: Pictures, config: Config) -> np.ndarray:
    """CLIP's own preprocessing at the size of `config`; see `Preprocess`.

    Args:
      images: see `Preprocess`.
      config: of a model with an image tower.

    >>> from jaxmerge.models.clip.config import Vision
    >>> config = Config(Vision(image=8, patch=4), text=None)
    >>> preprocess(np.zeros((2, 16, 12, 3), np.uint8), config).shape
    (2, 8, 8, 3)
    """
    if config.vision is None:
        raise ValueError("images given to a model without vision tower (config.vision is None)")
    return Preprocess(config.vision.image)(images)


def load_preprocess(folder: str | Path | None, config: Config) -> Preprocess | None:
    """What `preprocessor_config.json` of a folder says; CLIP's own when there is none.

    Raises:
      ValueError: a file that asks for what this preprocessing does not do, or contradicts the
        config's image size.
    """
    if config.vision is None:
        return None
    file = Path(folder or "") / "preprocessor_config.json"
    given = {} if folder is None else read_json(file)
    if not given:
        return Preprocess(config.vision.image)
    crop, size = given.get("crop_size", 224), given.get("size", 224)
    side = crop["height"] if isinstance(crop, dict) else crop
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    wrong = [
        f"{key}={given[key]!r}"
        for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
        if not given.get(key, True)
    ]
    if given.get("resample", 3) != 3:
        wrong.append(f"resample={given['resample']!r} (expected 3, bicubic)")
    if shortest != side:
        wrong.append(f"size={size!r} beside crop_size={crop!r} (expected the same length)")
    if side != config.vision.image:
        wrong.append(f"crop_size={crop!r} (expected {config.vision.image}, as config.json says)")
    if wrong:
        raise ValueError(f"{file}: found {'; '.join(wrong)}, which CLIP's preprocessing is not")
    return Preprocess(
        side, tuple(given.get("image_mean", MEAN)), tuple(given.get("image_std", STD))
    )
