"""Registered optimisers: optax transformations as specs, whose rates may be traced.

An optimiser is made anew for every task.  A factory returns an optax transformation, or a function
of the task's number of steps that does, where its schedule must know them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxmerge.continual.registry import NonNegative, Positive, Range, Share, optimisers
from jaxmerge.core.ranges import Number
from jaxmerge.core.specs import Spec, thawed
from jaxmerge.core.types import Array, concrete

Optimiser = optax.GradientTransformation | Callable[[Array], optax.GradientTransformation]
Momentum = Annotated[float, Range("a number in [0, 1)", lambda v: 0 <= v < 1)]


def _clipped(
    clip: float | None, *rest: optax.GradientTransformation
) -> optax.GradientTransformation:
    return (
        optax.chain(*rest) if clip is None else optax.chain(optax.clip_by_global_norm(clip), *rest)
    )


@optimisers.register
def sgd(
    rate: Positive = 0.1,
    momentum: Momentum | None = None,
    weight_decay: NonNegative | None = None,
    clip: Positive | None = None,
) -> optax.GradientTransformation:
    """SGD as in torch: decay enters the gradient, momentum is not dampened.

    Args:
        rate: learning rate, positive.
        momentum: in [0, 1), None for none; a number, 0 included, may be traced and holds the
            moments.
        weight_decay: 0 or more; None for none.
        clip: greatest norm of the gradient, None: not clipped.

    Example:
        >>> opt = sgd(0.5).build()
        >>> w = {"w": jnp.ones(1)}
        >>> opt.update(w, opt.init(w), w)[0]["w"].round(3)
        Array([-0.5], dtype=float32)
    """
    parts = [] if weight_decay is None else [optax.add_decayed_weights(weight_decay)]
    parts += [] if momentum is None else [optax.trace(momentum)]
    return _clipped(clip, *parts, optax.scale_by_learning_rate(rate))


def is_linear(optimiser: Spec) -> bool:
    """Whether what it proposes is a linear function of the task's gradients, leaf by leaf: plain
    SGD, with or without momentum.

    Args:
        optimiser: spec of one.

    >>> is_linear(sgd(0.1, momentum=0.9)), is_linear(sgd(0.1, clip=1.0)), is_linear(adam())
    (True, False, False)
    """
    there = optimiser.arguments
    other = [thawed(there.get(k)) is not None for k in ("weight_decay", "clip")]
    return optimiser.factory is inspect.unwrap(sgd) and not any(other)


@optimisers.register
def adam(
    rate: Positive = 1e-3, b1: Momentum = 0.9, b2: Momentum = 0.999, clip: Positive | None = None
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, ICLR 2015).

    Args:
        rate: learning rate, positive.
        b1, b2: decay of the first and of the second moment, in [0, 1).
        clip: greatest norm of the gradient, None: not clipped.

    Example:
        >>> opt = adam(0.5).build()
        >>> w = {"w": jnp.ones(1)}
        >>> opt.update(w, opt.init(w), w)[0]["w"].round(3)
        Array([-0.5], dtype=float32)
    """
    return _clipped(clip, optax.adam(rate, b1, b2))


@optimisers.register
def adamw(
    rate: Positive = 1e-3, weight_decay: NonNegative = 0.01, clip: Positive | None = None
) -> optax.GradientTransformation:
    """AdamW at a constant rate (Loshchilov and Hutter, ICLR 2019).

    Args:
        rate: learning rate, positive.
        weight_decay: times the rate, taken off the weights; 0 or more.
        clip: greatest norm of the gradient, None: not clipped.

    Example:
        >>> opt = adamw(0.5, weight_decay=0.2).build()
        >>> w = {"w": jnp.ones(1)}
        >>> opt.update(w, opt.init(w), w)[0]["w"].round(3)
        Array([-0.6], dtype=float32)
    """
    return _clipped(clip, optax.adamw(rate, weight_decay=weight_decay))


@optimisers.register
def cosine(
    rate: Positive = 1e-4,
    warmup: Share = 0.1,
    weight_decay: NonNegative = 0.1,
    clip: Positive = 1.0,
    warm: Number | None = None,
) -> Callable[[Array], optax.GradientTransformation]:
    """AdamW, its rate rising in a share of a task's steps and falling as half a cosine.

    Args:
        rate: the peak, positive.
        warmup: share of the task's steps, in [0, 1].
        weight_decay: of AdamW, 0 or more.
        clip: greatest norm of the gradient.
        warm: the number of steps in which the rate rises, in place of the share.

    Example:
        >>> opt = cosine(0.5, warm=2, weight_decay=0.0).build()(10)
        >>> w = {"w": jnp.ones(1)}
        >>> opt.update(w, opt.init(w), w)[0]["w"].round(3)
        Array([-0.25], dtype=float32)
    """

    def of(total):
        total = jnp.asarray(total, jnp.float32)
        rise = warmup * total if warm is None else jnp.asarray(warm, jnp.float32)
        curve = partial(learning_rate, rate=rate, warm=rise, total=total)
        return _clipped(clip, optax.adamw(curve, weight_decay=weight_decay))

    return of


