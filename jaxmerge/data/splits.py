"""Splits of a source: held-out examples, fewer examples, what is missing, what is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Real

import numpy as np

from jaxmerge.core.draws import draws
from jaxmerge.data.sources import SPLITS, Source
from jaxmerge.errors import closest, listed


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise ValueError for shares of the training examples that cannot be held out together.

    Args:
        shares: split -> share, each from 0 to below 1, with a sum below 1.

    >>> check_shares({"val": 0.9, "test": 0.2})
    Traceback (most recent call last):
    ValueError: val and test are shares ... with a sum below 1; got val=0.9, test=0.2.
    """
    wrong = {
        split: share
        for split, share in shares.items()
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share < 1
    }
    if wrong or sum(shares.values()) >= 1:
        shown = ", ".join(f"{split}={share!r}" for split, share in (wrong or shares).items())
        are = "are shares" if len(shares) > 1 else "is a share"
        total = ", with a sum below 1" if len(shares) > 1 else ""
        raise ValueError(
            f"{' and '.join(shares)} {are} of the training examples, from 0 to below 1{total}; "
            f"got {shown}."
        )


def stratified(labels: np.ndarray, per_class: Mapping[str, float | int], seed: int = 0) -> dict:
    """Splits with the same share of every class; what is left over is "train".

    Args:
        labels: int [N].
        per_class: "val" / "test" -> examples of every class, as a count (int) or a share (float,
            rounded to the nearest count).
        seed: decides which examples; the same seed gives the same splits on every machine.

    Raises:
        ValueError: a class that has nothing left for training, all such classes named.

    >>> splits = stratified(np.array([0, 0, 0, 0, 1, 1, 1, 1]), {"val": 1, "test": 0.25})
    >>> {k: len(v) for k, v in splits.items()}
    {'val': 2, 'test': 2, 'train': 4}
    """
    labels, rng = np.asarray(labels), draws(seed)
    splits: dict[str, list] = {**{s: [] for s in per_class}, "train": []}
    starved = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        at = 0
        for split, amount in per_class.items():
            count = amount if isinstance(amount, int) else round(amount * len(rows))
            splits[split].append(rows[at : at + count])
            at += count
        if at >= len(rows):
            starved.append(f"class {label} has {len(rows)} examples")
        splits["train"].append(rows[at:])
    if starved:
        raise ValueError(
            f"Nothing is left for training after {dict(per_class)}: {'; '.join(starved)}."
        )
    return {s: np.sort(np.concatenate(parts)).astype(np.int64) for s, parts in splits.items()}


def hold_out(
    rows: np.ndarray, groups: np.ndarray, val: float, per_class: int | None, seed: int
) -> dict[str, np.ndarray]:
    """Split rows into "train" and "val", the same share of every group (class, or class and
    domain), after keeping at most `per_class` rows of every group.  Every group keeps one row.

    Args:
        rows: int, positions of examples.
        groups: int [N], the group of every example, not only of these.
        val: share of every group, in [0, 1); 0 for none.
        per_class: the most rows of a group, or None.
        seed: decides which.

    >>> splits = hold_out(np.arange(8), np.zeros(8, int), 0.25, None, 0)
    >>> len(splits["train"]), len(splits["val"])
    (6, 2)
    """
    check_shares({"val": val})
    rng = draws(seed)
    if per_class is not None:
        chosen = [rng.permutation(rows[groups[rows] == g])[:per_class] for g in np.unique(groups)]
        rows = np.sort(np.concatenate(chosen))
    if not val:
        return {"train": rows, "val": rows[:0]}
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for g in np.unique(groups[rows]):
        mine = rows[groups[rows] == g]
        share = min(max(1, round(val * len(mine))), len(mine) - 1)
        split_rows = stratified(np.zeros(len(mine), int), {"val": share}, seed=seed)
        for split in parts:
            parts[split].append(mine[split_rows[split]])
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


