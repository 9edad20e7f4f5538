"""Small parts of the file driver: cut, pad, cast and check flat arrays; run tasks on threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxmerge.numerics.order_statistics import double

WORKERS = max(2, min(8, os.cpu_count() or 2))
MIN_PIECE = 1 << 16  # entries; smaller leaves go through whole
HOT = 1 << 19  # entries that stay in a core's cache from one pass over them to the next
MAX_UNUSED = 800 << 20  # bytes that may be held before what is free is given back

INFINITE = {  # bits of +Inf, with the integer types of that width
    np.dtype(np.float16): (0x7C00, np.int16, np.uint16),
    np.dtype(ml_dtypes.bfloat16): (0x7F80, np.int16, np.uint16),
    np.dtype(np.float32): (0x7F800000, np.int32, np.uint32),
    np.dtype(np.float64): (0x7FF0000000000000, np.int64, np.uint64),
}


def pieces(size: int, longest: int) -> Iterator[tuple[int, int]]:
    """Cut ``range(size)``.

    >>> list(pieces(10, 4))
    [(0, 4), (4, 8), (8, 10)]
    """
    for start in range(0, size, longest):
        yield start, min(size, start + longest)


def piece_length(count: int, longest: int) -> int:
    """A length that few pieces differ in, so that little code is compiled: a power of two.

    >>> piece_length(100_000, 1 << 22), piece_length(5, 1 << 22)
    (131072, 65536)
    """
    return min(longest, max(MIN_PIECE, 1 << (count - 1).bit_length()))


def longest_piece(budget: int, width: int) -> int:
    """Entries of the longest piece, a power of two, at `width` bytes an entry.

    >>> longest_piece(48 << 20, 12) == 1 << 22
    True
    """
    return max(MIN_PIECE, 1 << (budget // width).bit_length() - 1)


def all_finite(flat: np.ndarray) -> bool:
    """Whether no entry is NaN or Inf; by two integer maxima, without temporaries.

    As integers the floats of one sign are in order, and Inf and NaN are the last of each sign.

    >>> all_finite(np.float32([1, -2])), all_finite(np.float32([1, -np.inf]))
    (True, False)
    >>> all_finite(np.complex64([1 + 2j])), all_finite(np.complex64([complex(1, np.nan)]))
    (True, False)
    """
    if flat.size == 0:
        return True
    if flat.dtype.kind == "c":  # real and imaginary parts, one after the other
        flat = flat.view(np.finfo(flat.dtype).dtype)
    if flat.dtype not in INFINITE:
        return bool(np.isfinite(flat.astype(np.float32)).all())
    infinite, signed, unsigned = INFINITE[flat.dtype]
    sign = 1 << (8 * flat.dtype.itemsize - 1)
    below = flat.view(unsigned).max() < sign + infinite
    return bool(below and flat.view(signed).max() < infinite)


def infinite(flat: np.ndarray) -> np.ndarray:
    """Where entries are NaN or Inf, in either part of complex ones."""
    wide = flat if flat.dtype.kind == "c" else flat.astype(np.float64)
    return ~np.isfinite(wide)


def cast(flat: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Another dtype; entries beyond its range become Inf or NaN, which is looked at later."""
    if flat.dtype == dtype:
        return flat
    with np.errstate(over="ignore", invalid="ignore"):
        return flat.astype(dtype)


def bounds(dtype: np.dtype) -> tuple[float, float] | None:
    """The least and greatest finite value of a floating dtype; None for what float32 fits into.

    >>> bounds(np.dtype(np.float16)), bounds(np.dtype(ml_dtypes.bfloat16))
    ((-65504.0, 65504.0), None)
    """
    if np.dtype(dtype).kind == "c" or np.dtype(dtype).itemsize > 2:
        return None
    info = ml_dtypes.finfo(dtype)
    if info.maxexp >= 128 and info.min < 0:
        return None
    return float(info.min), float(info.max)


@functools.partial(jax.jit, static_argnums=1)
def _astype(x: Any, dtype: np.dtype) -> Any:
    return x.astype(dtype)


def convert(x: Any, dtype: np.dtype) -> Any:
    """A jax array in another dtype, compiled."""
    return x if x.dtype == dtype else _astype(x, np.dtype(dtype))


def keep_memory() -> None:
    """Let the C library keep what was freed for the next leaf instead of giving it back.

    Leaves come and go by the megabyte, and the kernel clears every page that it hands out anew:
    that was a third of the time of a linear merge, and half of that of DARE-TIES.  So all threads
    share one heap, and large blocks come from it too.  Nothing happens where the C library is not
    GNU's; for commands only, as a library must not set this for its host.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return
    settings = {
        "mmap threshold": (-3, 32 << 20),
        "blocks outside the heap": (-4, 0),
        "heaps": (-8, 1),
        "free top before it is given back": (-1, 256 << 20),
        "bytes asked for at a time": (-2, 64 << 20),
    }
    for option, value in settings.values():
        mallopt(option, value)


def give_back() -> None:
    """Return to the system what `keep_memory` has kept: around a leaf that takes all there is."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def memory_in_use() -> int:
    """Bytes of memory, beside mapped files, that this process holds; 0 where that is not told."""
    try:
        with open("/proc/self/statm") as file:
            _, resident, shared = map(int, file.read().split()[:3])
    except OSError:
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


class Room:
    """A number of bytes that tasks share; a task that needs more than all of it runs alone."""

    def __init__(self, size: int):
        self.size, self.used, self.free = size, 0, threading.Condition()

    @contextlib.contextmanager
    def take(self, need: int) -> Iterator[None]:
        with self.free:
            self.free.wait_for(lambda: self.used == 0 or self.used + need <= self.size)
            self.used += need
        alone = need > self.size
        try:
            if alone or memory_in_use() + need > MAX_UNUSED:
                give_back()
            yield
        finally:
            if alone:
                give_back()
            with self.free:
                self.used -= need
                self.free.notify_all()


def run_all(run: Callable, tasks: Iterable[Sequence[Any]], stop: threading.Event) -> None:
    """``run(*task)`` for every task on a few threads; the first failure stops all and is raised."""
    wide = double()

    def one(task):
        with jax.enable_x64(wide):
            run(*task)

    tasks = iter(tasks)
    with ThreadPoolExecutor(WORKERS, "jaxmerge") as pool:
        running = set()
        try:
            while True:
                for task in tasks:
                    running.add(pool.submit(one, task))
                    if len(running) > WORKERS:
                        break
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
        except BaseException:
            stop.set()
            for future in running:
                future.cancel()
            raise
