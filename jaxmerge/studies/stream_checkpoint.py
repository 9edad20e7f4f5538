"""Checkpoints of the loop: all that a stream has learnt and measured, written after every task."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxmerge.drivers import memory
from jaxmerge.studies.outcomes import Outcome
from jaxmerge.training import checkpoint

if TYPE_CHECKING:
    from jaxmerge.studies.loop import Stream


def save(stream: Stream, t: int) -> None:
    """Write the checkpoint after task t, in place of the one before it."""
    if stream.store is None:
        return
    if t < stream.keep:
        checkpoint.save(stream.store / f"task_{t:02d}.safetensors", stream.models[t])
    record = {
        "done": stream.done,
        "tasks": [task.name for task in stream.scenario],
        "outcomes": {k: dataclasses.asdict(o) for k, o in stream.outcomes.items()},
        "seconds": stream.seconds,
        "losses": stream.losses,
    }
    checkpoint.save(stream.store / "state.safetensors", _tree(stream), record)
    if stream.halfway is not None:
        stream.halfway.clear()


def restore(stream: Stream) -> None:
    """Put a stream where its last checkpoint was, if it has one.

    Raises:
        ValueError: the checkpoint is of other tasks.
    """
    if stream.store is None or not (stream.store / "state.safetensors").exists():
        return
    tree, record = checkpoint.load(stream.store / "state.safetensors", _tree(stream))
    tree = jax.tree.map(jnp.asarray, tree)
    if record["tasks"] != [task.name for task in stream.scenario]:
        raise ValueError(
            f"{stream.store}: the checkpoint is of the tasks {record['tasks']}, "
            f"this stream has {[task.name for task in stream.scenario]}."
        )
    stream.last, stream.memory, stream.done = tree["last"], tree["memory"], record["done"]
    for label, state in tree["merges"].items():
        key = stream.states[label].key
        stream.states[label] = memory.MergeState(state["step"], key, state["cells"])
    stream.outcomes = {k: Outcome(**o) for k, o in record["outcomes"].items()}
    stream.seconds, stream.losses = record["seconds"], record["losses"]
    stream.models = [
        checkpoint.load(stream.store / f"task_{t:02d}.safetensors")[0]
        for t in range(min(stream.keep, stream.done))
    ]


def _tree(stream: Stream) -> dict:
    cells = {label: {"step": s.step, "cells": s.cells} for label, s in stream.states.items()}
    return {"last": dict(stream.last), "memory": stream.memory, "merges": cells}
