"""LAPACK on one thread while several leaves are decomposed at once.

XLA works on as many leaves at once as there are cores.  A decomposition that LAPACK spreads over
all cores besides gains little (half of its work is not parallel) and its threads wait for each
other by spinning: of 768 x 768 entries it takes 0.13 processor seconds on one thread and 0.23 on
two.  So while a merge decomposes matrices the cores are shared out among the leaves.

The limit is that of the whole process: what numpy or scipy compute meanwhile on other threads is
held to it too.  Of merges that overlap the first one's limit rules, until the last has ended.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

_lock = threading.Lock()
_inside: list[Any] = []  # the limit in force, and an entry for every further merge in work


@contextlib.contextmanager
def shared_out(leaves: int) -> Iterator[Callable[[Any], Any]]:
    """A context in which LAPACK takes its share of the cores; gives a function for what is computed
    in it, which waits until that is there: XLA would go on behind the context's end.

    Args:
        leaves: how many are decomposed; 0 leaves everything as it is.
    """
    if not leaves or jax.default_backend() != "cpu":
        yield lambda out: out
        return
    with _lock:  # merges on several threads: the first sets the limit, the last lifts it
        first = None if _inside else _limited(max(1, (os.cpu_count() or 1) // leaves))
        _inside.append(first)
    try:
        yield jax.block_until_ready
    finally:
        with _lock:
            limit = _inside[0]
            _inside.pop()
            if not _inside:
                limit.restore_original_limits()


def _limited(threads: int) -> Any:
    return _libraries().limit(limits=threads, user_api="blas")


@functools.cache
def _libraries() -> Any:
    import scipy.linalg.cython_lapack  # noqa: F401  the one that XLA calls: it must be loaded
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
