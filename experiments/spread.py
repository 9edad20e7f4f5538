"""What stands behind ± in tables of several seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def deviation(figures: Sequence[float] | np.ndarray) -> float:
    """Sample standard deviation (n - 1), as in the reports of runs; 0 of one figure.

    >>> deviation([1.0, 3.0]) == 2**0.5, deviation([1.0])
    (True, 0.0)
    """
    return float(np.std(figures, ddof=min(1, len(figures) - 1)))


def percent(figures: Sequence[float] | np.ndarray) -> str:
    """Mean and deviation of shares, in percent.

    >>> percent([0.5, 0.52])
    '51.0 ± 1.4'
    """
    return f"{100 * np.mean(figures):.1f} ± {100 * deviation(figures):.1f}"
