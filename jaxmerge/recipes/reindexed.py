"""A model with its tables of tokens in the output's vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.architectures import architecture
from jaxmerge.io.safetensors import Leaves, Whole

if TYPE_CHECKING:
    from jaxmerge.recipes.vocabulary import Vocabulary

MEAN, ZERO = -1, -2  # in place of a source's number


class Reindexed(Whole):
    """A source whose embedding rows are those of the output's vocabulary."""

    def __init__(self, vocabulary: Vocabulary, k: int):
        super().__init__()
        self.vocabulary, self.k, self.source = vocabulary, k, vocabulary.sources[k]
        self.ref, self.folder, self.files = self.source.ref, self.source.folder, self.source.files
        self.config, self.made_of = self.source.config, architecture(self.source)
        self.stamps = {p: s for other in vocabulary.sources for p, s in other.stamps.items()}
        self.mapped = vocabulary.indexed(self.source)
        self.like = {
            n: like._replace(shape=self._shape(n, like.shape)) if n in self.mapped else like
            for n, like in self.source.like.items()
        }

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = self.made_of.token_axis(name)
        return (*shape[:axis], self.vocabulary.size, *shape[axis + 1 :])

    def _rows(self, source: Leaves, name: str) -> np.ndarray:
        """A leaf with tokens along its first axis."""
        return np.moveaxis(source[name], self.made_of.token_axis(name), 0)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name not in self.mapped:
            return self.source.read(name, start, stop)
        return super().read(name, start, stop)

    def into(self, out: np.ndarray, name: str, start: int = 0) -> None:
        if name in self.mapped:
            out[:] = self.read(name, start, start + len(out))
        else:
            self.source.into(out, name, start)

    def load(self, name: str) -> np.ndarray:
        v, like = self.vocabulary, self.like[name]
        own = v.own[self.k]
        take = (own >= 0) & ~v.force
        whole = np.zeros(like.shape, like.dtype)
        out = np.moveaxis(whole, self.made_of.token_axis(name), 0)
        out[take] = self._rows(self.source, name)[own[take]]
        todo = np.flatnonzero(~take)
        for k, other in enumerate(v.sources):
            here = todo[v.fill_source[todo] == k]
            if here.size:
                rows = v.fill_row[here]
                self._has(other, name, rows)
                out[here] = self._rows(other, name)[rows]
        mean = todo[v.fill_source[todo] == MEAN]
        if mean.size:
            total, count = np.zeros((mean.size, *out.shape[1:]), np.float32), 0
            for k, other in enumerate(v.sources):
                there = v.own[k, mean] >= 0
                if there.any():
                    rows = self._rows(other, name)[v.own[k, mean[there]]]
                    total[there] += rows.astype(np.float32)
                count = count + there
            shape = (-1,) + (1,) * (len(like.shape) - 1)
            out[mean] = (total / np.maximum(count, 1).reshape(shape)).astype(like.dtype)
        return whole

    def _has(self, other: Leaves, name: str, rows: np.ndarray) -> None:
        if name not in other:
            raise UserError(f"tokenizer: {getattr(other, 'ref', 'a model')} has no leaf {name!r}.")

    def close(self) -> None:
        self.source.close()
