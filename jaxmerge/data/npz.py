"""Image sources from two NumPy files, ``<name>_train.npz`` and ``<name>_test.npz``.

Each file holds ``labels`` [N], ``class_names``, and the images either as ``images`` uint8
[N, H, W] or [N, H, W, 3], or as JPEG files: ``jpeg`` (the bytes of all files, one after another)
with ``offsets`` [N+1].  ``domains`` [N] with ``domain_names`` make a source for domain-incremental
streams.  JPEGs stay compressed in memory and are decoded when asked for.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.data.pictures import Pictures
from jaxmerge.data.sources import Source, hold_out

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


def npz(
    folder: str | Path,
    name: str,
    *,
    templates: Sequence[str] = TEMPLATES,
    classes: Sequence[str] | None = None,
    val: float = 0.1,
    per_class: int | None = None,
    seed: int = 0,
) -> Source:
    """Read ``<folder>/<name>_train.npz`` and ``<name>_test.npz``.

    Args:
        templates: prompts for the zero-shot head.
        classes: names to use in prompts in place of the file's.
        val: share of the training examples of every class held out for validation (at least one).
        per_class: keep at most so many training and as many test examples of every class.
        seed: of the choice of validation examples and of `per_class`.

    Raises:
        FileNotFoundError: a file is missing; names both.
        ValueError: files that do not hold what they should.
    """
    paths = [Path(folder) / f"{name}_{split}.npz" for split in ("train", "test")]
    missing = [str(p) for p in paths if not p.exists()]
    if missing:
        raise FileNotFoundError(f"{name}: no {' and no '.join(missing)}.")
    files = [dict(np.load(p, allow_pickle=False)) for p in paths]
    for path, file in zip(paths, files, strict=True):
        lacking = [k for k in ("labels", "class_names") if k not in file]
        if "images" not in file and not {"jpeg", "offsets"} <= set(file):
            lacking.append("images, or jpeg and offsets")
        if lacking:
            raise ValueError(f"{path} lacks {'; '.join(lacking)}; it holds {sorted(file)}.")
        if not len(file["labels"]):
            raise ValueError(f"{path} holds no examples.")
    if files[0]["class_names"].tolist() != files[1]["class_names"].tolist():
        raise ValueError(f"{name}: train and test name different classes.")
    if "images" in files[0]:
        inputs: Any = np.concatenate([f["images"] for f in files])
    else:
        inputs = Jpegs([(f["jpeg"], f["offsets"]) for f in files], name)
    labels = np.concatenate([f["labels"] for f in files]).astype(np.int32)
    count = len(files[0]["labels"])
    domains = None
    if "domains" in files[0]:
        domains = np.concatenate([f["domains"] for f in files]).astype(np.int32)
    names = tuple(str(c) for c in files[0]["class_names"])
    if classes is not None and len(classes) != len(names):
        raise ValueError(f"{name} has {len(names)} classes, got {len(classes)} names for them.")
    groups = labels if domains is None else labels + len(names) * domains
    splits = hold_out(np.arange(count), groups, val, per_class, seed)
    test = hold_out(np.arange(count, len(labels)), groups, 0.0, per_class, seed)["train"]
    return Source(
        name=name,
        inputs=inputs,
        labels=labels,
        classes=tuple(classes) if classes is not None else names,
        templates=tuple(templates),
        splits={**splits, "test": test},
        domains=domains,
        domain_names=tuple(str(d) for d in files[0].get("domain_names", ())),
    )
