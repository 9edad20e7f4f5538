"""A safetensors file in a bucket that is read by ranges: the header first, then what is asked for.

In its place on the disk lies a file of the same length that holds the header alone.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError
from jaxmerge.io.header import MAX_HEADER
from jaxmerge.io.safetensors import File

SUFFIX = ".safetensors"


def header_alone(fs: Any, path: str, size: int, target: Path) -> None:
    """A file as long as the one in the bucket with nothing but its header, which `File` checks."""
    first = fs.cat_file(path, start=0, end=min(8, size))
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    fits = length <= min(MAX_HEADER, size - 8)
    target.write_bytes(fs.cat_file(path, start=0, end=8 + length) if fits else first)
    os.truncate(target, size)


class RangeFile(File):
    """One safetensors file in a bucket.

    Args:
        path: the file that holds the header.
        fs, remote: the file system, and the path there.
    """

    def __init__(self, path: Path, fs: Any, remote: str):
        super().__init__(path)
        self.fs, self.remote = fs, remote
        self.was = stamp(fs.info(remote))
        if self.was[0] != os.path.getsize(path):
            raise UserError(f"{remote} was replaced while it was opened; start again.")

    def _fill(self, out: memoryview, offset: int, name: str) -> None:
        data = self.fs.cat_file(self.remote, start=offset, end=offset + len(out))
        if len(data) != len(out):
            raise OSError(
                f"{self.remote}: leaf {name!r} ends after {len(data)} of {len(out)} bytes; the "
                "file was cut while it was read."
            )
        out[:] = data

    def replaced(self) -> list[str]:
        return [self.remote] if stamp(self.fs.info(self.remote)) != self.was else []


def stamp(info: dict[str, Any]) -> list[Any]:
    """What changes when an object is replaced, as far as the cloud says it; its size first."""
    keys = ("size", "etag", "ETag", "md5Hash", "generation", "mtime", "updated", "created",
            "LastModified")  # fmt: skip
    return [info.get(k) for k in keys]
