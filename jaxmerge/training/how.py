"""How every task is trained: epochs, batches, and the optimiser with its rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.continual.optimisers import cosine
from jaxmerge.continual.registry import optimisers
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import is_whole
from jaxmerge.errors import listed

WHOLE = ("epochs", "batch", "chunk", "accumulate")  # fields that are counts
OF_ADAMW = ("rate", "warmup", "weight_decay", "clip")  # fields that an optimiser takes the place of


@dataclasses.dataclass(frozen=True)
class Training:
    """How every task is trained.

    Attributes:
        epochs: passes over the task's training examples.
        batch: examples a step; batches run across the borders of epochs, none is smaller.
        rate: peak learning rate.
        warmup: share of the task's steps (float) or a number of steps (int) in which the rate
            rises; the release of MagMax uses 500 steps, longer than some of its tasks.
        weight_decay: of AdamW, on all weights.
        clip: greatest norm of the gradient.
        chunk: steps in one compiled call.
        accumulate: parts in which a batch passes through the model; its gradient is their mean.
        dtype: of matrix products, "float32" or "bfloat16"; weights and moments stay float32.
        optimiser: a registered one (`jaxmerge.continual.optimisers`): its spec, its name, or
            ``{name: {setting: value}}``.  It has a rate of its own, so the four fields from `rate`
            to `clip` are left out beside it.  None: AdamW under a cosine, made of those four.

    >>> Training(epochs=2, batch=4).steps(10), Training(optimiser={"sgd": {"rate": 0.5}}).optimiser
    (5, sgd(rate=0.5))
    """

    epochs: int = 4
    batch: int = 32
    rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    chunk: int = 8
    accumulate: int = 1
    dtype: str = "float32"
    optimiser: Spec | str | Mapping[str, Any] | None = None

    def __post_init__(self):
        wrong = [
            f"{name} must be at least 1, and whole, got {getattr(self, name)!r}"
            for name in WHOLE
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1
        ]
        wrong += [
            f"{name} must be positive, got {getattr(self, name)}"
            for name in ("rate", "clip")
            if not getattr(self, name) > 0
        ]
        if isinstance(self.warmup, float) and not 0 <= self.warmup <= 1:
            wrong.append(f"warmup is a share in [0, 1] or a whole number, got {self.warmup}")
        if not self.weight_decay >= 0:
            wrong.append(f"weight_decay must not be negative, got {self.weight_decay}")
        if not wrong and self.batch % self.accumulate:
            wrong.append(f"batch {self.batch} is not a multiple of accumulate {self.accumulate}")
        if self.dtype not in ("float32", "bfloat16"):
            wrong.append(f"dtype is float32 or bfloat16, got {self.dtype!r}")
        if self.optimiser is not None:
            try:
                chosen = optimisers.from_settings(self.optimiser)
                object.__setattr__(self, "optimiser", chosen)
                if beside := [n for n in OF_ADAMW if getattr(self, n) != getattr(Training, n)]:
                    wrong.append(beside_optimiser(chosen, beside))
            except (TypeError, ValueError) as error:
                wrong.append(f"optimiser: {str(error).rstrip('.')}")
        if wrong:
            raise ValueError(f"Training: {listed(wrong)}")
        for name in WHOLE:
            object.__setattr__(self, name, int(getattr(self, name)))

    def steps(self, examples: int) -> int:
        """Steps for a task of that many examples, at least one.

        Args:
            examples: of the task.
        """
        return max(1, self.epochs * examples // self.batch)

    def under(self, optimiser: Spec | str | Mapping[str, Any] | None) -> Training:
        """The same under another optimiser, in the place of AdamW's four fields; None: as it is.

        Args:
            optimiser: as the field.

        >>> Training(rate=0.1).under("sgd").optimiser
        sgd()
        """
        if optimiser is None:
            return self
        left_out = {n: getattr(Training, n) for n in OF_ADAMW}
        return dataclasses.replace(self, optimiser=optimiser, **left_out)

    def optimiser_of(self, total: int | None = None) -> Spec:
        """The optimiser of a task of `total` steps: `optimiser`, or AdamW under a cosine.

        Args:
            total: steps; None where the stream knows them.

        >>> Training(rate=0.1).optimiser_of()
        cosine(rate=0.1, warmup=0.1, weight_decay=0.1, clip=1.0)
        """
        if isinstance(self.optimiser, Spec):
            return self.optimiser
        share = isinstance(self.warmup, float)
        steps = self.warmup * (total or 1) if share else self.warmup
        warm = None if share and total is None else np.float32(steps)
        decay, clip = float(self.weight_decay), float(self.clip)
        return cosine(float(self.rate), self.warmup if share else 0.0, decay, clip, warm)


def beside_optimiser(optimiser: Any, names: Sequence[str]) -> str:
    """What is wrong with fields of AdamW beside an optimiser, in words.

    Args:
        optimiser: spec, or plain settings.
        names: of the fields.

    >>> beside_optimiser("sgd", ["rate"])
    "rate is AdamW's under a cosine, and the optimiser is 'sgd'; give rate to one of them only"
    """
    each = " and ".join(names)
    return (
        f"{each} {'is' if len(names) == 1 else 'are'} AdamW's under a cosine, and the optimiser is "
        f"{optimiser!r}; give {each} to one of them only"
    )
