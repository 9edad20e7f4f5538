"""Checkpoints of the loop: all that a stream has learnt and measured, written after every task.

The folds of merges have files of their own (`jaxmerge.studies.fold_states`), written before it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp

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
    for k, model in enumerate(stream.models):
        path = stream.store / f"task_{k:02d}.safetensors"
        if k == t or not path.exists():  # one that could not be written then
            checkpoint.save(path, model)
    stream.states.check_written()
    tasks = [task.name for task in stream.scenario]
    record = Record(stream.done, tasks, stream.outcomes, stream.seconds, stream.losses)
    checkpoint.save(stream.store / STATE, _tree(stream), dataclasses.asdict(record))
    data_parallel.wait("checkpoint")  # the other processes read it too
    stream.states.commit()
    if stream.halfway is not None:
        stream.halfway.clear()


def restore(stream: Stream) -> None:
    """Put a stream where its last checkpoint was, if it has one.

    Raises:
        ValueError: the checkpoint is damaged, or of other tasks.
    """
    if stream.store is None or not (stream.store / STATE).exists():
        return
    path = stream.store / STATE
    record = from_plain(Record, checkpoint.record(path), str(path))
    _check(stream, record, path)
    tree, _ = checkpoint.load(path, _tree(stream), place=jnp.asarray)
    stream.last, stream.memory = tree["last"], tree["memory"]
    stream.done = record.done
    stream.states.restore(record.done)
    stream.outcomes, stream.seconds, stream.losses = record.outcomes, record.seconds, record.losses
    stream.models = [
        checkpoint.load(path.parent / f"task_{t:02d}.safetensors")[0]
        for t in range(min(stream.keep, stream.done))
    ]


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


def _tree(stream: Stream) -> dict:
    return {"last": dict(stream.last), "memory": stream.memory}
