"""Leaves that are computed from stored ones when they are read.

A file does not always hold what a model is made of: a quantised checkpoint holds packed integers
and scales, an adapter two factors of a change.  `Computed` presents the leaves of the model over
those of the file; whoever reads it sees names, shapes and dtypes as if they were stored so.

To plug in a format, write a function that looks at the stored leaves (`like` only, no values) and
returns ``name -> Computation``; see `jaxmerge.io.quantised` for the quantised ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from jaxmerge.io.safetensors import Leaves, Like, Whole


class Computation(NamedTuple):
    """One leaf and where it comes from.

    Attributes:
        like: what it is; its dtype is that of `load`, its storage that of an output.
        load: computes it, in its shape.
        parts: the stored leaves that it takes the place of.
    """

    like: Like
    load: Callable[[], np.ndarray]
    parts: Collection[str] = ()


class Computed(Whole):
    """A model of which leaves are computed; all others are the stored ones.

    Args:
        stored: what is in the files.
        computed: leaf -> how it is computed.  It stands where the first of its parts stood.
        hidden: stored leaves that are no part of the model, such as scales of activations.

    Memory: one leaf of `computed` for every thread that reads one.

    >>> from jaxmerge.io.safetensors import Like
    >>> class Dict(Leaves):
    ...     def __init__(self, leaves):
    ...         self.leaves = leaves
    ...         self.like = {n: Like(x.shape, x.dtype) for n, x in leaves.items()}
    ...     def read(self, name, start=0, stop=None):
    ...         return self.leaves[name].reshape(-1)[start:stop]
    >>> stored = Dict({"w.q": np.int8([2, 4]), "w.scale": np.float32([0.5])})
    >>> load = lambda: stored["w.q"] * stored["w.scale"]
    >>> w = Computation(Like((2,), np.dtype(np.float32)), load, ["w.q", "w.scale"])
    >>> model = Computed(stored, {"w": w})
    >>> list(model), model["w"].tolist()
    (['w'], [1.0, 2.0])
    """

    def __init__(
        self, stored: Leaves, computed: Mapping[str, Computation], hidden: Collection[str] = ()
    ):
        super().__init__()
        self.stored, self.computed, self.stamps = stored, dict(computed), stored.stamps
        self.like = {}
        gone = set(hidden).union(*(c.parts for c in computed.values()))
        instead: dict[str, list[str]] = {}
        for name, c in computed.items():
            instead.setdefault(next(iter(c.parts), name), []).append(name)
        for n, like in stored.like.items():
            self.like |= {name: computed[name].like for name in instead.get(n, ())}
            if n not in gone and n not in computed:
                self.like[n] = like
        self.like |= {n: c.like for n, c in computed.items() if n not in self.like}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name not in self.computed:
            return self.stored.read(name, start, stop)
        return super().read(name, start, stop)

    def into(self, out: np.ndarray, name: str, start: int = 0) -> None:
        if name in self.computed:
            out[:] = self.read(name, start, start + len(out))
        else:
            self.stored.into(out, name, start)

    def load(self, name: str) -> np.ndarray:
        return self.computed[name].load()

    def close(self) -> None:
        self.stored.close()
