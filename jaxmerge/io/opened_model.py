"""An opened model: a lazy mapping of leaves, which may lie in several files or have other names."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.safetensors import Leaves, Like
from jaxmerge.io.untrusted import member, open_regular, read_json


class Shards(Leaves):
    """Several files as one model."""

    def __init__(self, files: Mapping[str, Leaves], where: Mapping[str, str]):
        self.files, self.where = dict(files), dict(where)
        self.stamps = {p: s for file in self.files.values() for p, s in file.stamps.items()}
        self.like = {n: self.files[f].like[n] for n, f in self.where.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.files[self.where[name]].read(name, start, stop)

    def into(self, out: np.ndarray, name: str, start: int = 0) -> None:
        self.files[self.where[name]].into(out, name, start)

    def replaced(self) -> list[str]:
        return [x for file in self.files.values() for x in file.replaced()]

    def close(self) -> None:
        for file in self.files.values():
            file.close()


class View(Leaves):
    """Another model under other names.

    Attributes:
        names: new name -> the name there.
        ref: what the model is called in messages.
    """

    def __init__(self, source: Leaves, names: Mapping[str, str], ref: str = ""):
        self.source, self.names, self.ref = source, dict(names), ref
        self.stamps = source.stamps
        self.like: dict[str, Like] = {new: source.like[old] for new, old in self.names.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.source.read(self.names[name], start, stop)

    def into(self, out: np.ndarray, name: str, start: int = 0) -> None:
        self.source.into(out, self.names[name], start)

    def replaced(self) -> list[str]:
        return self.source.replaced()


class Source(View):
    """An opened reference.

    Attributes:
        ref: the reference, absolute, so that it means the same anywhere.
        files: the files that hold the weights, for hashing.
        made_of: what `jaxmerge.io.architectures` found, once it was asked.
    """

    made_of: Any = None

    def __init__(
        self, leaves: Leaves, ref: str, folder: Path | Callable[[], Path] | None,
        files: Sequence[Path], config: dict[str, Any] | None = None,
    ):  # fmt: skip
        odd = [n for n in leaves if not n.isprintable()]
        if odd:
            raise UserError(
                f"{ref}: names of {len(odd)} leaves hold control characters: {odd[0][:80]!r}."
            )
        super().__init__(leaves, {n: n for n in leaves}, ref)
        self._folder, self.files, self._config = folder, tuple(files), config

    @property
    def folder(self) -> Path | None:
        """Where config.json and the tokenizer are, or None; made when it is first asked for where
        the files of the model hold them in another form."""
        if callable(self._folder):
            self._folder = self._folder()
        return self._folder

    def close(self) -> None:
        self.source.close()

    def renamed(self, names: Mapping[str, str], ref: str | None = None) -> Source:
        """The same model under other names: new name -> the name here."""
        out = copy.copy(self)
        out.made_of = None
        out.names = {new: self.names[old] for new, old in names.items()}
        out.like = {new: self.like[old] for new, old in names.items()}
        out.ref = self.ref if ref is None else ref
        return out

    @property
    def parts(self) -> dict[str, str]:
        """Component -> the file that holds it, for a pipeline of several models."""
        return getattr(self.source, "parts", {})

    def config(self) -> dict[str, Any]:
        """The config of these leaves: config.json, changed where the leaves are not the stored
        ones (dequantised, an adapter on a tied head); empty if there is none."""
        if self._config is None:
            path = member(self.folder, "config.json")
            self._config = {} if path is None else read_json(path)
        return self._config

    def stamp(self) -> list[list[Any]]:
        """What changes when the files change, read from their headers and the file system."""
        out = []
        for path in self.files:
            with os.fdopen(open_regular(path), "rb") as file:
                stat = os.fstat(file.fileno())
                first = hashlib.sha256(file.read(1 << 16)).hexdigest()
            out.append([str(path), stat.st_size, stat.st_mtime_ns, first])
        return out
