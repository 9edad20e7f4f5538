"""Small files as an enemy may have left them: configs, indices, tokenizers, recipes.

Everything that is read beside the weights goes through here.  A file is opened without waiting (a
FIFO would block for ever), must be a regular one, no larger than the reader says, and, where it
belongs to a folder, must lie in that folder: a link out of a model's folder is refused, or an
unpacked archive would put anyone's files into the output.  What is wrong is one `UserError` that
names the file, what was found and what was expected.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError

SMALL = 64 << 20  # bytes of a config, an index, a tokenizer

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and new lines

KINDS = {
    dict: "an object", list: "a list", str: "text", int: "an integer", float: "a number",
    bool: "true or false",
}  # fmt: skip


def open_regular(path: str | os.PathLike, flags: int = 0, dir_fd: int | None = None) -> int:
    """A descriptor of a regular file, for reading; never waits.

    Raises:
        UserError: it is a FIFO, a device, a folder.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=dir_fd)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise UserError(f"{path} is {_kind(mode)}; expected a regular file.")
    return fd


def check_regular(path: Path, expected: str) -> None:
    """Raise UserError where something lies there that is no regular file; it is not opened."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {_kind(mode)}; {expected}.")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: str | os.PathLike, most: int = SMALL, what: str = "such a file") -> bytes:
    """The content of a regular file of at most `most` bytes."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UserError(f"{path} has {size:,} bytes; {what} has at most {most:,}.")
        return file.read(most + 1)[:most]


def read_text(path: str | os.PathLike, most: int = SMALL, what: str = "such a file") -> str:
    """The same as UTF-8 text."""
    try:
        return read_bytes(path, most, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at {error.start}).") from None


def read_json(path: str | os.PathLike, kind: type = dict, most: int = SMALL) -> Any:
    """JSON whose outermost value is of one kind.

    Raises:
        UserError: not JSON, not of that kind, too large, no regular file; names the file.
        OSError: it cannot be read.
    """
    return parse_json(read_text(path, most), str(path), kind)


def parse_json(text: str, what: str, kind: type = dict) -> Any:
    """The same from text; `what` is what messages call it.

    >>> parse_json("[1]", "config.json")
    Traceback (most recent call last):
    jaxmerge.errors.UserError: config.json holds a list; expected an object.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{what} is nested too deeply for JSON of this kind.") from None
    except ValueError as error:
        raise UserError(f"{what} is not JSON ({error}).") from None
    if not isinstance(value, kind):
        name = KINDS.get(type(value), "null" if value is None else type(value).__name__)
        raise UserError(f"{what} holds {name}; expected {KINDS[kind]}.")
    return value


def inside(folder: Path, name: str) -> bool:
    """Whether a plain file name leads to something in the folder, or in the hub cache's blobs.

    >>> inside(Path("/tmp"), "../etc/passwd")
    False
    """
    if not name or name != os.path.basename(name) or name in (".", "..") or "\0" in name:
        return False
    if len(name.encode(errors="surrogatepass")) > 255:
        return False
    try:
        target = (folder / name).resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
    allowed = [folder.resolve()]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent.resolve() / "blobs")
    return any(target.is_relative_to(a) for a in allowed)


def member(folder: Path | None, name: str) -> Path | None:
    """The file of that name in a model's folder, None where there is none.

    Raises:
        UserError: it is a link that leads out of the folder, or no regular file.
    """
    if folder is None or not os.path.lexists(folder / name):
        return None
    check_inside(folder, [name])
    path = folder / name
    if not path.exists():
        raise UserError(f"{path} is a link to nothing; delete it, or put the file there.")
    check_regular(path, "delete it, or put the file there")
    return path


def check_inside(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError where a file of the folder is a link that leads out of it."""
    outside = [n for n in names if not inside(folder, n)]
    if outside:
        where = os.path.realpath(folder / outside[0])
        raise UserError(
            f"{folder / outside[0]} is a link out of its folder, to {where}; copy the file there, "
            "or name the file itself."
        )


@contextlib.contextmanager
def memory_at_most(more: int) -> Iterator[None]:
    """Inside, this process may take so many bytes more than it has; a MemoryError says otherwise.

    For readers that unpack what they are given without a bound of their own.  Does nothing where
    the system has no such limit.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        old = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError):
        yield
        return
    most = pages * resource.getpagesize() + more
    top = most if old[1] == resource.RLIM_INFINITY else min(most, old[1])
    resource.setrlimit(resource.RLIMIT_AS, (top, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def printable(text: object) -> str:
    """Text for a terminal or a log: control characters, which could rewrite the screen, are shown.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(
        c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def check_printable(value: Any, where: str) -> None:
    """Raise UserError where a text within plain data holds control characters, which no name has.

    >>> check_printable({"label": ["MagMax"]}, "results.json")
    >>> check_printable({"label": ["a\\x1b[2Jb"]}, "results.json")
    Traceback (most recent call last):
    jaxmerge.errors.UserError: results.json holds control characters: 'a\\x1b[2Jb'.
    """
    todo = [value]
    while todo:
        x = todo.pop()
        if isinstance(x, dict):
            todo += [*x.keys(), *x.values()]
        elif isinstance(x, list | tuple):
            todo += x
        elif isinstance(x, str) and CONTROL.search(x):
            raise UserError(f"{where} holds control characters: {x!r}.")


def plain_line(text: str) -> str:
    """Text that stays on its line: a heading, a comment of LaTeX, a line of a terminal."""
    return printable(re.sub(r"\s+", " ", text))


def plain_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~&!])", r"\\\1", plain_line(text))
