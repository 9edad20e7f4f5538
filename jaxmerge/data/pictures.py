"""Encoded pictures by position: decoded when asked for, never all in memory.

`Pictures` is the base of every source of compressed images (files in folders, JPEGs in one NumPy
file, records of tensorflow-datasets).  A picture that cannot be decoded stops whoever reads it,
by name; `corrupt` looks at all of them ahead of a run, and `skip_corrupt` leaves them out.
"""

from __future__ import annotations

import abc
import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from jaxmerge.data.sources import Source
from jaxmerge.data.splits import without
from jaxmerge.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

THREADS, STRIDE = 8, 64  # PIL decodes outside Python's lock
BROKEN = (SyntaxError, ValueError, struct.error, zlib.error)  # what PIL raises beside OSError
MOST_PIXELS = 64_000_000  # of one picture; decoded it takes 192 MB, on eight threads at once
CORRUPT = ("stop", "skip")  # at an image that cannot be decoded
SHOWN = 10  # names in a message


class CorruptImage(UserError):
    """Images that cannot be decoded, by name and number."""


class Pictures(abc.ABC):
    """Random access to pictures: ``pictures[rows]`` gives a list of PIL pictures.

    A subclass defines `__len__`, `encoded(row)`, which gives a file name or an open file, and may
    define `label(row)`, what a message calls the picture.

    >>> import io
    >>> from PIL import Image
    >>> class Grey(Pictures):
    ...     def __len__(self):
    ...         return 2
    ...
    ...     def encoded(self, row):
    ...         file = io.BytesIO()
    ...         Image.new("L", (4, 4), 100 * row).save(file, "png")
    ...         return file
    >>> pictures = Grey()
    >>> pictures[[1]][0].getpixel((0, 0)), pictures.corrupt(), pictures.describe({1: "empty"})
    (100, {}, '1 corrupt image: image 1 (empty)')
    """

    name = "pictures"

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def encoded(self, row: int) -> str | Path | BinaryIO:
        """A file name, or a binary file, that holds the picture.

        Args:
            row: its position.
        """

    def label(self, row: int) -> str:
        """What messages call the picture.

        Args:
            row: its position.
        """
        return f"image {row}"

    def picture(self, row: int) -> Image:
        """One picture, decoded.

        Args:
            row: its position.

        Raises:
            OSError: it cannot be decoded.
        """
        from PIL import Image

        try:
            with Image.open(self.encoded(row)) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise OSError(
                        f"{picture.width} x {picture.height} pixels, more than {MOST_PIXELS:,}"
                    )
                picture.load()
        except (
            SyntaxError,
            ValueError,
            struct.error,
            zlib.error,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as e:
            raise OSError(str(e) or type(e).__name__) from None
        return picture

    def __getitem__(self, rows: Sequence[int]) -> list[Any]:
        """Pictures of some rows.

        Raises:
            CorruptImage: names every one of `rows` that cannot be decoded.
        """
        pictures, wrong = [], {}
        for row in map(int, rows):
            try:
                pictures.append(self.picture(row))
            except OSError as error:
                wrong[row] = reason(error)
        if wrong:
            raise CorruptImage(
                f"{self.name}: {self.describe(wrong)}; mend or delete what is corrupt, or leave it "
                "out with corrupt=skip, which `folder` and experiments on images take."
            )
        return pictures

    def describe(self, wrong: dict[int, str]) -> str:
        """Count and names: "2 corrupt images: a.jpg (truncated), b.jpg (empty)".

        Args:
            wrong: position -> why the picture cannot be decoded.
        """
        names = [f"{self.label(row)} ({why})" for row, why in wrong.items()]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        count = f"{len(names)} corrupt image{'s' * (len(names) > 1)}"
        return f"{count}: {', '.join(names[:SHOWN])}{more}"

    def corrupt(self) -> dict[int, str]:
        """Decodes every picture once: row -> why it cannot be decoded."""

        def look(first: int) -> dict[int, str]:
            wrong = {}
            for row in range(first, min(first + STRIDE, len(self))):
                try:
                    self.picture(row)
                except OSError as error:
                    wrong[row] = reason(error)
            return wrong

        with ThreadPoolExecutor(THREADS) as pool:
            parts = pool.map(look, range(0, len(self), STRIDE))
            return {row: why for part in parts for row, why in part.items()}


def reason(error: OSError) -> str:
    """Why, in a few words, without file names and object addresses."""
    text = error.strerror or str(error)
    return "not an image" if text.startswith("cannot identify") else text


def check_corrupt(corrupt: str) -> None:
    """Raise UserError for what is neither "stop" nor "skip".

    >>> check_corrupt("skip")
    """
    if corrupt not in CORRUPT:
        raise UserError(f"corrupt is one of {', '.join(CORRUPT)}, got {corrupt!r}.")


def skip_corrupt(source: Source) -> Source:
    """The source without its corrupt images, which a warning names and counts.

    Every image is decoded once.  Sources that hold no pictures come back as they are.

    Args:
        source: of pictures, or of anything else.

    >>> from jaxmerge.data.digits import digits
    >>> source = digits()
    >>> skip_corrupt(source) is source  # arrays, nothing to decode
    True
    """
    if not isinstance(source.inputs, Pictures):
        return source
    wrong = source.inputs.corrupt()
    if not wrong:
        return source
    warnings.warn(f"{source.name}: left out {source.inputs.describe(wrong)}.", stacklevel=2)
    return without(source, np.array(list(wrong)))
