"""How much memory there is for what a file says that it holds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError


def memory_free() -> int | None:
    """Bytes of memory that this process may still take; None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        free = [int(lines["MemAvailable"].split()[0]) << 10]
    except (OSError, KeyError, ValueError):
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)  # of a shell, by ulimit -v
    if limit != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        free.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    group = Path("/sys/fs/cgroup")  # of a container
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        limit = int((group / "memory.max").read_text())
        free.append(limit - int((group / "memory.current").read_text()))
    return max(0, min(free))


def refuse_too_large(name: str, like: Any, path: Path) -> None:
    """Raise UserError where a leaf that is read whole has no room: what allocates it would end the
    process.

    Args:
        name: of the leaf.
        like: its dtype and shape.
        path: the file or folder that says so.
    """
    free = memory_free()
    if free is not None and like.nbytes > free:
        from jaxmerge.core.names import kind

        raise UserError(
            f"{path}: leaf {name!r} is {kind(like)}, {like.nbytes / 1e9:.3g} GB; it is read whole, "
            f"and {free / 1e9:.3g} GB are free."
        )


def give_back() -> None:
    """Give freed memory back to the system, where the C library keeps it (glibc): what a compiler
    has used is a third of a process otherwise.  A few milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