def learning_rate(count: Array, rate: Array, warm: Array, total: Array) -> Array:
    """Linear in `warm` steps up to the peak, then a half cosine that would reach 0 after `total`.

    Step k (from 0) reads the curve at k + 1: the first step moves and the last does not vanish.

    >>> [round(float(learning_rate(k, 1.0, 2.0, 10.0)), 3) for k in (0, 1, 9)]
    [0.5, 1.0, 0.03]

    Args:
        count: int32, the step, from 0.
        rate: the peak.
        warm: steps until the peak.
        total: steps in all.
    """
    k = jnp.asarray(count, jnp.float32)
    rise = (k + 1) / jnp.maximum(warm, 1)
    part = (k + 1 - warm) / jnp.maximum(total - warm + 1, 1)
    fall = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(part, 0, 1)))
    return rate * jnp.where(k + 1 <= warm, rise, fall)


@optimisers.register
def by_name(
    rules: Sequence[tuple[str, Optimiser]],
) -> Callable[[Array], optax.GradientTransformation]:
    """Parameter groups with optimisers of their own.

    Args:
        rules: pairs of a regular expression and an optimiser, the first that matches the whole
            name of a leaf counts: ``by_name((("head/.*", sgd(0.1)), (".*", sgd(0.01))))``.  In
            settings an optimiser is a name, or a name with its settings: ``{sgd: {rate: 0.1}}``.

    Raises:
        ValueError: a pattern that is none; a leaf that no rule matches, when the optimiser meets
            the leaves.

    Example:
        >>> opt = by_name((("head/.*", sgd(0.1)), (".*", sgd(0.5)))).build()(10)
        >>> w = {"w": jnp.ones(1)}
        >>> opt.update(w, opt.init(w), w)[0]["w"].round(3)
        Array([-0.5], dtype=float32)
    """
    if not all(isinstance(rule, tuple | list) and len(rule) == 2 for rule in rules):
        raise ValueError(f"by_name: rules are pairs of a pattern and an optimiser, got {rules!r}.")
    patterns = [_pattern(p) for p, _ in rules]
    named = lambda o: optimisers.from_settings(o).build() if isinstance(o, str | Mapping) else o
    rules = [(p, named(o)) for p, o in rules]
    made = lambda o, total: o if hasattr(o, "update") else o(total)

    def label(leaves):
        first = {n: next((p.pattern for p in patterns if p.fullmatch(n)), None) for n in leaves}
        left = [n for n, p in first.items() if p is None]
        if left:
            raise ValueError(
                f"by_name: no rule matches {len(left)} leaves, such as {left[0]!r}; end with '.*'."
            )
        return first

    def of(total):
        groups: dict[Hashable, Any] = {p: made(o, total) for p, o in rules}
        return optax.partition(groups, label)

    return of


def gives_gradient(optimiser: Spec, leaf: str) -> bool:
    """Whether what it proposes for a leaf is the gradient with the other sign: ``sgd(1.0)``, alone
    or as the rule of `by_name` for this leaf.

    Args:
        optimiser: spec of one; a rate that is traced is taken to be 1.
        leaf: its name.

    >>> mixed = by_name((("head/.*", sgd(1.0)), (".*", adam())))
    >>> gives_gradient(mixed, "head/kernel"), gives_gradient(mixed, "w"), gives_gradient(sgd(), "w")
    (True, False, False)
    """
    there = optimiser.arguments
    if optimiser.factory is inspect.unwrap(by_name):
        own = (o for p, o in there["rules"] if _pattern(thawed(p)).fullmatch(leaf))
        rule = next(own, None)
        if not isinstance(rule, Spec | None):
            rule = optimisers.from_settings(thawed(rule))
        return rule is not None and gives_gradient(rule, leaf)
    momentum, rate = thawed(there.get("momentum")), thawed(there.get("rate"))
    plain = is_linear(optimiser) and momentum is None
    return plain and (not concrete(rate) or bool(np.all(np.asarray(rate) == 1)))


def _pattern(text: Any) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise ValueError(f"by_name: {text!r} is no regular expression ({error}).") from None
