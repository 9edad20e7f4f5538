"""Low-rank adaptation, one pair a task."""

from __future__ import annotations

from collections.abc import Sequence

from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, Pattern, Positive, methods
from jaxmerge.continual.wraps.kernels import changeable
from jaxmerge.continual.wraps.lora import Use, with_lora


@methods.register
def lora(
    rank: Count = 8,
    alpha: Positive = 32.0,
    target: Pattern = ".*",
    use: Use = "own",
    train: Pattern | None = None,
    ranks: Sequence[tuple[Pattern, Count]] = (),
    alphas: Sequence[tuple[Pattern, Positive]] = (),
    rslora: bool = False,
    dora: bool = False,
) -> Method:
    """LoRA: the network is frozen, every task trains a low-rank change of its kernels.

    Formula: W + (alpha / rank) A B at each kernel W [in, out]; A uniform within +-1 / sqrt(in), B
    zero at the start.

    Args:
        rank: of one task's pair.
        alpha: the change is scaled by alpha / rank.
        target: regular expression of the kernels that get a pair.
        use: "own": each task its own pair, which the test must be given the task to choose (without
            it the last pair answers); "sum": the pairs of all tasks so far are summed; "shared":
            sequential LoRA, one pair that all tasks train.
        train: regular expression of leaves that train as well, such as ``"^head/"``.
        ranks, alphas: of some kernels, ``[(regular expression, value), ...]``; the first that is
            found in a kernel's name counts.
        rslora: alpha / sqrt(rank) in the place of alpha / rank (arXiv 2312.03732).
        dora: the lengths of the kernels' columns train too (arXiv 2402.09353).

    Memory: tasks x rank x (in + out) numbers a kernel.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, eq. 3;
    "sum" without a penalty is "icrlora" of cmnfriend/O-LoRA.

    >>> lora(4, use="shared", train="^head/")
    lora(rank=4, use='shared', train='^head/')
    """

    def wrap(model, tasks):
        more = {"ranks": ranks, "alphas": alphas, "rslora": rslora, "dora": dora}
        return with_lora("lora", model, tasks, rank, alpha, target, use, train, **more)

    return Method(wrap=wrap, claims=lambda model, params: changeable(model, params, target))
