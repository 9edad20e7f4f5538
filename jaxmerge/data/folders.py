"""Image sources from folders: the class, and where there are any the split and the domain, are
read from each file's path.

======================================  =======================================================
layout                                  reads
======================================  =======================================================
``{split}/{class}/*``                   train/dog/3.jpg; splits "train", "val", "test"
``{class}/*``                           dog/3.jpg; the splits are made here
``{class}/{domain}_*``                  n02099601/sketch_7.jpg, as ImageNet-R is published
``{split}/{domain}/{class}/*``          train/sketch/dog/3.jpg
======================================  =======================================================

The first two are told apart without being asked.  Folders name the classes, underscores become
spaces.  Pictures are decoded when asked for.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmerge.data.pictures import Pictures, check_corrupt, skip_corrupt
from jaxmerge.data.sources import SPLITS, Source, as_texts, renamed, split_name
from jaxmerge.data.splits import complete
from jaxmerge.errors import closest, screen

TEMPLATES = ("a photo of a {}.", "an image of a {}.", "a picture of a {}.")
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
PARTS = ("split", "class", "domain")


class Files(Pictures):
    """Image files under one folder.

    >>> files = Files(Path("pets"), ["cat/1.png", "dog/2.png"], "pets")
    >>> files.label(1), files.encoded(1).as_posix()
    ('dog/2.png', 'pets/dog/2.png')
    """

    def __init__(self, root: Path, paths: Sequence[str], name: str):
        self.root, self.paths, self.name = root, list(paths), name

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, row: int) -> Path:
        """The path of a file.

        Args:
            row: its position.
        """
        return self.root / self.paths[row]

    def label(self, row: int) -> str:
        """The path below the folder, for messages.

        Args:
            row: its position.
        """
        return self.paths[row]


def folder(
    path: str | Path,
    name: str | None = None,
    *,
    layout: str | None = None,
    classes: Mapping[str, str] | Sequence[str] | None = None,
    templates: str | Sequence[str] = TEMPLATES,
    val: float = 0.1,
    test: float = 0.2,
    per_class: int | None = None,
    corrupt: str = "stop",
    seed: int = 0,
) -> Source:
    """Read a folder of images.

    Args:
        path: of the folder.
        name: what reports call it; the folder's name by default.
        layout: see above; ``{class}/*`` or ``{split}/{class}/*`` by default, whichever fits.
        classes: names for prompts in place of the folders': folder -> name, or one name for each
            folder in alphabetic order.
        templates: prompts for the zero-shot head, each with one ``{}``; a string is one of them.
        val, test: shares of the training examples of every class (and domain) held out where the
            folder has no such split.
        per_class: keep at most so many examples of every class (and domain) in every split.
        corrupt: "stop" whoever reads an image that cannot be decoded; "skip" decodes every image
            once, now, and leaves those out, with a warning that names them.
        seed: of what is held out or kept.

    A folder without an image is left out with a warning.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, files that the layout does not fit, splits without "train", names
            that do not fit the classes.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat", "black_dog"):
    ...     (root / name).mkdir()
    ...     for i in range(4):
    ...         Image.new("RGB", (8, 8)).save(root / name / f"{i}.png")
    >>> source = folder(root, "pets", val=0.25, test=0.25)
    >>> source.classes, source.inputs[source.splits["val"]][0].size
    (('black dog', 'cat'), (8, 8))
    """
    check_corrupt(corrupt)
    root = Path(path)
    name = name or root.name
    if not root.is_dir():
        what = "is a file, no folder of images" if root.exists() else "is not there"
        who = "" if name == str(root) else f"{name}: "
        raise FileNotFoundError(f"{who}{root} {what}.")
    files = sorted(
        p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix.lower() in ENDINGS
    )
    if not files:
        raise ValueError(f"{name}: {root} holds no images ({', '.join(sorted(ENDINGS))}).")
    layout = layout or guess(files)
    levels = parse(files, layout, name)
    if empty := _empty(root, files):
        warnings.warn(f"{name}: no image in {', '.join(screen(empty))}: left out.", stacklevel=2)
    folders, labels = np.unique(levels["class"], return_inverse=True)
    names = renamed([tidy(c) for c in folders], classes, name, keys=list(folders))
    groups, domains, domain_names = labels, None, ()
    if "domain" in levels:
        kinds, domains = np.unique(levels["domain"], return_inverse=True)
        domain_names = tuple(str(d) for d in kinds)
        groups, domains = labels + len(names) * domains, domains.astype(np.int32)
    source = Source(
        name=name,
        inputs=Files(root, files, name),
        labels=labels.astype(np.int32),
        classes=names,
        templates=as_texts(templates),
        splits=complete(
            published(levels, name), groups, val=val, test=test, per_class=per_class, seed=seed
        ),
        domains=domains,
        domain_names=domain_names,
    )
    return skip_corrupt(source) if corrupt == "skip" else source


def _empty(root: Path, files: Iterable[str]) -> list[str]:
    """Folders without an image in them or below, hidden ones aside."""
    full = {parent for f in files for parent in Path(f).parents}
    every = (Path(here).relative_to(root) for here, *_ in os.walk(root))
    bare = [p for p in every if p not in full and not any(x.startswith(".") for x in p.parts)]
    return sorted(p.as_posix() for p in bare if not any(q in p.parents for q in bare))


def guess(files: Iterable[str]) -> str:
    """``{split}/{class}/*`` when the outer folders are named like splits, ``{class}/*`` if not.

    Args:
        files: paths below the folder, with "/".

    >>> guess(["train/dog/3.jpg", "test/dog/1.jpg"]), guess(["dog/3.jpg"])
    ('{split}/{class}/*', '{class}/*')
    """
    outer = {split_name(f.split("/")[0]) for f in files}
    return "{split}/{class}/*" if outer <= set(SPLITS) else "{class}/*"


def parse(files: Sequence[str], layout: str, name: str) -> dict[str, np.ndarray]:
    """Split, class and domain of every file, as texts.

    Args:
        files: paths below the folder, with "/".
        layout: see above.
        name: of the data set, for messages.

    >>> levels = parse(["cat/sketch_1.jpg"], "{class}/{domain}_*", "x")
    >>> levels["class"].tolist(), levels["domain"].tolist()
    (['cat'], ['sketch'])
    """
    asked = re.findall(r"{(.*?)}", layout)
    unknown = [a for a in asked if a not in PARTS]
    if unknown or "class" not in asked:
        hint = closest(unknown[0], PARTS) if unknown else "it lacks {class}."
        raise ValueError(f"{name}: the layout {layout!r} is not understood: {hint}")
    pieces = {"{": lambda p: f"(?P<{p[1:-1]}>[^/]+?)", "*": lambda p: "[^/]*"}
    pattern = "".join(
        pieces.get(part[0], re.escape)(part) for part in re.findall(r"{.*?}|\*|[^{*]+", layout)
    )
    matches = [re.fullmatch(pattern, f) for f in files]
    misfits = [f for f, m in zip(files, matches, strict=True) if m is None]
    if misfits:
        raise ValueError(
            f"{name}: {len(misfits)} of {len(files)} images do not lie as {layout!r} says: "
            f"{', '.join(misfits[:5])}{', ...' if len(misfits) > 5 else ''}. Put the images of "
            "each class into a folder of its name, or say how they lie (layout)."
        )
    return {a: np.array([m[a] for m in matches if m]) for a in asked}


def published(levels: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Rows of the splits that the paths name; all rows are "train" when they name none.

    Args:
        levels: of `parse`.
        name: of the data set, for messages.

    >>> levels = {"class": np.array(["a", "a"]), "split": np.array(["train", "testing"])}
    >>> {s: rows.tolist() for s, rows in published(levels, "x").items()}
    {'train': [0], 'test': [1]}
    """
    if "split" not in levels:
        return {"train": np.arange(len(levels["class"]))}
    splits = np.array([split_name(s) for s in levels["split"]])
    wrong = sorted(set(splits) - set(SPLITS))
    if wrong or "train" not in splits:
        raise ValueError(
            f"{name}: found the splits {', '.join(sorted(set(splits)))}; expected train, and where "
            "they are published val and test."
        )
    return {s: np.flatnonzero(splits == s) for s in SPLITS if s in splits}


def tidy(name: str) -> str:
    """A class name for prompts from a folder's or a data set's own.

    Args:
        name: with underscores or spaces.

    >>> tidy("black_cat")
    'black cat'
    """
    return re.sub(r"[_\s]+", " ", str(name)).strip()
