"""Leaves that are decomposed side by side: one a thread, LAPACK's threads shared out among them.

XLA works on what one thread asks for in turn, so a decomposition, of which LAPACK spreads little
over cores, would leave all cores but one idle.  (Its own threads wait for each other by spinning:
of 768 x 768 entries it takes 0.13 processor seconds on one thread and 0.23 on two.)  So a merge
that decomposes matrices works on as many leaves at once as there are cores, up to `MOST`, and the
cores are shared out among them.

The limit of LAPACK's threads is that of the whole process: what numpy or scipy compute meanwhile on
other threads is held to it too.  Of merges that overlap the first one's limit rules, until the last
has ended.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxmerge.core.types import concrete

MOST = 8  # leaves at once: each has its temporaries

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
        first = None if _inside else _limited(max(1, _cores() // min(leaves, MOST)))
        _inside.append(first)
    try:
        yield jax.block_until_ready
    finally:
        with _lock:
            limit = _inside[0]
            _inside.pop()
            if not _inside:
                limit.restore_original_limits()


def leaf_by_leaf(
    run: Callable[[str], Any], grid: Mapping[str, Any], read: Callable[[str], Any]
) -> dict[str, Any]:
    """Leaf name -> what ``run(name)`` gives; on a thread each where several are decomposed.

    The first leaf of every kind goes ahead: what runs for it is compiled once, not on every thread.
    Inside a transformation (`jax.jit`, `vmap`, `grad`) leaves are taken in turn: `run` may hold
    what is traced, and a trace belongs to its thread.

    Args:
        grid: leaf name -> its pipeline.
        read: leaf name -> the arrays that `run` reads for it, a pytree; where one does not lie on
            one CPU, leaves are taken in turn.
    """
    workers = min(_cores(), sum(p.decomposes for p in grid.values()), MOST)
    if jax.default_backend() != "cpu":
        workers = 1
    ahead: dict[Any, str] = {}
    for n, p in grid.items() if workers > 1 else ():
        leaves = jax.tree.leaves(read(n))
        if not all(map(_on_one_cpu, leaves)):
            workers = 1
        kinds = ((np.shape(x), getattr(x, "dtype", None)) for x in leaves)
        ahead.setdefault((id(p.fold), *kinds), n)
    if workers < 2:
        return {n: run(n) for n in grid}
    waves = list(ahead.values()), [n for n in grid if n not in set(ahead.values())]
    settings = _settings()
    one = lambda n: jax.block_until_ready(run(n))
    with ThreadPoolExecutor(workers, "jaxmerge-leaf") as pool:
        if pool.submit(_settings).result() != settings:  # inside a trace or a context manager
            return {n: run(n) for n in grid}
        done = {n: x for wave in waves for n, x in zip(wave, pool.map(one, wave), strict=True)}
    return {n: done[n] for n in grid}


def _cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _on_one_cpu(x: Any) -> bool:
    if not concrete(x):
        return False
    devices = x.devices() if isinstance(x, jax.Array) else ()
    return len(devices) < 2 and all(d.platform == "cpu" for d in devices)


def _settings() -> tuple[Any, list[Any]]:
    """What jax does in this thread: its trace, and precision, float64, default device and so on."""
    from jax.extend import core  # with parts of Pallas: no merge waits for it at its start

    names = jax.config.values
    settings = [getattr(jax.config, name, None) for name in names]
    return core.get_opaque_trace_state(convention="flax"), settings


def _limited(threads: int) -> Any:
    return _libraries().limit(limits=threads, user_api="blas")


@functools.cache
def _libraries() -> Any:
    import scipy.linalg.cython_lapack  # noqa: F401  the one that XLA calls: it must be loaded
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
