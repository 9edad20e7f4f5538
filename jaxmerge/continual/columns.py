"""Which columns of a classifier belong to which task: ``info["own"]``, bool ``[tasks, columns]``.

A stream with classes says so in its `info`; methods that tell old classes from new ones ask here.

>>> import jax.numpy as jnp
>>> info = {"own": jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)}
>>> seen(info, 0).tolist(), old(info, 1).tolist(), old(info, 0).tolist()
([True, True, False, False], [True, True, False, False], [False, False, False, False])
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array

__all__ = ["old", "on_level", "own", "seen", "sigmoid", "table", "task_of"]


def table(info: Mapping[str, Array]) -> Array:
    """bool [tasks, columns].

    Args:
        info: of a stream; ``"own"``, bool [tasks, columns], says which columns a task has.

    Raises:
        ValueError: the stream has no columns of tasks.

    >>> info = {"own": jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)}
    >>> table(info).astype(int).tolist()
    [[1, 1, 0, 0], [0, 0, 1, 1]]
    """
    if not isinstance(info, dict) or "own" not in info:
        names = ", ".join(map(repr, info)) if isinstance(info, dict) else type(info).__name__
        raise ValueError(
            "This method asks which columns a task has: the stream's info needs 'own', bool "
            f"[tasks, columns]; it has {names or 'nothing'}."
        )
    return jnp.asarray(info["own"])


def own(info: Mapping[str, Array], task: Array) -> Array:
    """bool [columns] (or [B, columns] for task [B]): the columns of a task.

    Args:
        info: of a stream; ``"own"``, bool [tasks, columns], says which columns a task has.
        task: int32 scalar, or [B], from 0.

    >>> info = {"own": jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)}
    >>> own(info, 1).tolist()
    [False, False, True, True]
    """
    return table(info)[task]


def seen(info: Mapping[str, Array], task: Array) -> Array:
    """bool [columns]: those of all tasks up to this one.

    Args:
        info: of a stream; ``"own"``, bool [tasks, columns], says which columns a task has.
        task: int32 scalar, from 0.

    >>> info = {"own": jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)}
    >>> seen(info, 0).tolist()
    [True, True, False, False]
    """
    every = table(info)
    return jnp.any(every & (jnp.arange(every.shape[0])[:, None] <= task), axis=0)


def old(info: Mapping[str, Array], task: Array) -> Array:
    """bool [columns]: those of all tasks before this one; none in the first.

    Args:
        info: of a stream; ``"own"``, bool [tasks, columns], says which columns a task has.
        task: int32 scalar, from 0.

    >>> info = {"own": jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)}
    >>> old(info, 1).tolist()
    [True, True, False, False]
    """
    return seen(info, task - 1)


def on_level(info: Mapping[str, Array], targets: Array) -> Array:
    """bool [B, columns]: those on the same level of a hierarchy as the targets [B].

    Args:
        info: of a stream of a hierarchy; ``"level"``, int [columns].
        targets: int [B], columns.

    Raises:
        ValueError: the stream has no levels.

    >>> on_level({"level": jnp.array([0, 1, 1])}, jnp.array([2])).tolist()
    [[False, True, True]]
    """
    if not isinstance(info, dict) or "level" not in info:
        raise ValueError(
            "Columns by level need a stream of a hierarchy, whose info has 'level', int [columns] "
            "(`jaxmerge.data.streams.hierarchy`)."
        )
    depth = jnp.asarray(info["level"])
    return depth == depth[targets][:, None]


def task_of(info: Mapping[str, Array]) -> Array:
    """int32 [columns]: the first task that has a column.

    Args:
        info: of a stream; ``"own"``, bool [tasks, columns], says which columns a task has.

    >>> info = {"own": jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)}
    >>> task_of(info).tolist()
    [0, 0, 1, 1]
    """
    return jnp.argmax(table(info), axis=0).astype(jnp.int32)


def sigmoid(logits: Array, targets: Array, columns: Array | None = None) -> Array:
    """Binary cross-entropy [B], the mean over the given columns (or all), against one-hot targets.

    Formula: mean_c softplus(z_c) - 1[c = y] z_c.

    Args:
        logits: [B, columns].
        targets: int [B], columns.
        columns: bool, broadcast against the logits; None for all.

    >>> sigmoid(jnp.zeros((1, 4)), jnp.array([2])).round(3)
    Array([0.693], dtype=float32)
    """
    hot = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    losses = jax.nn.softplus(logits) - hot * logits
    if columns is None:
        return jnp.mean(losses, -1)
    return jnp.sum(jnp.where(columns, losses, 0), -1) / jnp.sum(columns, -1)
