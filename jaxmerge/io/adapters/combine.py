"""Several adapters of one base as one, in the ways of PEFT's `add_weighted_adapter`.

With t the adapters that change a module, w_t their weights, s_t their scales:

    ===============  ==========================================================================
    cat              A = [w_t s_t A_t], B = [B_t]: exactly the sum of w_t s_t B_t A_t; ranks add up
    linear           A = sum sign(w_t) sqrt(|w_t| s_t) A_t, B = sum sqrt(|w_t| s_t) B_t
    magnitude_prune  A_t and B_t cut to their floor(density n) largest entries, then as linear
    ties             cut likewise; the sign of their plain sum (0 counts as +); the mean of the
                     weighted entries that have it
    dare_linear      entries kept with probability density and divided by it, then as linear
    dare_ties        dropped likewise, then as ties
    svd, X_svd       the same of the products s_t B_t A_t (with weights w_t), cut to a rank: U S, V'
    ===============  ==========================================================================

A and B are combined apart in all but `cat` and the ones with `svd`: what comes out is no sum of the
changes (cross terms), and of a negative weight only A takes the sign.  The result has scale 1.

Differs from PEFT: of equal magnitudes the first stay; random masks depend on the seed, the leaf and
the adapter's place; density 0 gives zero where PEFT divides by it; a module that an adapter lacks
costs no rank (PEFT pads with zeros); adapters with DoRA are refused (PEFT leaves its magnitudes).

Source: PEFT 0.21, `tuners/lora/model.py` and `utils/merge_utils.py` (formulas).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmerge.errors import UserError, bounded, closest
from jaxmerge.io.adapters.adapter import PREFIX, Adapter, Module
from jaxmerge.io.adapters.arrays import F32, cut, cut_factors, reduce
from jaxmerge.io.computed import Computation, Computed
from jaxmerge.io.safetensors import Leaves, Like

APART = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS = ("cat", *APART, "svd", *(f"{name}_svd" for name in APART[1:]))
SIGNS = ("total", "frequency")


class Combination:
    """How adapters become one.

    Args:
        adapters: of one base.
        method: one of `METHODS`.
        weights: one for each adapter, 1 by default.
        density: share of entries that stay, in [0, 1].
        rank: of the methods with svd; by default the largest of the adapters.
        sign: how ties elects, by the "total" of the entries or by the "frequency" of their signs.
        seed: of dare's masks.

    Raises:
        UserError: a setting that the method lacks or does not take, adapters that cannot be
            combined; from settings and headers.
    """

    def __init__(
        self, adapters: Sequence[Adapter], method: str, *, weights: Sequence[float] | None = None,
        density: float | None = None, rank: int | None = None, sign: str = "total", seed: int = 0,
    ):  # fmt: skip
        self.adapters, self.method, self.seed, self.sign = list(adapters), method, seed, sign
        self._check(weights, density, rank)
        self.weights = [1.0] * len(adapters) if weights is None else [float(w) for w in weights]
        self.density = 1.0 if density is None else float(density)
        ranks = [m.rank for a in adapters for m in a.modules.values()]
        self.rank = max(ranks, default=1) if rank is None else rank
        paths = dict.fromkeys(p for a in adapters for p in a.modules)
        self.modules = {p: [a.modules.get(p) for a in adapters] for p in paths}
        self._check_modules()

    def _check(self, weights: Any, density: Any, rank: Any) -> None:
        method, count = self.method, len(self.adapters)
        if method not in METHODS:
            raise UserError(
                f"no way to combine adapters is named {method!r}: {closest(method, METHODS)}"
            )
        number = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v == v
        wrong = []
        if weights is not None and (
            not isinstance(weights, list | tuple)
            or len(weights) != count
            or not all(map(number, weights))
        ):
            wrong.append(f"weights must be {count} numbers, one for each adapter, got {weights!r}")
        if density is not None and not (number(density) and 0 <= density <= 1):
            wrong.append(f"density must be in [0, 1], got {density!r}")
        if method.removesuffix("_svd") in APART[1:] and density is None:
            wrong.append(f"{method} needs a density")
        if rank is not None and "svd" not in method:
            wrong.append(f"{method} takes no rank; svd does")
        elif rank is not None and (type(rank) is not int or rank < 1):
            wrong.append(f"rank must be at least 1, got {rank!r}")
        if self.sign not in SIGNS:
            wrong.append(f"sign must be total or frequency, got {self.sign!r}")
        if wrong:
            raise UserError(f"{'; '.join(wrong)}.")

    def _check_modules(self) -> None:
        wrong = []
        for a in self.adapters:
            dora = [m.path for m in a.modules.values() if m.magnitude]
            more = [*a.tokens, *(m.path for m in a.modules.values() if m.bias)]
            if dora:
                wrong.append(f"{a.folder} has DoRA's magnitudes, of {dora[0]!r}")
            if more:
                wrong.append(f"{a.folder} has rows or biases of its own, of {more[0]!r}")
        for path in self.modules:
            entries = self._of(path)
            products = {(d[1:], u[:1], m.embedding) for _, m, d, u in entries}
            ranks = {m.rank for _, m, _, _ in entries}
            if len(products) > 1:
                shapes = [f"A {list(d)}, B {list(u)} in {a.folder.name}" for a, _, d, u in entries]
                wrong.append(f"{path!r} differs in shape: {bounded(shapes, 2)}")
            elif self.method in APART and len(ranks) > 1:
                wrong.append(f"{path!r} has ranks {sorted(ranks)}; {self.method} needs equal ones")
        saved: dict[str, Adapter] = {}
        for a in self.adapters:
            for leaf in a.replaced:
                other = saved.setdefault(leaf, a)
                if other is not a:
                    wrong.append(f"{leaf!r} is saved whole by {other.folder} and {a.folder}")
        if wrong:
            raise UserError(f"The adapters cannot be combined: {bounded(wrong)}.")

    def _of(self, path: str) -> list[tuple[Adapter, Module, tuple, tuple]]:
        """The adapters that change a module, with the shapes of A and B."""
        return [
            (a, m, a.file.like[m.down].shape, a.file.like[m.up].shape)
            for a, m in zip(self.adapters, self.modules[path], strict=True)
            if m
        ]

    # ------------------------------------------------------------ one module

    def _width(self, path: str) -> int:
        """The rank of a module of the result."""
        entries = self._of(path)
        total = sum(m.rank for _, m, _, _ in entries)
        if self.method == "cat":
            return total
        _, module, down, up = entries[0]
        if self.method in APART:
            return module.rank
        most = min(int(np.prod(down[1:])), up[0])
        most = min(most, total) if self.method == "svd" else most  # a sum has no greater rank
        return min(self.rank, most)

    def factors(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """A [r, in] and B [out, r] of one module of the result, in float32."""
        rows = [
            (w, m.scale, *a.factors(m))
            for w, a, m in zip(self.weights, self.adapters, self.modules[path], strict=True)
            if m
        ]
        down = [a.reshape(len(a), -1) for _, _, a, _ in rows]
        up = [b.reshape(len(b), -1) for _, _, _, b in rows]
        key = (self.seed, zlib.crc32(path.encode()))
        if self.method in ("cat", "svd"):
            both = [np.float32(w * s) * a for (w, s, _, _), a in zip(rows, down, strict=True)]
            a, b = np.concatenate(both), np.concatenate(up, axis=1)
            return (a, b) if self.method == "cat" else cut_factors(a, b, self._width(path))
        if self.method in APART:
            roots = [np.sqrt(abs(w * s)) for w, s, _, _ in rows]
            signed = [
                r * (1 if w * s >= 0 else -1) for r, (w, s, _, _) in zip(roots, rows, strict=True)
            ]
            half = lambda x, w, n: reduce(self.method, x, w, self.density, self.sign, (*key, n))
            return half(down, signed, 0).astype(F32), half(up, roots, 1).astype(F32)
        products = [
            np.float32(s) * (b @ a) for (_, s, _, _), a, b in zip(rows, down, up, strict=True)
        ]
        weights = [w for w, *_ in rows]
        method = self.method.removesuffix("_svd")
        total = reduce(method, products, weights, self.density, self.sign, key)
        return cut(total, self._width(path))

    # ------------------------------------------------------------ the result

    def leaves(self) -> Computed:
        """The leaves of the result's adapter_model.safetensors, computed when they are read."""
        computed: dict[str, Computation] = {}
        dtypes = {a.file.like[m.down].dtype for a in self.adapters for m in a.modules.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else F32
        once = functools.lru_cache(1)(self.factors)
        for path in self.modules:
            _, module, down, up = self._of(path)[0]
            width = self._width(path)
            names = ("lora_embedding_A", "lora_embedding_B") if module.embedding else (
                "lora_A.weight", "lora_B.weight")  # fmt: skip
            shapes = (width, *down[1:]), (up[0], width, *up[2:])
            for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
                load = _load(once, path, i, shape)
                computed[f"{PREFIX}{path}.{name}"] = Computation(Like(shape, F32, dtype), load)
        for a in self.adapters:
            for leaf, key in {**a.copies, **a.replaced}.items():
                name = PREFIX + (leaf if leaf in a.replaced else _copy_name(leaf))
                if name not in computed:
                    like = a.file.like[key]
                    computed[name] = Computation(like, functools.partial(a.file.__getitem__, key))
        out = Computed(_Nothing(), computed)
        out.stamps = {p: s for a in self.adapters for p, s in a.file.stamps.items()}
        return out

    def config(self) -> dict[str, Any]:
        """The result's adapter_config.json: alpha = r, so that the scale is 1."""
        out = dict(self.adapters[0].config)
        widths = {p: self._width(p) for p in self.modules}
        most = max(widths.values(), default=1)
        short = {p: w for p, w in widths.items() if w != most}
        short = {p: short[p] for p in sorted(short, key=len, reverse=True)}
        limits = ("layers_to_transform", "layers_pattern", "exclude_modules")
        lists = [a.config.get("target_modules") for a in self.adapters]
        plain = all(isinstance(t, list) for t in lists)
        plain = plain and not any(a.config.get(k) for a in self.adapters for k in limits)
        wanted = {t for targets in lists for t in targets or ()} if plain else set(self.modules)
        whole = {m for a in self.adapters for m in a.config.get("modules_to_save") or []}
        return out | {
            "r": most, "lora_alpha": most, "rank_pattern": short, "alpha_pattern": short,
            "use_rslora": False, "target_modules": sorted(wanted), "init_lora_weights": True,
            "modules_to_save": sorted(whole) or None, **dict.fromkeys(limits),
        }  # fmt: skip


class _Nothing(Leaves):
    """No stored leaves: everything is computed."""

    like: dict[str, Like] = {}  # noqa: RUF012 - never changed

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        raise KeyError(name)


def _load(factors: Callable, path: str, i: int, shape: tuple) -> Callable[[], np.ndarray]:
    return lambda: factors(path)[i].reshape(shape)


def _copy_name(leaf: str) -> str:
    module, _, end = leaf.rpartition(".")
    return f"{module}.base_layer.{end}"
