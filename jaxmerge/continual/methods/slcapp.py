"""SLCA++: a symmetric loss, draws that spread with their age, heads that read more of old tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual import columns
from jaxmerge.continual.methods.slca import Alignment, align, slow_learner
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, Positive, Share, methods
from jaxmerge.core.types import Array


@methods.register
def slcapp(
    slow: Share = 0.1,
    ce: NonNegative = 1.0,
    reverse: NonNegative = 0.1,
    spread: NonNegative = 0.02,
    epochs: Count = 5,
    per_class: Count = 256,
    rate: Positive = 0.01,
    momentum: Share = 0.9,
    weight_decay: NonNegative = 5e-4,
    temperature: Positive | None = 0.1,
    ridge: Positive = 1e-4,
    examples: Count = 10_000,
    head: str = "head",
) -> Method:
    """SLCA++ but for its low-rank updates: put `lora` beside it, or let the whole trunk train.

    Formula: as `slca`, but the objective over the columns of the task, p their softmax, is

        ce CE + reverse RCE,   RCE = -sum_k clip(p_k, 1e-7, 1) log clip(1[k = y], 1e-4, 1)

    no mean is shrunk, a draw of a class of task t_c is divided by
    1 + (spread + 0.02 (u - 1/2)) (t - t_c), u uniform in [0, 1), and the aligned head reads its
    input, not its bias, times 1 + spread (t - t_c).

    Args:
        slow: s; 1 where the optimiser has groups of its own.
        ce, reverse: a, b; 1 and 0.1 (CIFAR-100, CUB), 0.5 and 0.5 (Cars, ImageNet-R).
        spread: mu.
        epochs, per_class, rate, momentum, weight_decay, temperature, ridge, examples, head: as in
            `slca`; the authors' weight decay is 0 for Cars and ImageNet-R.

    Memory: as `slca`.

    Source: Zhang et al., SLCA++: Unleash the Power of Sequential Fine-tuning for Continual Learning
    with Pre-training, 2024 (arXiv 2408.08295); GengDavid/SLCA, whose optimiser falls as a cosine to
    a rate above 0 that all groups share.

    Differs:
        LoRA beside it starts at random, theirs from the singular vectors of the kernel, scaled by
        0.8: ``lora(4, alpha=3.2, use="shared", train="^head/")``. The scale of the inputs is put
        into the kernel of the aligned head, which only predicts. Their rates by epoch and group,
        and the output of their LoRA layers, have no counterpart here and are not compared.

    >>> slcapp(reverse=0.5, ce=0.5)
    slcapp(ce=0.5, reverse=0.5)
    """
    plan = Alignment(epochs, per_class, rate, momentum, weight_decay, temperature)

    def objective(out, batch, info, task):
        own = columns.own(info, batch.task)
        return symmetric(out.logits, batch.targets, own, ce, reverse)

    def finish(known, trained, info, t, key):
        age = jnp.maximum(t - columns.task_of(info), 0)

        def apart(z, u):
            by = 1 + (spread + 0.02 * (u - 0.5)) * age[:, None]
            return z / by[..., None].astype(z.dtype)

        aligned = align(known, trained, info, t, key, plan, apart)
        kernel, bias = (aligned[n] for n in trained)
        scaled = kernel * (1 + spread * age).astype(kernel.dtype)[None]
        return dict(zip(trained, (scaled, bias), strict=True))

    return slow_learner(slow, ridge, examples, head, finish, objective)


def symmetric(
    logits: Array, labels: Array, own: Array, ce: float | Array, reverse: float | Array
) -> Array:
    """[B]: a CE + b RCE over the columns `own`, bool [B, C] or [C].

    Source: Wang et al., Symmetric Cross Entropy, ICCV 2019, with SLCA++'s clips.
    """
    log = jax.nn.log_softmax(jnp.where(own, logits, -jnp.inf), -1)
    hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    one = -jnp.take_along_axis(log, labels[:, None], -1)[:, 0]
    p = jnp.where(own, jnp.clip(jnp.exp(log), 1e-7, 1), 0)
    other = -jnp.sum(p * jnp.log(jnp.clip(hot, 1e-4, 1)), -1)
    return ce * one + reverse * other
