"""NumPy archives, ``.npz``: read with the distrust that a file from anywhere asks for.

`arrays` reads all of a small one, `Archive` is one as a model, such as the checkpoints of
big_vision: names are paths at "/", bfloat16 is stored as two bytes without a type.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.free_memory import refuse_too_large
from jaxmerge.io.header import CODES
from jaxmerge.io.safetensors import Like, Stamp, Whole
from jaxmerge.io.untrusted import open_regular

MOST_UNPACKED = 1 << 30  # bytes that any file may unpack to; a larger one to RATIO times its size
RATIO = 64  # images pack to a twentieth at best
DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, EOFError, RuntimeError, OSError,
    SyntaxError,
)  # fmt: skip


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file; nothing is unpacked before what they take is known.

    Raises:
        UserError: not such a file, arrays of objects, sizes beyond the bound; names the file.
    """
    with _opened(path) as (archive, members):
        return {n: _array(archive, i, f"{path}: {i.filename}") for n, i in members.items()}


class Archive(Whole):
    """An ``.npz`` file as a model.

    Raises:
        UserError: not such a file, arrays of objects, sizes beyond the bound; names the file.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)
        self.stamps = {self.path: Stamp.of(self.path)}
        with _opened(self.path) as (archive, members):
            self.like = {n: self._like(archive, i) for n, i in members.items()}

    def _like(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Like:
        with archive.open(info) as member:
            shape, _, dtype = _header(member, info, f"{self.path}: {info.filename}")
        dtype = np.dtype(ml_dtypes.bfloat16) if dtype.str == "|V2" else dtype
        if dtype not in CODES:
            raise UserError(
                f"{self.path}: {info.filename} is of dtype {dtype}, no leaf of a model."
            )
        return Like(shape, dtype)

    def load(self, name: str) -> np.ndarray:
        like = self.like[name]
        refuse_too_large(name, like, self.path)
        with _opened(self.path) as (archive, members):
            return _array(archive, members[name], f"{self.path}: {name}").view(like.dtype)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """An archive and its members by the names of their arrays; what is damaged is a UserError."""
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive, _members(path, file.fileno(), archive)
        except UserError:
            raise
        except DAMAGED as error:
            text = f"{path} is no .npz file of arrays, or is damaged ({error})."
            raise UserError(text) from None


def _members(path: Path, fd: int, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by the names of their arrays."""
    packed = os.fstat(fd).st_size
    most = max(MOST_UNPACKED, RATIO * packed)
    members = archive.infolist()
    total = sum(i.file_size for i in members)
    if total > most:
        raise UserError(
            f"{path}: its {packed:,} bytes unpack to {total:,}; more than {most:,} are refused."
        )
    return {i.filename.removesuffix(".npy"): i for i in members}


def _header(member, info: zipfile.ZipInfo, where: str) -> tuple[tuple, bool, np.dtype]:
    """Shape, order and dtype of an array, which must be what its member holds."""
    version = np.lib.format.read_magic(member)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise UserError(f"{where}: an array of format {version}; 1.0 and 2.0 are read.")
    shape, turned, dtype = read(member)
    if dtype.hasobject:
        raise UserError(f"{where}: an array of Python objects; only plain arrays are read.")
    need, there = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if need != there or min(shape, default=0) < 0:
        raise UserError(f"{where}: {dtype}{list(shape)} needs {need:,} bytes, it holds {there:,}.")
    return shape, turned, dtype


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> np.ndarray:
    """One array."""
    with archive.open(info) as member:
        shape, turned, dtype = _header(member, info, where)
        need = math.prod(shape) * dtype.itemsize
        data = member.read(need)
    if len(data) != need:
        raise UserError(f"{where} ends after {len(data):,} of {need:,} bytes.")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if turned else "C")
