"""From a source to batches: decoded ahead by worker processes, placed on the device ahead.

Three things, each useful alone:

* `examples` prepares the examples of a task: at once where the result fits into memory (decoded
  once, read as fast as an array), or as `Examples`, which prepares what it is asked for;
* `Order` is the sequence of shuffled batches.  Batch k follows from (seed, k) alone, so a run goes
  on at any step, and examples that lie in memory and examples that do not come in the same order;
* `read` walks through batches.  For `Examples` it is a grain pipeline: each worker decodes whole
  batches, the results come in order, a thread puts the next ones on the device.  At most
  ``workers * 2 + 4`` batches are held.  For arrays it is a plain loop, without grain.

Workers are threads on few cores and processes on many.  Measured on two idle cores with JPEGs of
500 x 375 pixels, images a second: 275 in a plain loop, 555 by threads, 393 by two processes, which
start in 3 s (``experiments/bench/pipeline.py``).

Needs ``pip install 'jaxmerge[data]'`` (grain), for `Examples` only.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxmerge.data.pictures import Pictures
from jaxmerge.data.sources import Inputs
from jaxmerge.errors import UserError

Prepare = Callable[[Any], np.ndarray]
ENOUGH = 4000  # fewer pictures than this are decoded sooner than worker processes have started
MANY = 8  # with more cores than this processes are faster than threads, which share Python's lock


class Examples:
    """Prepared examples by position, prepared when asked for: ``examples[rows]`` -> numpy batch.

    Args:
        parts: (inputs of a source, rows of it), one after another.
        prepare: what a source holds -> numpy of one shape; sent to worker processes.
    """

    def __init__(self, parts: Sequence[tuple[Any, np.ndarray]], prepare: Prepare):
        self.parts, self.prepare = [(inputs, np.asarray(rows)) for inputs, rows in parts], prepare
        self.starts = np.cumsum([0, *(len(rows) for _, rows in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Prepared examples, [*rows.shape, ...]; a slice or an integer array of any shape."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        rows = np.asarray(rows)
        flat = rows.ravel()
        which = np.searchsorted(self.starts, flat, side="right") - 1
        out: np.ndarray | None = None
        for part in np.unique(which):
            at = np.flatnonzero(which == part)
            inputs, own = self.parts[part]
            prepared = np.asarray(self.prepare(inputs[own[flat[at] - self.starts[part]]]))
            if out is None:
                out = np.empty((len(flat), *prepared.shape[1:]), prepared.dtype)
            out[at] = prepared
        if out is None:
            raise ValueError("No examples were asked for.")
        return out.reshape(*rows.shape, *out.shape[1:])


def examples(
    parts: Sequence[tuple[Inputs, np.ndarray]], prepare: Prepare, room: int | None = None
) -> np.ndarray | Examples:
    """Examples of a task: prepared at once if they fit into `room`, or else when asked for.

    Args:
        parts, prepare: as in `Examples`.
        room: bytes; an eighth of the machine's memory by default.

    >>> examples([(np.arange(6), np.array([1, 3]))], lambda x: 2 * x).tolist()
    [2, 6]
    """
    lazy = Examples(parts, prepare)
    if not len(lazy):
        return np.asarray(prepare(parts[0][0][parts[0][1]]))
    room = memory() // 8 if room is None else room
    one = lazy[:1]
    if one.nbytes * len(lazy) > room:
        return lazy
    if not any(isinstance(inputs, Pictures) for inputs, _ in parts):
        return np.concatenate([prepare(inputs[rows]) for inputs, rows in parts if len(rows)])
    rows = [np.arange(k, min(k + 64, len(lazy))) for k in range(0, len(lazy), 64)]
    out = np.empty((len(lazy), *one.shape[1:]), one.dtype)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside Python's lock
        for at, batch in zip(rows, pool.map(lazy.__getitem__, rows), strict=True):
            out[at] = batch
    return out


class Order(Sequence):
    """Shuffled batches by number: the shuffles of the epochs one after another, cut into batches.

    Epoch e is a permutation drawn from (seed, e); batches run across the borders of epochs, none is
    smaller.

    Args:
        count: examples.
        batch: examples a batch.
        batches: how many.
        seed: numbers that name the shuffle, such as (seed, task).

    >>> order = Order(5, 2, 6, (0,))
    >>> sorted(np.concatenate([order[k] for k in range(5)]).tolist())
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    def __init__(self, count: int, batch: int, batches: int, seed: tuple[int, ...]):
        self.examples, self.batch, self.batches, self.seed = count, batch, batches, tuple(seed)

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        if not -len(self) <= k < len(self):
            raise IndexError(f"batch {k} of {len(self)}")
        at = np.arange(self.batch) + (k % len(self)) * self.batch
        epochs, within = np.divmod(at, self.examples)
        parts = [
            shuffled(self.examples, (*self.seed, int(e)))[within[epochs == e]]
            for e in np.unique(epochs)
        ]
        return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def shuffled(count: int, seed: tuple[int, ...]) -> np.ndarray:
    """0..count-1 in an order drawn by `seed`."""
    return np.random.default_rng(seed).permutation(count)


