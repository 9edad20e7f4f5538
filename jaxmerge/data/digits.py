"""scikit-learn's handwritten digits: 1,797 real images, shipped with scikit-learn, no download.

The images are 8x8 with 17 grey levels, white ink on black; the model's own preprocessing enlarges
them.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (its test part).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmerge.data.sources import Source
from jaxmerge.data.splits import stratified

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}",
    "a photo of the number {}",
    "a handwritten digit {}",
    "an image of the handwritten digit {}",
    "a scan of the handwritten number {}",
    "a blurry handwritten digit {}",
)
VAL, TEST = 27, 36  # of every class: 270 and 360 images; 1,167 are left for training


def digits() -> Source:
    """The digits as a `Source`: uint8 inputs [1797, 8, 8], splits fixed and stratified.

    >>> source = digits()
    >>> source.inputs.shape, [len(source.splits[s]) for s in ("train", "val", "test")]
    ((1797, 8, 8), [1167, 270, 360])
    """
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    labels = data.target.astype(np.int32)
    return Source(
        name="digits",
        inputs=np.round(data.images * (255 / 16)).astype(np.uint8),
        labels=labels,
        classes=WORDS,
        templates=TEMPLATES,
        splits=stratified(labels, {"val": VAL, "test": TEST}),
    )
