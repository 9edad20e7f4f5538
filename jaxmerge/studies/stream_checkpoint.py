"""Checkpoints of the loop: all that a stream has learnt and measured, written after every task.

The folds of merges are read back from there when they are asked for (`folded`): while a task is
learnt nothing needs them, and a dozen take more memory than the training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxmerge.continual.deploys import Deploy
from jaxmerge.core.types import Slots
from jaxmerge.drivers import memory
from jaxmerge.drivers.memory import MergeState
from jaxmerge.errors import bounded
from jaxmerge.studies.conversion import from_plain
from jaxmerge.studies.outcomes import Outcome
from jaxmerge.training import checkpoint, data_parallel

if TYPE_CHECKING:
    from jaxmerge.studies.loop import Stream

STATE = "state.safetensors"


@dataclasses.dataclass
class Record:
    """What a checkpoint holds beside arrays.

    Attributes:
        done: how many tasks are learnt.
        tasks: names of all tasks.
        outcomes: label -> what was measured.
        seconds: phase -> seconds.
        losses: of every task that was trained here.
    """

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012
    done: int
    tasks: list[str]
    outcomes: dict[str, Outcome]
    seconds: dict[str, float]
    losses: list[list[float]]


def save(stream: Stream, t: int) -> None:
    """Write the checkpoint after task t, in place of the one before it."""
    if stream.store is None:
        return
    if t < stream.keep:
        checkpoint.save(stream.store / f"task_{t:02d}.safetensors", stream.models[t])
    tasks = [task.name for task in stream.scenario]
    record = Record(stream.done, tasks, stream.outcomes, stream.seconds, stream.losses)
    tree = _tree(stream, stream.states)
    checkpoint.save(stream.store / STATE, tree, dataclasses.asdict(record))
    data_parallel.wait("checkpoint")  # the other processes read it too
    stream.written = stream.done
    if stream.halfway is not None:
        stream.halfway.clear()


def restore(stream: Stream) -> None:
    """Put a stream where its last checkpoint was, if it has one; its folds stay on the disk.

    Raises:
        ValueError: the checkpoint is damaged, or of other tasks.
    """
    if stream.store is None or not (stream.store / STATE).exists():
        return
    path = stream.store / STATE
    record = from_plain(Record, checkpoint.record(path), str(path))
    _check(stream, record, path)
    like = _tree(stream, _forms(stream, record.done))
    tree, _ = checkpoint.load(path, like, ("last", "memory"), jnp.asarray)
    stream.last, stream.memory = tree["last"], tree["memory"]
    stream.done = stream.written = record.done
    stream.outcomes, stream.seconds, stream.losses = record.outcomes, record.seconds, record.losses
    stream.models = [
        checkpoint.load(path.parent / f"task_{t:02d}.safetensors")[0]
        for t in range(min(stream.keep, stream.done))
    ]


def folded(stream: Stream) -> dict[str, MergeState]:
    """Label -> state of its fold, after the tasks that are done: made, or read from the checkpoint.

    Raises:
        FileNotFoundError, ValueError: the checkpoint is gone, or another.
    """
    if not stream.done:
        return {
            fold.label: memory.init(fold.merge(), stream.folded, key=stream.key(fold))
            for fold in stream.folds()
        }
    assert stream.store is not None  # where there is none folds stay in memory
    path, forms = stream.store / STATE, _forms(stream, stream.done)
    tree, content = checkpoint.load(path, _tree(stream, forms), ("merges",), jnp.asarray)
    if content["done"] != stream.done:
        raise ValueError(f"{path} was written by another run: it has {content['done']} tasks.")
    return {
        fold.label: dataclasses.replace(
            forms[fold.label], key=stream.key(fold), **tree["merges"][fold.label]
        )
        for fold in stream.folds()
    }


def _forms(stream: Stream, done: int) -> dict[str, MergeState]:
    """Label -> the form of the state after so many tasks, of shapes and dtypes."""

    def form(fold: Deploy) -> MergeState:
        start = lambda base: memory.init(
            fold.merge(), base, key=stream.key(fold), models=done or None
        )
        state = jax.eval_shape(start, dict(stream.folded))
        rows = lambda c: isinstance(c, Slots)
        plain = lambda c: tuple(c) if rows(c) else c  # a stream's states grow with every model
        return dataclasses.replace(state, cells=jax.tree.map(plain, state.cells, is_leaf=rows))

    return {fold.label: form(fold) for fold in stream.folds()}


def _check(stream: Stream, record: Record, path: Path) -> None:
    """Raise ValueError unless the record is one of this stream."""
    tasks = [task.name for task in stream.scenario]
    if record.tasks != tasks:
        raise ValueError(
            f"{path}: the checkpoint is of the tasks {record.tasks}, this stream has {tasks}."
        )
    many, wrong = len(tasks), []
    if not 0 <= record.done <= many or len(record.losses) > record.done:
        wrong.append(f"{record.done} tasks are done, with {len(record.losses)} lists of losses")
    if set(record.outcomes) != set(stream.outcomes):
        wrong.append(f"it measures {sorted(record.outcomes)}, not {sorted(stream.outcomes)}")
    for label, o in record.outcomes.items():
        rows = {len(row) for matrix in (o.matrix, o.aware) for row in matrix} | {len(o.factors)}
        if rows | {len(o.matrix), len(o.aware)} != {many}:
            wrong.append(f"the figures of {label!r} are not of {many} tasks")
    if wrong:
        raise ValueError(f"{path} is damaged: {bounded(wrong)}. Delete it to begin again.")


def _tree(stream: Stream, states: Mapping[str, MergeState]) -> dict:
    cells = {label: {"step": s.step, "cells": s.cells} for label, s in states.items()}
    return {"last": dict(stream.last), "memory": stream.memory, "merges": cells}
