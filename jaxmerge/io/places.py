"""Folders that are written safely: links are not followed, one process at a time.

`Place` is an opened folder.  Its files are reached through its descriptor and never through a
link, so that neither a link planted in it nor one put in its stead leads a write elsewhere.
`Lock` says who works on something; it is a file beside it, so renaming the folder does not matter.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import time
from pathlib import Path

from jaxmerge.errors import UserError
from jaxmerge.io.untrusted import SMALL, open_regular

COPY = 4 << 20


class Place:
    """A folder that is not a link, opened; makes it if there is none.

    Args:
        path: of the folder.
        parent: the descriptor of the folder that it is in, if that is open too.

    Raises:
        UserError: a link, or a file, is in its place.
    """

    def __init__(self, path: Path, parent: int | None = None):
        self.path, name = path, path if parent is None else path.name
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
        try:
            self.fd = os.open(name, flags, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UserError(f"{path} is a link or a file, not a folder; delete it.") from None
            raise

    def open(self, name: str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        """A file of the folder, or ("a/b") of a folder in it; one that was planted (a link, a
        second name) is refused."""
        first, slash, rest = name.partition("/")
        if slash:
            inner = Place(self.path / plain(first), self.fd)
            try:
                return inner.open(rest, flags)
            finally:
                inner.close()
        plain(name)
        try:
            fd = os.open(
                name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644, dir_fd=self.fd
            )
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise self._planted(name) from None
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(fd)
            raise self._planted(name)
        return fd

    def _planted(self, name: str) -> UserError:
        return UserError(
            f"{self.path / name} is a link, or has a second name elsewhere: writing it changes "
            f"another file. Delete {self.path} and begin again."
        )

    def write(self, name: str, content: bytes | Path) -> None:
        """A whole file, from bytes or copied from a regular file, in place of one that is there.

        Args:
            name: of the file, in the folder or ("a/b") in folders of it.
        """
        first, slash, rest = name.partition("/")
        if slash:
            inner = Place(self.path / plain(first), self.fd)
            try:
                inner.write(rest, content)
                inner.sync()
            finally:
                inner.close()
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)
        fd = self.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            if isinstance(content, Path):
                with os.fdopen(open_regular(content), "rb") as source:
                    while block := source.read(COPY):
                        write_all(fd, block)
            else:
                write_all(fd, content)
            os.fsync(fd)
        except OSError as error:
            where = error.filename or str(self.path / name)
            raise OSError(error.errno, error.strerror, where) from None
        finally:
            os.close(fd)

    def read(self, name: str, most: int = SMALL) -> bytes:
        """A file of the folder, of at most `most` bytes; empty if there is none."""
        plain(name)
        try:
            fd = open_regular(name, os.O_NOFOLLOW, self.fd)
        except FileNotFoundError:
            return b""
        with os.fdopen(fd, "rb") as file:
            size = os.fstat(fd).st_size
            if size > most:
                raise UserError(
                    f"{self.path / name} has {size:,} bytes, expected at most {most:,}; delete "
                    f"{self.path} and begin again."
                )
            return file.read(most)

    def remove(self, name: str) -> None:
        """A file of the folder, if it is there; of a link only the link."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def sync(self) -> None:
        os.fsync(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def plain(name: str) -> str:
    """The name, if it is that of a file in a folder and of no other place; else ValueError."""
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is not the name of a file in a folder.")
    return name


def write_all(fd: int, data: bytes | memoryview) -> None:
    """All of it, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Occupied(UserError):
    """Another process works on what is asked for."""


class Lock:
    """The right to work on `what`, for one process on one machine.

    The file says who has it.  On one machine (containers share its kernel) the system knows whether
    that process lives; a process on another machine that shares the disk is believed.

    Args:
        path: of the file that is locked; removed by `release`.
        what: what messages call the thing.

    Raises:
        Occupied: another process has it; names the machine and the process.
        UserError: what lies there is no file.
    """

    def __init__(self, path: Path, what: str | Path):
        self.path, self.fd = path, -1
        while self.fd < 0:
            fd = self._open(what)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = _owner(fd)
                os.close(fd)
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                by = f" (process {owner['pid']} on {owner['host']})" if owner else ""
                raise Occupied(
                    f"Another process{by} is working on {what} now; wait for it."
                ) from None
            if not self._still(fd):  # its owner removed it between our opening and locking it
                os.close(fd)
                continue
            owner = _owner(fd)
            if owner and owner["host"] != socket.gethostname() and owner["boot"] != boot():
                os.close(fd)
                raise Occupied(
                    f"Process {owner['pid']} on {owner['host']} is working on {what}. If it is "
                    f"gone, delete {path}."
                )
            self.fd = fd
        me = {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot()}
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, json.dumps(me).encode(), 0)

    def _open(self, what: str | Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags, 0o644)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise UserError(
                    f"{self.path}, the lock of {what}, is no regular file; delete it."
                ) from None
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                why = (error.strerror or "").lower()
                raise UserError(
                    f"{what} cannot be written: nothing can be made in {self.path.parent} ({why})."
                ) from None
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(fd)
            raise UserError(f"{self.path}, the lock of {what}, is no regular file; delete it.")
        return fd

    def _still(self, fd: int) -> bool:
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(fd))

    def release(self) -> None:
        """Give it back; the file goes too."""
        if self.fd >= 0:
            if self._still(self.fd):
                os.unlink(self.path)
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def working(folder: Path) -> Lock:
    """The lock of a folder that is being made: a file beside it."""
    return Lock(folder.parent / f".{folder.name}.lock", folder)


def _owner(fd: int) -> dict | None:
    try:
        content = json.loads(os.pread(fd, 4096, 0))
        return {
            "host": str(content["host"]),
            "pid": int(content["pid"]),
            "boot": content.get("boot"),
        }
    except (ValueError, TypeError, KeyError):
        return None


def boot() -> str:
    """Names this start of this machine: what was not synced before another start may be lost."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def delete(path: Path) -> None:
    """A folder with all that is in it, a file, or a link and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def delete_busy(path: Path, seconds: float = 3) -> None:
    """A folder into which a library's threads, after a failure, may still write: until it has been
    away for a moment, or the time is over."""
    until, gone_since = time.monotonic() + seconds, time.monotonic()
    while time.monotonic() < min(until, gone_since + 0.3):
        if os.path.lexists(path):
            with contextlib.suppress(OSError):
                delete(path)
            gone_since = time.monotonic()
        time.sleep(0.03)
