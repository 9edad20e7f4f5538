"""A transform that depends on the depth of the layer in which a leaf lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxmerge.core.patterns import Pattern, PatternError, compile_pattern
from jaxmerge.core.ranges import Number
from jaxmerge.core.registry import register
from jaxmerge.core.types import Leaves, Transform
from jaxmerge.io.architectures.stacks import depths_of
from jaxmerge.transforms.scaling import scale

__all__ = ["lines"]

Block = str | Callable[[str], float | None]


@register
def lines(alpha: Number = 0.1, beta: Number = 0.9, block: Block | None = None) -> Transform:
    """LiNeS: scale the change of every block by its depth, shallow blocks least.

    Formula: (alpha + beta l / (L-1)) tau in block l = 0..L-1; alpha tau outside the blocks.

    Args:
        alpha: factor of the first block and of every leaf outside the blocks.
        beta: how much more the last block gets.
        block: by default the layers that `jaxmerge.io.architectures` finds, those of each tower by
            themselves; a recipe knows the model's family besides.  Else a regex whose first group
            is the block's number in a leaf's name (what stands before the match tells towers
            apart), or a function ``name -> depth in [0, 1]``, None outside the blocks.

    Use it on one fine-tuned model, ``jm.chain(jm.add(), jm.lines())``, or after any merge,
    ``jm.chain(jm.ties(), jm.lines(0.3, 0.7))``.

    Memory: 0.

    Source: Wang et al., LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model
    Merging, ICLR 2025, equation 3.

    Differs: where there is one block only, it counts as the last.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> model = {f"block_{i}/w": np.ones(1, np.float32) for i in range(3)}
        >>> merged = jm.merge(jm.chain(jm.add(), jm.lines(0.2, 0.8)), None, [model])
        >>> [float(x[0].round(3)) for x in merged.values()]
        [0.20000000298023224, 0.6000000238418579, 1.0]
    """
    if block is None or callable(block):
        return Transform(_routed, route=_by_depth(alpha, beta, block))
    try:
        pattern = compile_pattern(block)
    except PatternError as error:
        raise ValueError(f"block: {error}") from None
    if pattern.groups < 1:
        raise ValueError(f"block needs a group for the number of the block, got {block!r}.")

    def route(name: str, like: Leaves) -> Transform:
        depth = depths(like, pattern)
        return scale(alpha + beta * depth[name]) if name in depth else scale(alpha)

    return Transform(_routed, route=route)


def _by_depth(
    alpha: Number, beta: Number, depth_of: Callable[[str], float | None] | None
) -> Callable:
    seen: list[tuple[Leaves, dict[str, float]]] = []  # every leaf of a model asks

    def route(name: str, like: Leaves) -> Transform:
        if depth_of is not None:
            depth = depth_of(name)
        else:
            if not seen or seen[-1][0] is not like:
                seen[:] = [(like, depths_of({n: tuple(x.shape) for n, x in like.items()}))]
            depth = seen[-1][1].get(name)
        return scale(alpha) if depth is None else scale(alpha + beta * depth)

    return route


def depths(like: Leaves, pattern: Pattern) -> dict[str, float]:
    """The depth in [0, 1] of every leaf that lies in a block: 0 the first block, 1 the last."""
    matches = {n: m for n in like if (m := pattern.search(n))}
    wrong = [n for n, m in matches.items() if not (m[1] or "").isdecimal()]
    if wrong:
        raise ValueError(
            f"block: the first group of {pattern.pattern!r} should be the number of a block; in "
            f"{wrong[0]!r} it is {matches[wrong[0]][1]!r}."
        )
    towers: dict[str, set[int]] = {}
    for n, m in matches.items():
        towers.setdefault(n[: m.start()], set()).add(int(m[1]))
    order = {tower: sorted(numbers) for tower, numbers in towers.items()}

    def depth(n, m):
        numbers = order[n[: m.start()]]
        return numbers.index(int(m[1])) / (len(numbers) - 1) if len(numbers) > 1 else 1.0

    return {n: depth(n, m) for n, m in matches.items()}


def _routed(*_: Any) -> Any:
    raise TypeError("lines() depends on the leaf's name; run it in a chain with jm.merge().")