class _Numbered(Sequence):
    """Batches by number, for grain; sent to worker processes."""

    def __init__(self, inputs: Any, rows: Sequence[Any] | np.ndarray, then: Callable, first: int):
        self.inputs, self.rows, self.then, self.first = inputs, rows, then, first

    def __len__(self) -> int:
        return len(self.rows) - self.first

    def __getitem__(self, k: int) -> Any:
        return self.then(self.inputs[self.rows[k + self.first]])


def same(x: Any) -> Any:
    """x."""
    return x


def read(
    inputs: np.ndarray | Examples,
    rows: Sequence[Any] | np.ndarray,
    then: Callable[[np.ndarray], Any] = same,
    *,
    place: Callable[[Any], Any] | None = None,
    first: int = 0,
    workers: int | None = None,
) -> Iterator[Any]:
    """The batches ``place(then(inputs[rows[k]]))`` for k = first, first + 1, ...

    Args:
        inputs: an array, or examples prepared when asked for.
        rows: integer arrays by number, such as an `Order` or a list.
        then: what is made of a numpy batch, in the worker: a pytree of numpy arrays.
        place: puts a batch on the device, in a thread two batches ahead; None leaves it.
        first: the batch to begin with (a resumed run's position).
        workers: processes that prepare `Examples`; 0 uses threads.  By default threads on eight
            cores or fewer or for few pictures, else a process for every core but one, at most 16.

    Raises:
        CorruptImage: an image that cannot be decoded, by name.
        UserError: grain is not installed.
    """
    if not isinstance(inputs, Examples):
        for k in range(first, len(rows)):
            batch = then(inputs[rows[k]])
            yield batch if place is None else place(batch)
        return
    try:
        import grain
        from absl import flags
        from grain.experimental import ThreadPrefetchIterDataset
    except ImportError:
        raise UserError(
            "Images that do not fit into memory are read by grain: pip install 'jaxmerge[data]'"
        ) from None
    if not flags.FLAGS.is_parsed():  # grain asks absl for its flags; there are none
        flags.FLAGS.mark_as_parsed()
    cores = os.cpu_count() or 1
    if workers is None:
        sizes = [np.size(rows[k]) for k in range(first, min(first + 2, len(rows)))]
        enough = max(sizes, default=0) * (len(rows) - first) >= ENOUGH
        workers = min(16, cores - 1) if enough and cores > MANY else 0
    threads = 1 if workers else min(MANY, cores)
    data = grain.MapDataset.source(_Numbered(inputs, rows, then, first)).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    data = data.mp_prefetch(grain.MultiprocessingOptions(workers, 1), worker_init_fn=quiet)
    if place is not None:
        data = ThreadPrefetchIterDataset(data.map(place), prefetch_buffer_size=2)
    batches = iter(data)
    try:
        yield from batches
    finally:
        batches.close()


class Batches:
    """Batches to be read as often as one likes, each time ahead; a slice of them is one too.

    Args: as in `read`.
    """

    def __init__(
        self, inputs: Any, rows: Sequence[Any] | np.ndarray, then: Callable, place: Callable
    ):
        self.inputs, self.rows, self.then, self.place = inputs, rows, then, place

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return read(self.inputs, self.rows, self.then, place=self.place)

    def __getitem__(self, part: slice) -> Batches:
        return Batches(self.inputs, self.rows[part], self.then, self.place)


def quiet(worker: int, workers: int) -> None:
    """In a worker process: leave the accelerators to the parent."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
