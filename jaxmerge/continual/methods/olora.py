"""O-LoRA: a LoRA for every task, orthogonal to those before."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, Pattern, Positive, methods
from jaxmerge.continual.wraps.kernels import changeable
from jaxmerge.continual.wraps.lora import A, B, with_lora
from jaxmerge.core.types import Array


@methods.register
def olora(
    strength: NonNegative = 0.5,
    decay: NonNegative = 0.0,
    rank: Count = 8,
    alpha: Positive = 32.0,
    target: Pattern = ".*",
    train: Pattern | None = None,
) -> Method:
    """O-LoRA: every task trains its own pair in directions that no earlier pair reads.

    Formula: W + (alpha / rank) sum_{k <= t} A_k B_k, and the loss gets

        strength sum over kernels and k < t of sum_ij |A_k' A_t|_ij
        + decay sum over kernels of (|A_t|_F + |B_t|_F)

    Args:
        strength: lambda 1.
        decay: lambda 2; norms, not squared. The gradient of a norm at zero is zero.
        rank: of one task's pair.
        alpha: the change is scaled by alpha / rank.
        target: regular expression of the kernels that get a pair (T5: query and value).
        train: regular expression of leaves that train as well, such as ``"^head/"``.

    Memory: tasks x rank x (in + out) numbers a kernel.

    Source: Wang et al., Orthogonal Subspace Learning for Language Model Continual Learning,
    Findings of EMNLP 2023, eq. 6 to 8; cmnfriend/O-LoRA, ``uie_trainer_lora.py``.

    Differs:
        The penalty is the code's: absolute values, where the paper writes squares.

    >>> olora(rank=4)
    olora(rank=4)
    """

    def wrap(model, tasks):
        return with_lora("olora", model, tasks, rank, alpha, target, "sum", train)

    def loss(model, step):
        total = 0.0
        for n, a in step.params.items():
            if n.endswith(A):
                b = step.params[n.removesuffix(A) + B]
                before = (jnp.arange(len(a)) < step.task)[:, None, None] * jax.lax.stop_gradient(a)
                old = jnp.moveaxis(before, 0, 1).reshape(a.shape[1], -1)
                now, out = a[step.task], b[step.task]
                total += strength * overlap(old, now) + decay * (norm(now) + norm(out))
        return total

    return Method(
        wrap=wrap, loss=loss, claims=lambda model, params: changeable(model, params, target)
    )


def overlap(old: Array, new: Array) -> Array:
    """sum |A_old' A_new| of A_old [in, r_old] and A_new [in, r]."""
    return jnp.sum(jnp.abs(old.T @ new))


def norm(x: Array) -> Array:
    """Frobenius norm; its gradient at zero is zero."""
    square = jnp.sum(x**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
