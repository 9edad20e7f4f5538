"""A memory of examples with balanced classes that gives up what has helped least.

Every example has an importance H: how much the mean loss of the memory has fallen when it was
trained on. A new example takes a free slot; in a full memory, the slot of the least important
example of the largest class, the newcomer counted. Ties of classes go to the one met first (on the
coarsest level), ties of H to the oldest example.

Memory: the examples, and six numbers for each.

Source: Koh et al., CLIB, ICLR 2022, section 4.1, algorithm 1; naver-ai/i-Blurry.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxmerge.continual import buffers
from jaxmerge.core.types import Array, Tree

LATE = jnp.iinfo(jnp.int32).max


class Importance(NamedTuple):
    """Examples and what they were worth.

    Attributes:
        rows: leaves [M, ...], what is stored.
        met: int32, how many examples have come.
        label: int32 [M], -1 in a free slot.
        age: int32 [M], the number of the example in the stream.
        value: [M], H.
        loss: [M], of the last update.
        fresh: bool [M], written since then; used: int32 [M], how often trained on since then.
        first: int32 [C], the number of the first example of a class.
        updates: int32.
    """

    rows: Tree
    met: Array
    label: Array
    age: Array
    value: Array
    loss: Array
    fresh: Array
    used: Array
    first: Array
    updates: Array


def empty(size: int, classes: int, like: Tree, dtype: DTypeLike = jnp.float32) -> Importance:
    """No example yet.

    Args:
        size: M, examples that it has room for.
        classes: C.
        like: a batch of what is stored, leaves [B, ...].
        dtype: of importances and losses.

    >>> empty(2, 3, jnp.zeros((1,))).label.tolist()
    [-1, -1]
    """
    buffer = buffers.empty(size, like)
    whole, real = jnp.zeros(size, jnp.int32), jnp.zeros(size, dtype)
    return Importance(
        buffer["rows"], buffer["met"], whole - 1, whole, real, real, whole > 0, whole,
        jnp.full(classes, LATE), jnp.int32(0),
    )  # fmt: skip


def insert(
    memory: Importance, rows: Tree, labels: Array, weight: Array, level: Array | None = None
) -> tuple[Importance, Array]:
    """Examples come in, one after the other.

    Args:
        memory: of `empty`, `insert` or `update`.
        rows: leaves [B, ...].
        labels: int [B].
        weight: [B], 0 where there is no example.
        level: int [C], the depth of a class in a hierarchy; None: all alike.

    Returns:
        The memory, and int32 [B], the slots; their number where nothing was written.

    >>> memory = empty(2, 3, jnp.zeros((1,)))
    >>> memory, slots = insert(memory, jnp.array([5.0, 6.0]), jnp.array([0, 1]), jnp.ones(2))
    >>> memory.rows.tolist(), slots.tolist()
    ([5.0, 6.0], [0, 1])
    """
    size, classes = memory.label.size, memory.first.size
    level = jnp.zeros(classes, jnp.int32) if level is None else jnp.asarray(level)

    def one(carry, x):
        label, age, value, fresh, first, met = carry
        y, ok = x
        first = first.at[y].min(jnp.where(ok, met, LATE))
        taken = label >= 0
        counts = jnp.zeros(classes, jnp.int32).at[jnp.where(taken, label, classes)].add(1)
        counts = counts.at[y].add(1)
        largest = counts == jnp.max(counts)
        largest = largest & (level == jnp.min(jnp.where(largest, level, LATE)))
        gives = label == jnp.argmin(jnp.where(largest, first, LATE))
        least = gives & (value == jnp.min(jnp.where(gives, value, jnp.inf)))
        full = met >= size
        slot = jnp.where(full, jnp.argmin(jnp.where(least, age, LATE)), met)
        others = (label == y) & (jnp.arange(size) != slot)
        mean = lambda on: jnp.sum(jnp.where(on, value, 0)) / jnp.maximum(jnp.sum(on), 1)
        start = jnp.where(jnp.any(others), mean(others), jnp.where(full, mean(taken), 0))
        slot = jnp.where(ok, slot, size).astype(jnp.int32)
        put = lambda old, new: old.at[slot].set(new, mode="drop")
        return (
            put(label, y), put(age, met), put(value, start), put(fresh, True), first, met + ok,
        ), slot  # fmt: skip

    start = memory.label, memory.age, memory.value, memory.fresh, memory.first, memory.met
    every, slots = jax.lax.scan(one, start, (labels.astype(jnp.int32), weight > 0))
    stored = buffers.write({"rows": memory.rows, "met": memory.met}, rows, slots, weight)
    label, age, value, fresh, first, met = every
    return memory._replace(
        rows=stored["rows"], met=met, label=label, age=age, value=value, fresh=fresh, first=first
    ), slots


def draw(memory: Importance, key: Array, count: int) -> tuple[Tree, Array, Array]:
    """Examples drawn without replacement, their weight (0 where there are too few), and slots.

    Args:
        memory: of `empty`, `insert` or `update`.
        key: PRNG key.
        count: how many, at most M.

    >>> memory = empty(2, 3, jnp.zeros((1,)))
    >>> memory, slots = insert(memory, jnp.array([5.0, 6.0]), jnp.array([0, 1]), jnp.ones(2))
    >>> rows, weight, slots = draw(memory, jax.random.key(0), 2)
    >>> sorted(rows.tolist()), weight.tolist()
    ([5.0, 6.0], [1.0, 1.0])
    """
    rank = jnp.where(memory.label >= 0, jax.random.uniform(key, memory.label.shape), 2.0)
    slots = jnp.argsort(rank)[:count]
    weight = (memory.label[slots] >= 0).astype(memory.value.dtype)
    return jax.tree.map(lambda x: x[slots], memory.rows), weight, slots


def use(memory: Importance, slots: Array, weight: Array) -> Importance:
    """Examples in these slots were trained on.

    Args:
        memory: of `empty`, `insert` or `update`.
        slots: int32 [B].
        weight: [B], 0 where there is no example.

    >>> memory = empty(2, 3, jnp.zeros((1,)))
    >>> memory, slots = insert(memory, jnp.array([5.0, 6.0]), jnp.array([0, 1]), jnp.ones(2))
    >>> use(memory, slots, jnp.array([1.0, 0.0])).used.tolist()
    [1, 0]
    """
    return memory._replace(used=memory.used.at[slots].add((weight > 0).astype(jnp.int32)))


def update(memory: Importance, losses: Array, decay: float = 0.9) -> Importance:
    """Importances after steps of training.

    Formula: delta = mean of the new losses minus those of the last update, over the examples that
    were there then (0 the first time); with U the examples trained on since, each as often as it
    was, D = delta - mean(H[U]) / |U|, and H <- H - (1 - decay) D for each of U once.

    Args:
        memory: of `empty`, `insert` or `update`.
        losses: [M], of every slot, by the model as it is now.
        decay: of the importances, in [0, 1].

    >>> memory = empty(2, 3, jnp.zeros((1,)))
    >>> memory, slots = insert(memory, jnp.array([5.0, 6.0]), jnp.array([0, 1]), jnp.ones(2))
    >>> update(memory, jnp.array([2.0, 1.0])).loss.tolist()
    [2.0, 1.0]
    """
    old = (memory.label >= 0) & ~memory.fresh
    count = jnp.sum(old)
    delta = jnp.sum(jnp.where(old, losses - memory.loss, 0)) / jnp.maximum(count, 1)
    delta = jnp.where(memory.updates > 0, delta, 0)
    total = jnp.sum(memory.used).astype(losses.dtype)
    mean = jnp.sum(memory.used * memory.value) / jnp.maximum(total, 1)
    change = (1 - decay) * (delta - mean / jnp.maximum(total, 1))
    value = jnp.where(memory.used > 0, memory.value - change.astype(memory.value.dtype),
                      memory.value)  # fmt: skip
    return memory._replace(
        value=value, loss=jnp.where(memory.label >= 0, losses, 0),
        fresh=jnp.zeros_like(memory.fresh), used=jnp.zeros_like(memory.used),
        updates=memory.updates + 1,
    )  # fmt: skip
