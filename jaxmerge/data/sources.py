"""A `Source` is a labelled data set: inputs by position, class names, prompts, fixed splits.

Everything that learns or evaluates reads a source through this one small interface:
``source.inputs[rows] -> numpy batch`` with rows an integer array.  ``inputs`` may be an array in
memory or anything with ``__len__`` and ``__getitem__`` over integer arrays (decoded when asked).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxmerge.errors import closest

SPLITS = ("train", "val", "test")
ALSO = {"train": ("training",), "val": ("validation", "valid", "dev"), "test": ("testing",)}


def split_name(word: str) -> str:
    """The split that a folder, a column or a user means: "train", "val", "test", or what it says.

    Args:
        word: in any case.

    >>> split_name("Validation"), split_name("dev"), split_name("seven")
    ('val', 'val', 'seven')
    """
    word = word.lower()
    return next((split for split, names in ALSO.items() if word in names), word)


class Inputs(Protocol):
    """Random access: ``inputs[rows]`` with integer rows gives a batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class Texts:
    """Random access to texts: ``texts[rows]`` gives a list of strings."""

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Sequence[int]) -> list[str]:
        return [self.texts[int(r)] for r in rows]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Labelled examples.

    Attributes:
        name: what reports call it.
        inputs: random access, ``inputs[rows]`` gives a numpy batch ``[len(rows), ...]``; a list of
            texts or of arrays is taken too.
        labels: int32 [N], positions in `classes`; a list is taken too, and so are names of classes.
        classes: class names as prompts spell them, each once.
        templates: prompts with one ``{}`` for the class name; a string is one of them.
        splits: "train" / "val" / "test" -> rows, disjoint.
        domains: int32 [N] and their names, for domain-incremental streams; None without domains.

    >>> splits = {"train": [0, 1, 2], "val": [3], "test": [4]}
    >>> labels, classes = [0, 1, 0, 1, 1], ("cat", "dog")
    >>> source = Source("toy", np.zeros((5, 2)), labels, classes, ("a {}.",), splits)
    >>> source.rows("train", classes=[0]).tolist()
    [0, 2]
    """

    name: str
    inputs: Any
    labels: np.ndarray
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    splits: Mapping[str, np.ndarray]
    domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()

    def __post_init__(self):
        for field in ("classes", "templates", "domain_names"):
            object.__setattr__(self, field, as_texts(getattr(self, field)))
        if isinstance(self.inputs, str):
            raise ValueError(f"Source {self.name!r}: inputs are one text; give a list of texts.")
        if isinstance(self.inputs, list | tuple):
            words = all(isinstance(x, str) for x in self.inputs)
            object.__setattr__(
                self, "inputs", Texts(self.inputs) if words else np.asarray(self.inputs)
            )
        object.__setattr__(self, "labels", positions(self.labels, self.classes, self.name))
        splits = {s: np.asarray(rows, np.int64) for s, rows in self.splits.items()}
        object.__setattr__(self, "splits", splits)
        wrong = []
        if len(self.inputs) != len(self.labels):
            wrong.append(f"{len(self.inputs)} inputs for {len(self.labels)} labels")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(
            self.classes
        ):
            wrong.append(
                f"labels from {self.labels.min()} to {self.labels.max()} for "
                f"{len(self.classes)} classes"
            )
        wrong += [
            f"the classes {', '.join(map(str, at))} are all named {name!r}; each needs its own name"
            for name, at in _repeated(self.classes).items()
        ]
        if not self.templates:
            wrong.append("no prompt template; give at least one such as 'a photo of a {}.'")
        wrong += [f"the template {t!r} has no {{}}" for t in self.templates if "{}" not in t]
        missing = [s for s in SPLITS if s not in self.splits]
        if missing:
            wrong.append(f"no split {', '.join(missing)}")
        else:
            rows = np.concatenate([self.splits[s] for s in SPLITS])
            if len(np.unique(rows)) != len(rows):
                wrong.append("train, val and test share rows")
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.labels):
                wrong.append(f"splits point outside the {len(self.labels)} rows")
        if self.domains is not None and len(self.domains) != len(self.labels):
            wrong.append(f"{len(self.domains)} domains for {len(self.labels)} labels")
        if wrong:
            raise ValueError(f"Source {self.name!r}: {'; '.join(wrong)}.")

    def rows(
        self,
        split: str,
        classes: Sequence[int] | np.ndarray | None = None,
        domain: int | None = None,
    ) -> np.ndarray:
        """Rows of a split, of some classes only (positions in `classes`), of one domain only.

        Args:
            split: "train", "val" or "test".
            classes: positions in `classes`; None: all.
            domain: position in `domain_names`; None: all.
        """
        rows = self.splits[split]
        if classes is not None:
            rows = rows[np.isin(self.labels[rows], np.asarray(classes))]
        if domain is not None:
            if self.domains is None:
                raise ValueError(f"Source {self.name!r} has no domains.")
            rows = rows[self.domains[rows] == domain]
        return rows


def as_texts(one_or_several: str | Sequence[str]) -> tuple[str, ...]:
    """Texts in a tuple; a string is one of them, not its letters.

    Args:
        one_or_several: such as prompt templates.

    >>> as_texts("a photo of a {}."), as_texts(["{}", "a {}"])
    (('a photo of a {}.',), ('{}', 'a {}'))
    """
    return (one_or_several,) if isinstance(one_or_several, str) else tuple(one_or_several)


def _repeated(names: Sequence[str]) -> dict[str, list[int]]:
    """Where the names are that stand more than once."""
    at: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        at.setdefault(name, []).append(k)
    return {name: places for name, places in at.items() if len(places) > 1}


def positions(
    labels: np.ndarray | Sequence[int] | Sequence[str], classes: Sequence[str], name: str
) -> np.ndarray:
    """int32 [N] from positions or names of classes, in a list or an array.

    Args:
        labels: [N], numbers or names of classes.
        classes: the names, in order.
        name: of the source, for messages.

    Raises:
        ValueError: names that are none of the classes, numbers that are not whole, several labels
            an example.

    >>> positions(["dog", "cat", "dog"], ("cat", "dog"), "pets")
    array([1, 0, 1], dtype=int32)
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(
            f"Source {name!r}: labels have the shape {array.shape}, expected one label an example."
        )
    if array.dtype.kind in "iu":
        return array.astype(np.int32)
    if array.dtype.kind in "UO" and all(isinstance(c, str) for c in array):
        at = {c: k for k, c in enumerate(classes)}
        unknown = sorted({str(c) for c in array} - set(at))
        if not unknown:
            return np.array([at[c] for c in array], np.int32)
        raise ValueError(
            f"Source {name!r}: the label {unknown[0]!r} is none of the classes: "
            f"{closest(unknown[0], classes)}"
        )
    if array.size and array.dtype.kind == "f" and np.array_equal(array, np.round(array)):
        return array.astype(np.int32)
    if not array.size:
        return array.astype(np.int32)
    raise ValueError(
        f"Source {name!r}: labels are {array.dtype}, such as {array[:1].tolist()[0]!r}; "
        "expected positions in classes, or their names."
    )


