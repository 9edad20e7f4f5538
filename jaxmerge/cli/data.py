"""`--data` and what goes with it: a data set by name or path, read by the reader that fits.

What is said of it (columns, names of classes, templates) are the reader's own arguments; one that
the reader of this data does not take is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxmerge.data.sources import Source
from jaxmerge.errors import UserError

OPTIONS = ("text", "label", "split", "classes", "templates")


def open_data(
    spec: str,
    text: str | None = None,
    label: str | None = None,
    split: str | None = None,
    classes: str | Path | Mapping[str, str] | Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
) -> Source:
    """A data source by name.

    Args:
        spec: "digits"; a folder of images, a folder for each class; a table of texts (.csv, .tsv,
            .jsonl); DIR/NAME, images in ``DIR/NAME_train.npz`` and ``DIR/NAME_test.npz``; a
            folder with the files of CLINC150 (``data_full.json``, ``domains.json``) or Banking77
            (``train.csv``, ``test.csv``); DIR/NAME, sentences, with NAME one of
            `jaxmerge.data.text.SETS`.
        text, label, split: columns of a table.
        classes: names for prompts in place of folders' or labels', or a YAML or JSON file of them.
        templates: prompts, each with one ``{}``.

    Raises:
        UserError: none of these is there, or is said of data that have no such thing.
    """
    what, read = _reader(spec)
    given = dict(zip(OPTIONS, (text, label, split, classes, templates), strict=True))
    given = {k: v for k, v in given.items() if v is not None and v != []}
    takes = [k for k in OPTIONS if k in inspect.signature(read).parameters]
    if wrong := [f"--{k}" for k in given if k not in takes]:
        known = ", ".join(f"--{k}" for k in takes)
        have = "has" if len(wrong) == 1 else "have"
        raise UserError(
            f"--data {spec} is {what}: {', '.join(wrong)} {have} no meaning there; "
            f"{f'what can be said of it is {known}' if known else 'leave it out'}."
        )
    if isinstance(classes, str | Path):
        given["classes"] = class_names(classes)
    return read(**given)


def class_names(path: str | Path) -> Any:
    """Names of classes from a file: a mapping of a folder or a label to its name, or all names.

    Args:
        path: a YAML or JSON file.

    Raises:
        UserError: not such a file, or names that are no text.
    """
    from jaxmerge.recipes.plain_yaml import load_yaml

    documents = load_yaml(path)
    names = documents[0] if len(documents) == 1 else None
    values = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(values, list) or not values:
        raise UserError(
            f"{path}: expected names of classes, one line each: 'folder or label: name', or "
            "'- name' for all of them in order."
        )
    if wrong := [repr(name) for name in values if not isinstance(name, str)]:
        raise UserError(f"{path}: {', '.join(wrong[:5])} is no text; put names into quotes.")
    return names


def _reader(spec: str) -> tuple[str, Callable[..., Source]]:
    """What lies there, in words, and what reads it."""
    from jaxmerge.data import tables
    from jaxmerge.data import text as texts
    from jaxmerge.data.digits import digits
    from jaxmerge.data.folders import ENDINGS, folder
    from jaxmerge.data.npz import npz

    if spec == "digits":
        return "the digits of scikit-learn", digits
    path = Path(spec)
    if (path / "data_full.json").exists():
        return "CLINC150", partial(texts.clinc150, path)
    if (path / "train.csv").exists():
        return "Banking77", partial(texts.banking77, path)
    if path.is_file() and path.suffix.lower() in (*tables.DELIMITERS, *tables.LINES):
        return "a table of texts", partial(tables.table, path)
    if path.name in texts.SETS and path.parent.is_dir():
        return path.name, partial(texts.sentences, path.parent, path.name)
    if path.with_name(f"{path.name}_train.npz").exists():
        return "images in NumPy files", partial(npz, path.parent, path.name)
    if path.is_dir() and any(p.suffix.lower() in ENDINGS for p in path.rglob("*")):
        return "a folder of images", partial(folder, path)
    found = "" if path.exists() else "it is not there; "
    found = "it holds no images; " if path.is_dir() else found
    raise UserError(
        f"--data {spec!r}: {found}expected digits, a folder of class folders with images, a table "
        f"(.csv, .tsv, .jsonl), DIR/NAME with {path.name}_train.npz and _test.npz in "
        "DIR, a folder of CLINC150 (data_full.json) or Banking77 (train.csv), or DIR/NAME with "
        f"NAME one of {', '.join(texts.SETS)}."
    )