def few(source: Source, counts: Mapping[str, int], seed: int = 0) -> Source:
    """The source with at most so many examples of every class (and domain) in each split.

    Args:
        source: of any kind.
        counts: split -> examples of a class; splits that are not named stay whole.
        seed: decides which; for small budgets, said in the report.

    Raises:
        ValueError: an unknown split, or a count that is not a whole number from 1 on.

    >>> rows, labels = np.arange(9), np.repeat([0, 1, 2], 3)
    >>> splits = {"train": rows[:6], "val": rows[6:7], "test": rows[7:]}
    >>> source = Source("x", rows, labels, ("a", "b", "c"), ("{}",), splits)
    >>> few(source, {"train": 1}).splits["train"].shape
    (2,)
    """
    wrong = [f"no split {s!r}: {closest(str(s), SPLITS)}" for s in counts if s not in SPLITS]
    wrong += [
        f"{s} must be at least 1, and whole, got {count!r}"
        for s, count in counts.items()
        if type(count) is not int or count < 1
    ]
    if wrong:
        raise ValueError(f"{source.name}, few examples of each class: {listed(wrong)}")
    rng = draws(seed)
    groups = source.labels if source.domains is None else _both(source)
    splits = dict(source.splits)
    for split, count in counts.items():
        rows = rng.permutation(splits[split])
        of = groups[rows]
        chosen = [rows[of == g][:count] for g in np.unique(of)]
        splits[split] = np.sort(np.concatenate(chosen))
    return dataclasses.replace(source, splits=splits)


def complete(
    splits: Mapping[str, np.ndarray],
    groups: np.ndarray,
    *,
    val: float = 0.1,
    test: float = 0.2,
    per_class: int | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Train, val and test from what a data set publishes; what is missing is held out of "train".

    Args:
        splits: rows of "train", and of "val" and "test" where they are published.
        groups: int [N], classes (or class and domain); every group gives the same share.
        val, test: shares of "train", where the split is missing, with a sum below 1.
        per_class: keep at most so many rows of every group in every split.
        seed: decides which.

    Raises:
        ValueError: shares that cannot be held out together.

    >>> splits = complete({"train": np.arange(20)}, np.zeros(20, int))
    >>> [len(splits[s]) for s in ("train", "val", "test")]
    [14, 2, 4]
    """
    shares = {"val": val, "test": test}
    check_shares({s: share for s, share in shares.items() if s not in splits})
    complete_splits = {s: np.asarray(rows, np.int64) for s, rows in splits.items()}
    for split, share in (
        ("test", test),
        ("val", val / (1 - test) if "test" not in splits else val),
    ):
        if split not in complete_splits:
            parts = hold_out(complete_splits["train"], groups, share, None, seed)
            complete_splits["train"], complete_splits[split] = parts["train"], parts["val"]
    return {s: hold_out(complete_splits[s], groups, 0.0, per_class, seed)["train"] for s in SPLITS}


def on_validation(source: Source, share: float = 0.25, seed: int = 0) -> Source:
    """The source with its validation examples in place of the test examples, to choose settings
    by: a share of every class stays for choosing factors, the rest is scored.

    Args:
        source: with validation examples.
        share: of the validation examples of every class (and domain) that stays, in (0, 1).
        seed: decides which.

    >>> labels, rows = np.zeros(9, int), np.arange(9)
    >>> splits = {"train": rows[:3], "val": rows[3:7], "test": rows[7:]}
    >>> chosen = on_validation(Source("x", rows, labels, ("a",), ("{}",), splits)).splits
    >>> {split: len(rows) for split, rows in chosen.items()}
    {'train': 3, 'val': 1, 'test': 3}
    """
    val = source.splits["val"]
    groups = source.labels if source.domains is None else _both(source)
    parts = hold_out(val, np.asarray(groups), share, None, seed)
    splits = {**source.splits, "val": parts["val"], "test": parts["train"]}
    return dataclasses.replace(source, splits=splits)


def _both(source: Source) -> np.ndarray:
    """A number for each class and domain."""
    return source.labels + len(source.classes) * np.asarray(source.domains, np.int64)


def without(source: Source, rows: np.ndarray) -> Source:
    """The source with some rows taken out of its splits.

    Args:
        source: of any kind.
        rows: int, positions of examples.

    >>> rows, labels = np.arange(9), np.repeat([0, 1, 2], 3)
    >>> splits = {"train": rows[:6], "val": rows[6:7], "test": rows[7:]}
    >>> source = Source("x", rows, labels, ("a", "b", "c"), ("{}",), splits)
    >>> without(source, rows[:2]).splits["train"].tolist()
    [2, 3, 4, 5]
    """
    splits = {s: own[~np.isin(own, rows)] for s, own in source.splits.items()}
    return dataclasses.replace(source, splits=splits)
