"""A base with an adapter on it, each leaf computed when it is read.

Formulas, in float32 (float64 on a float64 base):

    kernel [out, in]        W + s B A
    kernel [in, out]        W + s (B A)'        GPT-2's Conv1D; which is which is asked of
                                                `jaxmerge.io.architectures` where shapes do not say
    convolution             W + s B A, the product over the rank
    embedding               W + s (B A)'
    DoRA                    V = W + s B A, then V m / |V| over the inputs, for each output
    bias                    b + s (the bias of B)
    modules_to_save, biases, rows of trained tokens take the place of the base's

A head that is tied and not stored gets a leaf of its own, the embedding and the change, and
`tie_word_embeddings` becomes false.  Where a copy of the adapted leaf is saved with the adapter (a
vocabulary that grew), it is W.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmerge.core.names import other_prefix
from jaxmerge.errors import UserError, bounded
from jaxmerge.io.adapters.adapter import Adapter, Module
from jaxmerge.io.architectures import Architecture, architecture
from jaxmerge.io.architectures import configs as keys
from jaxmerge.io.architectures.config_changes import vocabulary_changes
from jaxmerge.io.computed import Computation, Computed
from jaxmerge.io.safetensors import Like

Load = Callable[[], np.ndarray]


def applied(base: Any, adapter: Adapter) -> tuple[Computed, dict[str, Any]]:
    """The leaves of `base` with the adapter on them, and their config.

    Args:
        base: an opened model (`jaxmerge.io.opened_model.Source`).

    Raises:
        UserError: leaves of the adapter that fit no leaf of the base, all of them; from headers.
    """
    result = _Applied(base, adapter)
    result.collect()
    return result.result()


class _Applied:
    def __init__(self, base: Any, adapter: Adapter):
        self.base, self.adapter = base, adapter
        self.arch: Architecture = architecture(base)
        self.computed: dict[str, Computation] = {}
        self.wrong: list[str] = []
        self.absent: list[str] = []
        self.grown: dict[str, int] = {}
        self.untied = False

    def collect(self) -> None:
        for leaf, key in self.adapter.replaced.items():
            self._replace(leaf, key)
        for module in self.adapter.modules.values():
            self._change(module)
        for leaf, (key, rows) in self.adapter.tokens.items():
            self._tokens(leaf, key, rows)
        self._check_grown()

    def result(self) -> tuple[Computed, dict[str, Any]]:
        if self.absent:
            self.wrong.insert(0, self._no_leaf())
        if self.wrong:
            where = self.base.ref
            raise UserError(
                f"{self.adapter.folder} does not fit its base {where}: {bounded(self.wrong)}."
            )
        config, changes = self.base.config(), {}
        if self.untied:
            ties = [p for p, _ in keys.walk(config) if p[-1] == "tie_word_embeddings"]
            changes |= dict.fromkeys(ties or [("tie_word_embeddings",)], False)
        for n, size in self.grown.items():
            rows = self.base.like[self._leaf(n) or n].shape[0]
            changes |= vocabulary_changes(self.arch, rows, size)
        computed = Computed(self.base, self.computed)
        computed.stamps = self.base.stamps | self.adapter.file.stamps
        return computed, keys.changed(config, changes) if config else config

    def _no_leaf(self) -> str:
        """That modules are not there; names a prefix where that is all."""
        hint = other_prefix(self.absent, [n.rpartition(".")[0] for n in self.base])
        message = f"{len(self.absent)} of its modules are not there, for example {self.absent[0]!r}"
        return message + (
            f" (its names begin with {hint[0]!r} where the base's begin with {hint[1]!r})"
            if hint
            else ""
        )

    # ------------------------------------------------------------ leaves of the base

    def _leaf(self, leaf: str) -> str | None:
        """The leaf of the base under a name; a tied head that is not stored is its embedding."""
        leaf = self.arch.stored(leaf)
        if leaf in self.base:
            return leaf
        bare = leaf.removesuffix(".weight")
        if leaf.endswith(".weight") and bare in self.base:
            return bare
        return next((n for n in self.arch.copies(leaf) if n in self.base), None)

    def _add(self, leaf: str, target: str, shape: tuple[int, ...], load: Load) -> None:
        like = self.base.like[target]
        wide = np.dtype(np.float64 if like.dtype == np.float64 else np.float32)
        leaf = self.arch.stored(leaf)
        tied = target not in (leaf, leaf.removesuffix(".weight"))
        name = leaf if tied else target
        self.untied |= tied
        parts = () if tied else (target,)
        self.computed[name] = Computation(
            Like(shape, wide, like.stored), lambda: load().astype(wide, copy=False), parts
        )

    def _base(self, leaf: str, target: str) -> tuple[tuple[int, ...], Load]:
        """W: what a replacing leaf or a copy saved with the adapter holds, else the base's."""
        key = self.adapter.copies.get(leaf)
        if key is not None:
            return self.adapter.file.like[key].shape, lambda: self.adapter.file[key]
        return self.base.like[target].shape, lambda: self.base[target]

    # ------------------------------------------------------------ what an adapter does

    def _replace(self, leaf: str, key: str) -> None:
        target, shape = self._leaf(leaf), self.adapter.file.like[key].shape
        if self._tied_copy(leaf, target, key):
            return
        if target is None:
            self.absent.append(leaf)
        elif self._fits(leaf, target, shape):
            self._add(leaf, target, shape, lambda: self.adapter.file[key])

    def _tied_copy(self, leaf: str, target: str | None, key: str) -> bool:
        """Whether a head that the base does not store is saved equal to the table it is tied to;
        the one case in which values decide, as nothing else says that it stays tied."""
        table = self.adapter.replaced.get(target or "")
        if target is None or leaf in self.base or table is None or table == key:
            return False
        file = self.adapter.file
        return file.like[table] == file.like[key] and bool(np.array_equal(file[table], file[key]))

    def _fits(self, leaf: str, target: str, shape: tuple[int, ...]) -> bool:
        """Whether a leaf may take another's place: the same shape, or a vocabulary that grew."""
        have = self.base.like[target].shape
        if shape == have:
            return True
        if self.arch.vocabulary(target) and len(shape) == len(have) and shape[1:] == have[1:]:
            self.grown[leaf] = shape[0]
            return True
        self.wrong.append(f"{leaf!r} is {list(shape)}, the base's {list(have)}")
        return False

    def _change(self, module: Module) -> None:
        leaf = f"{module.path}.weight"
        target = self._leaf(leaf)
        if target is None:
            self.absent.append(module.path)
            return
        copy = self.adapter.copies.get(leaf)
        if copy and not self._fits(leaf, target, self.adapter.file.like[copy].shape):
            return
        shape, weights = self._base(leaf, target)
        down, up = (self.adapter.file.like[k].shape for k in (module.down, module.up))
        product = (down[1], up[0]) if module.embedding else (up[0], *down[1:])
        flip = not module.embedding and self._transposed(module, target, shape, product)
        if shape != (product[::-1] if flip else product):
            self.wrong.append(f"the product for {module.path!r} is {list(product)}, the base's "
                              f"leaf {list(shape)}")  # fmt: skip
            return
        outputs = len(product) - 1 if flip or module.embedding else 0  # axis of the outputs
        if module.magnitude and self.adapter.file.like[module.magnitude].size != shape[outputs]:
            self.wrong.append(f"{module.magnitude!r} does not have {shape[outputs]} entries")
            return

        def load() -> np.ndarray:
            w, delta = weights(), self.adapter.product(module)
            w = w.astype(np.float64 if w.dtype == np.float64 else np.float32)
            w += delta.T if flip else delta
            if module.magnitude:
                others = tuple(i for i in range(w.ndim) if i != outputs)
                norm = np.sqrt(np.sum(np.square(w), axis=others, keepdims=True))
                w *= self.adapter.file[module.magnitude].astype(w.dtype).reshape(norm.shape) / norm
            return w

        self._add(leaf, target, shape, load)
        if module.bias:
            self._bias(module)

    def _transposed(self, module: Module, leaf: str, shape, product) -> bool:
        """Whether the kernel is stored [in, out]: from its shape, else from its family, else from
        the other kernels of this adapter and its settings."""
        if len(product) != 2 or shape not in (product, product[::-1]):
            return False
        if product[0] != product[1]:
            return shape == product[::-1]
        if self.arch.known is not None:
            return self.arch.transposed(leaf)
        votes = [v for m in self.adapter.modules.values() if (v := self._vote(m)) is not None]
        if votes:
            return any(votes)
        declared = bool(self.adapter.config.get("fan_in_fan_out"))
        return declared or self.arch.transposed(leaf)

    def _vote(self, module: Module) -> bool | None:
        """The orientation of a kernel that is not square; None where shapes do not say."""
        target = self._leaf(f"{module.path}.weight")
        down, up = (self.adapter.file.like[k].shape for k in (module.down, module.up))
        if module.embedding or target is None or len(down) != 2 or up[0] == down[1]:
            return None
        shape = self.base.like[target].shape
        return {(up[0], down[1]): False, (down[1], up[0]): True}.get(shape)

    def _bias(self, module: Module) -> None:
        leaf, key = f"{module.path}.bias", module.bias
        assert key is not None
        if leaf not in self.base or self.adapter.file.like[key].shape != self.base.like[leaf].shape:
            self.wrong.append(f"{key!r} fits no bias of the base")
            return
        before = self.computed.get(leaf)

        def load() -> np.ndarray:
            b = self.base[leaf] if before is None else before.load()
            return b.astype(np.float32) + np.float32(module.scale) * self.adapter.file[key]

        self._add(leaf, leaf, self.base.like[leaf].shape, load)

    def _tokens(self, leaf: str, key: str, rows: list[int]) -> None:
        target = self._leaf(leaf)
        if target is None:
            self.absent.append(leaf)
            return
        shape, before = self.base.like[target].shape, self.computed.get(target)
        if self.adapter.file.like[key].shape[1:] != shape[1:] or max(rows, default=0) >= shape[0]:
            self.wrong.append(f"{key!r} fits no rows of {leaf!r} {list(shape)}")
            return

        def load() -> np.ndarray:
            w = (self.base[target] if before is None else before.load()).astype(np.float32)
            w[rows] = self.adapter.file[key].astype(np.float32)
            return w

        self._add(leaf, target, shape, load)

    def _check_grown(self) -> None:
        """A vocabulary grows in all leaves that have a row for every token, or in none."""
        if not self.grown:
            return
        old = {self.base.like[self._leaf(n) or n].shape[0] for n in self.grown}
        like = {n: c.like for n, c in self.computed.items()}
        for n, x in {**self.base.like, **like}.items():
            grows = self.arch.vocabulary(n) if n in self.base else True
            if grows and x.ndim and x.shape[0] in old and n not in self.grown:
                size = next(iter(self.grown.values()))
                self.wrong.append(f"{next(iter(self.grown))!r} has {size} rows, {n!r} "
                                  f"{x.shape[0]}")  # fmt: skip
