"""Orthogonal subspace fine-tuning."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmerge.continual.records import Method, Model
from jaxmerge.continual.registry import Pattern, Share, methods
from jaxmerge.continual.wraps.kernels import fan_in, matching, projected, reading
from jaxmerge.core.types import Array, Leaves
from jaxmerge.numerics.subspaces import outside

PARTS = ("left", "scale", "right")
FROZEN, FREE = "/osft_held_", "/osft_free_"


@methods.register(static=("ratio",))
def osft(ratio: Share = 0.5, target: Pattern = ".*") -> Method:
    """OSFT (Sculpting Subspaces): the leading directions of a kernel stay, the rest is trained.

    Formula: before each task a kernel W [in, out] = L diag(s) R is cut after rank
    k = floor(min(in, out) ratio), at most min(in, out) - 1; W = L_h diag(s_h) R_h + L diag(s) R,
    of which L [in, r], s [r], R [r, out] train. Before the optimiser
    dL <- dL - L_h L_h' dL and dR <- dR - dR R_h' R_h, and after it the same two projections of L
    and R themselves, so that no optimiser leaks into the directions that are held.

    Args:
        ratio: share of the rank that is held; the package's unfreeze_rank_ratio is 1 - ratio.
        target: regular expression of the kernels; what else trains goes on training freely.

    Memory: the factors, (in + out) min(in, out) numbers in place of in x out; an SVD a task.

    Source: Nayak et al., Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual
    Learning, 2025 (arXiv 2504.07097); mini_trainer, ``osft_utils.py`` 0.9.0. The paper's adaptive
    ranks are not in that package nor here: one ratio for all kernels.

    >>> osft(0.75)
    osft(ratio=0.75)
    """

    def wrap(model: Model, tasks: int) -> Model:
        def init(key):
            params = dict(model.init(key))
            for n in projected("osft", model, params, target):
                params |= cut(n, params.pop(n), ratio)
            return params

        def weights(params: Leaves) -> Leaves:
            own = {n: p for n, p in params.items() if FROZEN not in n and FREE not in n}
            return own | {n: rebuilt(n, params) for n in kernels(params)}

        def put(params, merged):
            whole = dict(model.put(weights(params), merged))
            for n in kernels(params):
                whole |= cut(n, whole.pop(n), ratio)
            return whole

        return reading(
            model, lambda params, task: weights(params), init=init, put=put,
            trainable=lambda n: FREE in n or (FROZEN not in n and model.trainable(n)),
        )  # fmt: skip

    def begin(model, params, memory, border):
        params = dict(params)
        for n in kernels(params):
            params |= cut(n, rebuilt(n, params), ratio)
        return params, memory

    def gradient(model, step, grads, grad_at):
        return grads | {n: free_part(n, step.params, g) for n, g in grads.items() if FREE in n}

    def update(model, step, updates):
        now = {n: step.params[n] + u for n, u in updates.items() if FREE in n}
        moved = {n: free_part(n, step.params, p) - step.params[n] for n, p in now.items()}
        return updates | moved, step.memory

    return Method(
        wrap=wrap, begin=begin, gradient=gradient, update=update,
        claims=lambda model, params: matching(model, params, target),
    )  # fmt: skip


def frozen_rank(rows: int, columns: int, ratio: float) -> int:
    """floor(min(rows, columns) ratio), at most one below full rank.

    >>> frozen_rank(12, 8, 0.5), frozen_rank(6, 6, 1.0), frozen_rank(1, 9, 1.0)
    (4, 5, 0)
    """
    full = min(rows, columns)
    return min(int(full * ratio), full - 1)


def kernels(params: Leaves) -> list[str]:
    """The kernels that are cut."""
    end = FREE + "scale"
    return [n.removesuffix(end) for n in params if n.endswith(end)]


def cut(name: str, kernel: Array, ratio: float) -> Leaves:
    """The factors of a kernel: the leading ones, and those that train.

    Left factors of a convolution are [height, width, in, r], so that the product has its shape.
    """
    *rows, columns = kernel.shape
    k = frozen_rank(fan_in(kernel), columns, ratio)
    left, s, right = jnp.linalg.svd(kernel.reshape(-1, columns), full_matrices=False)
    left = left.reshape(*rows, -1)
    frozen, free = (left[..., :k], s[:k], right[:k]), (left[..., k:], s[k:], right[k:])
    named = lambda which, parts: {name + which + p: x for p, x in zip(PARTS, parts, strict=True)}
    return named(FROZEN, frozen) | named(FREE, free)


def rebuilt(name: str, params: Leaves) -> Array:
    """The kernel of its factors."""

    def product(which):
        left, s, right = (params[name + which + p] for p in PARTS)
        return (left * s) @ right

    return product(FROZEN) + product(FREE)


def free_part(name: str, params: Leaves, x: Array) -> Array:
    """A free factor (or its change) without what lies in the directions that are held."""
    base, _, part = name.rpartition(FREE)
    if part == "scale":
        return x
    held = params[base + FROZEN + part]
    return outside(x, left=held) if part == "left" else outside(x, right=held.T)
