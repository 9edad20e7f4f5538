"""Zarr arrays below an index, as EasyDeL saves models, as a lazy mapping.

`tensorstore_index.json` lists what is saved of each part of a train state; those below "model" are
the model's, each a folder with `.zarray` (shape, dtype, chunks) and the chunks.
"""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError, library_message
from jaxmerge.io.free_memory import refuse_too_large
from jaxmerge.io.header import CODES
from jaxmerge.io.safetensors import Like, Stamp, Whole
from jaxmerge.io.untrusted import check_inside, read_json

INDEX = "tensorstore_index.json"
PART = "model"


class Arrays(Whole):
    """The arrays of one part; names are their paths without it, joined by dots as EasyDeL's are.

    Raises:
        UserError: an index of another form, arrays that are not where it says, damaged ones.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.path = folder.resolve()
        rows = read_json(folder / INDEX).get("prefixes", {})
        rows = rows.get(PART) if isinstance(rows, dict) else None
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{folder / INDEX} lists no arrays below {PART!r}.")
        paths = [row.get("path") if isinstance(row, dict) else None for row in rows]
        odd = [p for p in paths if not isinstance(p, str) or not _plain(p)]
        if odd:
            raise UserError(f"{folder / INDEX} names {str(odd[0])[:80]!r}: no path below {PART!r}.")
        dotted = lambda path: path.removeprefix(f"{PART}/").replace("/", ".")
        self.paths = {dotted(p): p for p in map(str, paths)}
        self.like = {n: self._like(p) for n, p in self.paths.items()}
        self.files = [folder / INDEX]
        for path in self.paths.values():
            self.files += sorted(p for p in (self.path / path).iterdir() if p.is_file())
        self.stamps = {p: Stamp.of(p) for p in self.files}

    def _like(self, path: str) -> Like:
        """What an array is, and that all its chunks are there."""
        folder = self.path / path
        if not (folder / ".zarray").is_file():
            raise UserError(f"{self.path} has no array {path!r}, which its index lists.")
        check_inside(folder, [p.name for p in folder.iterdir()])
        said = read_json(folder / ".zarray")
        shape, chunks = said.get("shape"), said.get("chunks")
        sizes = lambda x: isinstance(x, list) and all(type(n) is int and 0 <= n < 2**40 for n in x)
        if not (sizes(shape) and sizes(chunks) and len(shape) == len(chunks) and all(chunks)):
            raise UserError(f"{folder / '.zarray'} says no shape and chunks of an array.")
        dtype = said.get("dtype")
        try:
            kind = np.dtype(dtype if isinstance(dtype, str) else "?O")
        except TypeError:
            kind = np.dtype(object)
        if kind not in CODES:
            raise UserError(f"{folder / '.zarray'} is of dtype {str(dtype)[:40]!r}: no leaf's.")
        counts = [math.ceil(n / c) for n, c in zip(shape, chunks, strict=True)]
        there = {p.name for p in folder.iterdir()}
        if math.prod(counts) > len(there):  # else they would be read as zeros
            raise UserError(
                f"{folder} has {len(there) - 1} of {math.prod(counts)} chunks: it is damaged."
            )
        by = said.get("dimension_separator", ".")
        names = (by.join(map(str, at)) or "0" for at in itertools.product(*map(range, counts)))
        lost = [n for n in names if not (folder / n).is_file()]
        if lost:
            raise UserError(f"{folder} has no chunk {lost[0]}: it is damaged.")
        return Like(tuple(shape), kind)

    def load(self, name: str) -> np.ndarray:
        import tensorstore as ts

        like = self.like[name]
        refuse_too_large(name, like, self.path)
        store: Any = {"driver": "file", "path": os.fspath(self.path / self.paths[name])}
        try:
            array = ts.open({"driver": "zarr", "kvstore": store}, read=True, open=True).result()
            leaf = np.asarray(array.read().result())
        except Exception as error:
            said = library_message(error)
            raise UserError(f"{self.path}: leaf {name!r} cannot be read ({said}).") from None
        if leaf.shape != like.shape or leaf.dtype != like.dtype:
            raise UserError(f"{self.path}: leaf {name!r} was changed while it was read.")
        return leaf


def _plain(path: str) -> bool:
    """Whether a path of the index leads to a folder below the part."""
    parts = path.split("/")
    return parts[0] == PART and len(parts) > 1 and not {"", ".", ".."} & set(parts)
