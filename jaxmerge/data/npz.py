"""Image sources from two NumPy files, ``<name>_train.npz`` and ``<name>_test.npz``.

Each file holds ``labels`` [N], ``class_names``, and the images either as ``images`` uint8
[N, H, W] or [N, H, W, 3], or as JPEG files: ``jpeg`` (the bytes of all files, one after another)
with ``offsets`` [N+1].  ``domains`` [N] with ``domain_names`` make a source for domain-incremental
streams.  JPEGs stay compressed in memory and are decoded when asked for.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.data.pictures import Pictures
from jaxmerge.data.sources import Source, as_texts, renamed
from jaxmerge.data.splits import hold_out
from jaxmerge.errors import UserError
from jaxmerge.io.npz import arrays

PARTS = {"images", "jpeg", "offsets", "domains"}
TEMPLATES = ("a photo of a {}.", "an image of a {}.", "a picture of a {}.")


class Jpegs(Pictures):
    """JPEG files in memory, one after another in a few arrays of bytes."""

    def __init__(self, parts: Sequence[tuple[np.ndarray, np.ndarray]], name: str):
        self.parts, self.name = list(parts), name
        self.starts = np.cumsum([0, *(len(offsets) - 1 for _, offsets in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def encoded(self, row: int) -> io.BytesIO:
        which = int(np.searchsorted(self.starts, row, side="right")) - 1
        data, offsets = self.parts[which]
        at = row - self.starts[which]
        return io.BytesIO(data[offsets[at] : offsets[at + 1]].tobytes())


def _check(path: Path, file: Mapping[str, np.ndarray]) -> None:
    """Raise UserError unless the arrays are those of a data set and fit each other."""
    lacking = [k for k in ("labels", "class_names") if k not in file]
    if "images" not in file and not {"jpeg", "offsets"} <= set(file):
        lacking.append("images, or jpeg and offsets")
    if lacking:
        raise UserError(f"{path} lacks {'; '.join(lacking)}; it holds {sorted(file)}.")
    wrong, labels, count = [], file["labels"], file["labels"].size
    if not count:
        raise UserError(f"{path} holds no examples.")
    names = file["class_names"]
    if names.ndim != 1 or names.dtype.kind not in "US" or not names.size:
        wrong.append(f"class_names is {names.dtype}{list(names.shape)}, expected texts [K]")
    for key, kinds in (("labels", "class_names"), ("domains", "domain_names")):
        if key in file:
            x, many = file[key], file[kinds].size if kinds in file else 0
            if x.ndim != 1 or x.dtype.kind not in "iu" or x.size != count:
                wrong.append(f"{key} is {x.dtype}{list(x.shape)}, expected integers [{count}]")
            elif not 0 <= int(x.min()) <= int(x.max()) < many:
                wrong.append(f"{key} run to {x.max()}, there are {many} {kinds}")
    if "images" in file:
        x = file["images"]
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or x.shape[3:] not in ((), (3,)):
            wrong.append(
                f"images is {x.dtype}{list(x.shape)}, expected uint8 [N, H, W] or [..., 3]"
            )
        elif len(x) != labels.size:
            wrong.append(f"there are {len(x)} images and {labels.size} labels")
    else:
        jpeg, at = file["jpeg"], file["offsets"]
        if jpeg.ndim != 1 or jpeg.dtype != np.uint8:
            wrong.append(f"jpeg is {jpeg.dtype}{list(jpeg.shape)}, expected bytes, uint8 [B]")
        if at.ndim != 1 or at.dtype.kind not in "iu" or at.size != count + 1:
            wrong.append(f"offsets is {at.dtype}{list(at.shape)}, expected integers [{count + 1}]")
        elif int(at[0]) < 0 or int(at[-1]) > jpeg.size or (np.diff(at.astype(np.int64)) < 0).any():
            wrong.append(f"offsets do not rise from 0 to the {jpeg.size} bytes of jpeg")
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}.")


def npz(
    folder: str | Path,
    name: str,
    *,
    templates: str | Sequence[str] = TEMPLATES,
    classes: Mapping[str, str] | Sequence[str] | None = None,
    val: float = 0.1,
    per_class: int | None = None,
    seed: int = 0,
) -> Source:
    """Read ``<folder>/<name>_train.npz`` and ``<name>_test.npz``.

    Args:
        folder: of the two files.
        name: of the data set, with which their names begin.
        templates: prompts for the zero-shot head.
        classes: names for prompts in place of the file's: own name -> name, or all in order.
        val: share of the training examples of every class held out for validation (at least one).
        per_class: keep at most so many training and as many test examples of every class.
        seed: of the choice of validation examples and of `per_class`.

    Raises:
        FileNotFoundError: a file is missing; names both.
        UserError: files that do not hold what they should, or unpack to more than `MOST_UNPACKED`.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> images, labels = np.zeros((8, 4, 4), np.uint8), np.arange(8) % 2
    >>> for split in ("train", "test"):
    ...     np.savez(
    ...         f"{folder}/x_{split}.npz", images=images, labels=labels, class_names=["a", "b"]
    ...     )
    >>> {s: len(rows) for s, rows in npz(folder, "x", val=0.25).splits.items()}
    {'train': 6, 'val': 2, 'test': 8}
    """
    paths = [Path(folder) / f"{name}_{split}.npz" for split in ("train", "test")]
    missing = [str(p) for p in paths if not p.exists()]
    if missing:
        raise FileNotFoundError(f"{name}: no {' and no '.join(missing)}.")
    files = [arrays(p) for p in paths]
    for path, file in zip(paths, files, strict=True):
        _check(path, file)
    if set(files[0]) & PARTS != set(files[1]) & PARTS:
        raise UserError(f"{name}: {paths[0]} and {paths[1]} hold different kinds of arrays.")
    if files[0]["class_names"].tolist() != files[1]["class_names"].tolist():
        raise UserError(f"{paths[1]} names other classes than {paths[0].name}.")
    if "images" in files[0]:
        kinds = [f["images"].shape[1:] for f in files]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"{paths[1]} holds images {list(kinds[1])}, {paths[0]} {list(kinds[0])}."
            )
        inputs: Any = np.concatenate([f["images"] for f in files])
    else:
        inputs = Jpegs([(f["jpeg"], f["offsets"]) for f in files], name)
    labels = np.concatenate([f["labels"] for f in files]).astype(np.int32)
    count = len(files[0]["labels"])
    domains = None
    if "domains" in files[0]:
        domains = np.concatenate([f["domains"] for f in files]).astype(np.int32)
    names = tuple(str(c) for c in files[0]["class_names"])
    groups = labels if domains is None else labels + len(names) * domains
    splits = hold_out(np.arange(count), groups, val, per_class, seed)
    test = hold_out(np.arange(count, len(labels)), groups, 0.0, per_class, seed)["train"]
    return Source(
        name=name,
        inputs=inputs,
        labels=labels,
        classes=renamed(names, classes, name),
        templates=as_texts(templates),
        splits={**splits, "test": test},
        domains=domains,
        domain_names=tuple(str(d) for d in files[0].get("domain_names", ())),
    )
