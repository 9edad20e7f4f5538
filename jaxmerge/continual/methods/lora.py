"""Low-rank adaptation, one pair a task."""

from __future__ import annotations

from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, Positive, methods
from jaxmerge.continual.wraps.lora import Use, with_lora


@methods.register
def lora(
    rank: Count = 8,
    alpha: Positive = 32.0,
    target: str = ".*",
    use: Use = "own",
    train: str | None = None,
) -> Method:
    """LoRA: the network is frozen, every task trains a low-rank change of its kernels.

    Formula: W + (alpha / rank) A B at each kernel W [in, out]; A uniform within +-1 / sqrt(in), B
    zero at the start.

    Args:
        rank: of one task's pair.
        target: regular expression of the kernels that get a pair.
        use: "own": each task its own pair, which the test must be given the task to choose (without
            it the last pair answers); "sum": the pairs of all tasks so far are summed; "shared":
            sequential LoRA, one pair that all tasks train.
        train: regular expression of leaves that train as well, such as ``"^head/"``.

    Memory: tasks x rank x (in + out) numbers a kernel.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, eq. 3;
    "sum" without a penalty is "icrlora" of cmnfriend/O-LoRA.

    >>> lora(4, use="shared", train="^head/")
    lora(rank=4, use='shared', train='^head/')
    """

    def wrap(model, tasks):
        return with_lora(model, tasks, rank, alpha, target, use, train)

    return Method(wrap=wrap)