def renamed(
    originals: Sequence[str], classes: Mapping[str, str] | Sequence[str] | None, name: str,
    keys: Sequence[str] | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Names of classes in place of what a data set calls them.

    Args:
        originals: the data set's own names, tidied, in the order of the labels.
        classes: own name -> name, where it differs; or all names in that order; or None.
        name: of the data set, for messages.
        keys: what the data set calls them, where `originals` is tidied.

    Raises:
        ValueError: another number of names, or a key that the data set has not.

    >>> renamed(["n01", "n02"], {"n02": "dog"}, "pets")
    ('n01', 'dog')
    """
    if classes is None:
        return tuple(originals)
    keys = [str(key) for key in (originals if keys is None else keys)]
    if isinstance(classes, Mapping):
        given = {str(key): value for key, value in classes.items()}
        unknown = [key for key in given if key not in keys]
        if unknown:
            raise ValueError(
                f"{name}: classes names {unknown[0]!r}, which is none of its classes: "
                f"{closest(unknown[0], keys)}"
            )
        return tuple(given.get(key, own) for key, own in zip(keys, originals, strict=True))
    if isinstance(classes, str) or len(classes) != len(keys):
        count = 1 if isinstance(classes, str) else len(classes)
        shown = ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "")
        raise ValueError(
            f"{name}: {count} name{'s' if count != 1 else ''} for {len(keys)} classes; expected "
            f"one each, in the order {shown}."
        )
    return tuple(map(str, classes))
