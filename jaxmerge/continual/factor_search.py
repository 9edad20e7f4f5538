"""The factor of a merge, searched on validation examples: a list, and what lies past its ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def search(
    factors: Sequence[float],
    accuracies: Callable[[list[float]], Sequence[float]],
    beyond: int = 0,
) -> tuple[list[float], list[float]]:
    """Try every factor of a list; while one at an end is better than all others, one more past it.

    Args:
        factors: two or more; positive, where any may be tried beyond them.
        accuracies: factors -> accuracy of each, higher is better.
        beyond: how many more may be tried.  Each is the end times the ratio of the end to its
            neighbour among the given ones, to three digits.

    Returns:
        All factors that were tried, ascending, and their accuracies.

    >>> search([0.5, 1.0], lambda some: [-abs(f - 5) for f in some], beyond=4)
    ([0.5, 1.0, 2.0, 4.0, 8.0], [-4.5, -4.0, -3.0, -1.0, -3.0])
    >>> search([0.5, 1.0], lambda some: [-f for f in some], beyond=1)[0]
    [0.25, 0.5, 1.0]
    >>> search([0.5, 1.0], lambda some: [0.3 for f in some], beyond=1)[0]  # nothing is better
    [0.5, 1.0]
    """
    factors = sorted(factors)
    tried, found = list(factors), list(accuracies(list(factors)))
    for _ in range(beyond):
        best = found.index(max(found))
        if 0 < best < len(tried) - 1 or found.count(found[best]) > 1:
            break
        low = best == 0
        end, neighbour = (factors[0], factors[1]) if low else (factors[-1], factors[-2])
        new = float(f"{tried[best] * end / neighbour:.3g}")
        at = 0 if low else len(tried)
        tried.insert(at, new)
        found.insert(at, *accuracies([new]))
    return tried, found


def best(factors: Sequence[float], found: Sequence[float]) -> float:
    """The factor of highest accuracy; of equals the smallest, nearest to the pretrained model.

    Args:
        factors: that were tried, ascending.
        found: the accuracy of each.

    >>> best([0.1, 0.2, 0.4], [0.5, 0.75, 0.75])
    0.2
    """
    return factors[list(found).index(max(found))]
