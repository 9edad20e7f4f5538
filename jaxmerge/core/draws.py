"""What is drawn on the host: numpy's generator of a seed."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from jaxmerge.core.ranges import Range, unfit
from jaxmerge.errors import listed

FROM_0 = Annotated[int, Range("a whole number from 0 on", lambda v: v >= 0, whole=True)]


def draws(seed: int, *apart: int) -> np.random.Generator:
    """The generator of a seed.

    Args:
        seed: of all that is drawn.
        apart: tells draws apart that have one seed.

    Raises:
        ValueError: the seed is no whole number from 0 on.

    >>> draws(0).permutation(3).tolist() == np.random.default_rng(0).permutation(3).tolist()
    True
    >>> draws(-1)
    Traceback (most recent call last):
        ...
    ValueError: seed must be a whole number from 0 on, got -1.
    """
    if wrong := unfit(FROM_0, seed=seed):
        raise ValueError(listed(wrong))
    return np.random.default_rng((seed, *apart) if apart else seed)
