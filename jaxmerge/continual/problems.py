"""Registered problems and evaluators: classification over columns of a head, next tokens.

The information of a stream that they read: the columns of each task (`jaxmerge.continual.columns`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxmerge.continual.columns import on_level, own, seen, sigmoid
from jaxmerge.continual.contrast import unit
from jaxmerge.continual.registry import Positive, evaluators, problems
from jaxmerge.continual.stream_records import Evaluator, Problem, as_stored
from jaxmerge.core.types import Array


def cross_entropy(logits: Array, targets: Array, mask: Array | None = None) -> Array:
    """Of integer targets, over the columns where `mask` is True.

    Args:
        logits: [..., columns].
        targets: int32 [...], columns.
        mask: bool, broadcast against the logits; None for all columns.

    Example:
        >>> logits, mask = jnp.zeros((1, 4)), jnp.array([True, True, False, False])
        >>> cross_entropy(logits, jnp.array([0]), mask).round(3)
        Array([0.693], dtype=float32)
    """
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


@evaluators.register
def accuracy() -> Evaluator:
    """Task-agnostic: the right class among all columns.

    Example:
        >>> from jaxmerge.continual.records import Outputs
        >>> out, y = Outputs(jnp.array([[1.0, 2.0, 3.0]])), jnp.array([1])
        >>> accuracy().build().score(out, y, {})
        Array([0.], dtype=float32)
    """
    return Evaluator(lambda out, y, info: _right(out.logits, y))


@evaluators.register
def aware() -> Evaluator:
    """Task-aware: the task is given, and only its own columns compete.

    Example:
        >>> from jaxmerge.continual.records import Outputs
        >>> out, y = Outputs(jnp.array([[1.0, 2.0, 3.0]])), jnp.array([1])
        >>> aware().build().score(out, y, {"own": jnp.array([[True, True, False]])})
        Array([1.], dtype=float32)
    """

    def score(out, y, info):
        return _right(jnp.where(jnp.asarray(info["own"]), out.logits, -jnp.inf), y)

    return Evaluator(score, task_aware=True)


@evaluators.register
def met() -> Evaluator:
    """Task-agnostic: the right class among the columns of the tasks so far.

    Example:
        >>> from jaxmerge.continual.records import Outputs
        >>> out, y = Outputs(jnp.array([[1.0, 2.0, 3.0]])), jnp.array([1])
        >>> met().build().score(out, y, {"met": jnp.array([[True, True, False]])})
        Array([1.], dtype=float32)
    """
    return Evaluator(lambda out, y, info: _right(_among(out, info["met"]), y))


@evaluators.register
def level() -> Evaluator:
    """The right class among the columns met so far on its own level of a hierarchy.

    Example:
        >>> from jaxmerge.continual.records import Outputs
        >>> out, y = Outputs(jnp.array([[1.0, 2.0, 3.0]])), jnp.array([1])
        >>> info = {"level": jnp.array([[0, 0, 1]]), "met": jnp.ones((1, 3), bool)}
        >>> level().build().score(out, y, info)  # the largest logit is that of another level
        Array([1.], dtype=float32)
    """
    return Evaluator(lambda out, y, info: _right(_among(out, _level(info, y)), y))


@evaluators.register
def level_or_below() -> Evaluator:
    """As `level`, right too where the parent of the answer one level below is the class.

    The level below counts from two classes met on.

    Source: the released code of Lee et al., HLE, ICCV 2023, which evaluates coarse labels so.

    Example:
        >>> from jaxmerge.continual.records import Outputs
        >>> out, y = Outputs(jnp.array([[2.0, 1.0, 0.0, 3.0]])), jnp.array([1])
        >>> info = {"level": jnp.array([[0, 0, 1, 1]]), "parent": jnp.array([[-1, -1, 0, 1]])}
        >>> info |= {"met": jnp.ones((1, 4), bool)}
        >>> level_or_below().build().score(out, y, info)
        Array([1.], dtype=float32)
    """

    def score(out, y, info):
        rows = jnp.arange(y.shape[0])
        below = (info["level"] == info["level"][rows, y][:, None] + 1) & info["met"]
        answer = jnp.argmax(_among(out, below), -1)
        hit = (info["parent"][rows, answer] == y) & (jnp.sum(below, -1) > 1)
        return jnp.maximum(_right(_among(out, _level(info, y)), y), hit.astype(jnp.float32))

    return Evaluator(score)


def _level(info: Any, y: Array) -> Array:
    """bool [B, columns]: those met on the level of the label."""
    return (info["level"] == info["level"][jnp.arange(y.shape[0]), y][:, None]) & info["met"]


def _among(out: Any, mask: Array) -> Array:
    return jnp.where(mask, out.logits, -jnp.inf)


@evaluators.register
def perplexity() -> Evaluator:
    """exp of the mean negative log-likelihood a token; targets of -1 are not predicted.

    Example:
        >>> from jaxmerge.continual.records import Outputs
        >>> measure, out = perplexity().build(), Outputs(jnp.zeros((1, 2, 4)))
        >>> score = measure.score(out, jnp.array([[3, -1]]), {})
        >>> measure.finish(score).round(3)  # four equal tokens
        Array([4.], dtype=float32)
    """
    return Evaluator(
        lambda out, y, info: token_loss(out.logits, y), finish=jnp.exp, lower_is_better=True
    )


def _right(logits: Array, targets: Array) -> Array:
    return (logits.argmax(-1) == targets).astype(jnp.float32)


@problems.register
def classification(
    columns: Literal["all", "seen", "own", "level"] = "all",
    metrics: Sequence[str] = ("accuracy", "aware"),
    view: Callable | None = None,
    loss: Literal["softmax", "sigmoid"] = "softmax",
) -> Problem:
    """Cross-entropy over columns of the head.

    Args:
        columns: that compete in training: all, those of the tasks so far, those of the task that an
            example is from (of the trained task where it is from a later one), or those of the
            tasks so far on the label's own level of a hierarchy.
        metrics: names of registered evaluators.
        view: ``(stored, info, task [B], key) -> inputs``; the same function object for equal specs.
        loss: "softmax", or "sigmoid": binary cross-entropy of each column, their mean.

    Example:
        >>> from jaxmerge.continual.records import Batch, Outputs
        >>> out = Outputs(jnp.zeros((1, 4)))
        >>> batch = Batch(None, jnp.array([2]), jnp.zeros(1, int), jnp.ones(1))
        >>> classification().build().objective(out, batch, {}, 0).round(3)
        Array([1.386], dtype=float32)
    """

    def objective(out, batch, info, task):
        mask = {
            "all": lambda: None,
            "seen": lambda: seen(info, task),
            "own": lambda: own(info, batch.task),
            "level": lambda: on_level(info, batch.targets) & seen(info, task),
        }[columns]()
        if loss == "sigmoid":
            return sigmoid(out.logits, batch.targets, mask)
        return cross_entropy(out.logits, batch.targets, mask)

    evaluators_of = {n: evaluators.get(n)().build() for n in metrics}
    columns_of = lambda out: (0, out.logits.shape[-1] - 1)
    return Problem(objective, evaluators_of, view or as_stored, columns_of)


@evaluators.register
def recall() -> Evaluator:
    """Of pairs: the right text is nearest to the image among those of the group (R@1).

    Example:
        >>> from jaxmerge.continual.records import Outputs
        >>> out = Outputs(None, aux={"image": jnp.eye(2), "text": jnp.eye(2)})
        >>> recall().build().score(out, None, {})
        Array([1., 1.], dtype=float32)
    """

    def score(out, y, info):
        s = unit(out.aux["image"]) @ unit(out.aux["text"]).T
        return (jnp.argmax(s, -1) == jnp.arange(len(s))).astype(jnp.float32)

    return Evaluator(score)


@evaluators.register
def same_class() -> Evaluator:
    """Of pairs: the text that is nearest to the image is of its class, among those of the group.

    Example:
        >>> from jaxmerge.continual.records import Outputs
        >>> out = Outputs(None, aux={"image": jnp.eye(2), "text": jnp.eye(2)[::-1]})
        >>> same_class().build().score(out, jnp.array([3, 3]), {})
        Array([1., 1.], dtype=float32)
    """

    def score(out, y, info):
        s = unit(out.aux["image"]) @ unit(out.aux["text"]).T
        return (y[jnp.argmax(s, -1)] == y).astype(jnp.float32)

    return Evaluator(score)


@problems.register
def pairs(temperature: Positive = 0.07, metrics: Sequence[str] = ("recall",)) -> Problem:
    """Images and their texts: each is found among the others of its batch.

    Formula: (CE(I T' / t) + CE(T I' / t)) / 2 with the target on the diagonal, rows of length 1.
    The model gives ``aux["image"]`` and ``aux["text"]`` [B, p].

    Args:
        temperature: t, positive.
        metrics: names of registered evaluators; "same_class" where texts are captions of classes,
            of which several are alike, and targets the classes.

    Source: Radford et al., CLIP, 2021 (arXiv 2103.00020), figure 3, with a fixed temperature.

    Example:
        >>> from jaxmerge.continual.records import Batch, Outputs
        >>> out = Outputs(None, aux={"image": jnp.eye(2), "text": jnp.eye(2)})
        >>> batch = Batch(None, None, jnp.zeros(2, int), jnp.ones(2))
        >>> pairs(temperature=0.1).build().objective(out, batch, {}, 0).round(3)
        Array([0., 0.], dtype=float32)
    """

    def objective(out, batch, info, task):
        s = unit(out.aux["image"]) @ unit(out.aux["text"]).T / temperature
        real, place = batch.weight > 0, jnp.arange(len(s))
        one, two = (cross_entropy(jnp.where(real[None], x, -1e30), place) for x in (s, s.T))
        return (one + two) / 2

    return Problem(objective, {n: evaluators.get(n)().build() for n in metrics})


def token_loss(logits: Array, targets: Array) -> Array:
    """[B]: mean negative log-likelihood of the targets ``[B, L]`` that are not -1.

    Args:
        logits: [B, L, vocabulary].
        targets: int32 [B, L], -1 where nothing is predicted.

    Example:
        >>> token_loss(jnp.zeros((1, 2, 4)), jnp.array([[3, -1]])).round(3)
        Array([1.386], dtype=float32)
    """
    losses = cross_entropy(logits, jnp.maximum(targets, 0))
    real = (targets >= 0).astype(losses.dtype)
    return jnp.sum(losses * real, -1) / jnp.maximum(jnp.sum(real, -1), 1)


@problems.register
def next_token() -> Problem:
    """Targets int ``[B, L]``, the next token at each place, -1 where there is none to predict.

    Example:
        >>> from jaxmerge.continual.records import Batch, Outputs
        >>> out = Outputs(jnp.zeros((1, 2, 4)))
        >>> batch = Batch(None, jnp.array([[3, -1]]), jnp.zeros(1, int), jnp.ones(1))
        >>> next_token().build().objective(out, batch, {}, 0).round(3)
        Array([1.386], dtype=float32)
    """
    return Problem(
        lambda out, batch, info, task: token_loss(out.logits, batch.targets),
        {"perplexity": perplexity().build()},
        labels=lambda out: (-1, out.logits.shape[-1] - 1),
    )
