"""The records of a stream: what is to be learnt, from which data, how it is set up, what comes out.

`jaxmerge.continual.records` holds those of models and methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxmerge.continual.records import Method
from jaxmerge.core.specs import Spec, Static, frozen
from jaxmerge.core.types import Array, Leaves


class Evaluator(NamedTuple):
    """A figure of a group of examples, reduced on the device.

    Attributes:
        score: ``(outputs, targets, info) -> [B]``; `info` is that of each example's group,
            leaves ``[B, ...]``, and ``"met"`` [B, columns], the columns of the tasks so far, where
            the stream has columns of tasks.  Averaged over the group by weight.
        task_aware: the model is given the task of the group: `apply`, not `predict`.
        finish: of the mean, such as ``jnp.exp`` for a perplexity.
        lower_is_better: the direction.
    """

    score: Callable[..., Array]
    task_aware: bool = False
    finish: Callable[[Array], Array] = lambda mean: mean
    lower_is_better: bool = False


def as_stored(inputs: Any, info: Any, task: Array, key: Array | None) -> Any:
    """The view of a problem whose model reads the stored inputs."""
    return inputs


class Problem(NamedTuple):
    """What is to be learnt, as functions; with data it makes tasks.

    Attributes:
        objective: ``(outputs, batch, info, task) -> [B]``.
        evaluators: name -> `Evaluator`.
        view: ``(stored, info, task [B], key) -> inputs`` of the model.  The key is None at
            evaluation; in training another key gives another augmentation.
        labels: ``outputs -> (least, greatest)``, what a target may be where targets are columns of
            what the model gives; only shapes of the outputs count.  None: not known.
    """

    objective: Callable[..., Array]
    evaluators: Mapping[str, Evaluator]
    view: Callable[..., Any] = as_stored
    labels: Callable[[Any], tuple[int, int]] | None = None


class Groups(NamedTuple):
    """What is evaluated, apart from tasks: classes, domains, depths of labels; G of them.

    Attributes:
        inputs, targets: the examples.
        rows: int32 ``[G, M]``, of the inputs.
        weight: float32 ``[G, M]``, 0 or more, 0 fills up.
        task: int32 ``[G]``, from 0: whose view is used, and what a task-aware evaluator is given.
        info: leaves ``[G, ...]``.
        metrics: bool ``[G, evaluators]`` by name in sorted order, which figures a group has; None:
            all.  The others are NaN.
    """

    inputs: Any
    targets: Any
    rows: Array
    weight: Array
    task: Array
    info: Any
    metrics: Array | None = None


class Stream(NamedTuple):
    """The data: arrays only, and every batch a list of row numbers that was drawn before.

    Attributes:
        inputs: ``[N, ...]``, the examples of all tasks, each once.
        targets: likewise.
        rows: int32 ``[tasks, steps, B]``, of the inputs.
        origin: int32 ``[tasks, steps, B]``, the task that an example belongs to, from 0.
        weight: float32 ``[tasks, steps, B]``, 0 or more; a step of zeros alone is skipped.
        info: leaves ``[tasks, ...]``; of them ``"own"``, bool ``[tasks, columns]``, says which
            columns a task has, and beside it there may be leaves ``[columns, ...]``.  Examples of
            more tasks than the stream has (as in joint training) need the info of each.
        groups: what is evaluated, or several of them where the forms of the data differ; the
            columns of R are those of the first, of the second, ...
        sample: int32 ``[tasks, K]``: rows that `Border.read` gives, in its order; None: the order
            of training.  -1 fills up; a task has at least one.
        promise: what the index plan promises: "once" (no row comes twice in the whole stream),
            "epochs" (within a task no row comes again before all have come), or "nothing".  Both
            leave out none of `sample`; without one nothing says which rows belong to a task, so a
            plan may leave out any.

    >>> import numpy as np
    >>> from jaxmerge.continual import streams
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> streams.split((x, y), (x, y), [[0, 1], [2, 3]], batch=2).tasks
    2
    """

    inputs: Any
    targets: Any
    rows: Array
    origin: Array
    weight: Array
    info: Any
    groups: Groups | tuple[Groups, ...]
    sample: Array | None = None
    promise: Static = Static("nothing")

    @property
    def tasks(self) -> int:
        return self.rows.shape[0]


def several(methods: Any) -> Any:
    """Methods of a stream, if they are a list of them.

    Raises:
        ValueError: one alone, whose letters or fields would be taken for methods.

    >>> several("ewc")
    Traceback (most recent call last):
    ValueError: methods are a list; found 'ewc' alone: write ['ewc'].
    """
    if methods is None:
        raise ValueError("methods are a list; found None: write () for none.")
    if isinstance(methods, str | Spec | Method | Mapping):
        name = type(methods).__name__ if isinstance(methods, Method) else repr(methods)
        raise ValueError(f"methods are a list; found {name} alone: write [{name}].")
    return methods


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Setup:
    """All that decides the figures besides data and key: a pytree whose floats may be traced.

    Attributes:
        model, problem, optimiser: specs.
        methods: specs of methods, in order.
        merges: label -> a jaxmerge method; each is a deployment beside the last model.
        start: where a task starts: "last", "base", or the label of a merge.
        accumulate: parts in which a batch passes through the model; its gradient is their mean.
        moments: of the optimiser when a task begins: "new", or "kept" from the task before, as in
            a loop that makes one optimiser for all tasks.
    """

    model: Spec
    problem: Spec
    optimiser: Spec
    methods: tuple[Spec, ...] = ()
    merges: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    start: str = dataclasses.field(default="last", metadata={"static": True})
    accumulate: int = dataclasses.field(default=1, metadata={"static": True})
    moments: str = dataclasses.field(default="new", metadata={"static": True})

    def __post_init__(self):
        object.__setattr__(self, "methods", tuple(several(self.methods)))
        if odd := [k for k in self.merges if not isinstance(k, str)]:
            raise ValueError(f"merges are label -> method, a label is a text; found {odd[0]!r}.")
        object.__setattr__(self, "merges", {k: frozen(m) for k, m in dict(self.merges).items()})


class State(NamedTuple):
    """All that passes from step to step and from task to task: one checkpoint.

    Attributes:
        base, params: theta_0 and the weights.
        memory: one entry for each method.
        merges: label -> `MergeState`.
        moments: of the optimiser, for the leaves (and the slot) of this task; new for every task,
            unless `Setup.moments` keeps them.
        count: int32, steps taken in this task.
        key: the root of all draws after the initialisation.
    """

    base: Leaves
    params: Leaves
    memory: tuple
    merges: dict
    moments: Any
    count: Array
    key: Array


class Result(NamedTuple):
    """What a stream gives.

    Attributes:
        state: the last one.
        R: deployment -> metric -> ``[T, G]`` (``[T, parts, G]`` at any time), NaN where not scored
            and where the weights of then are not finite.
        losses: ``[T, steps]``, the total loss of every step, 0 where it was skipped.
        finite: bool ``[T]``: the losses of the task and the weights after it are finite, and no
            figure is NaN that was scored (of merges, once there are enough models): where it is not
            so first, R says which one is.  A task that trains a slot that is not there has losses
            of NaN.
        models: where asked for, name -> ``[T, ...]``: the weights after each task.
    """

    state: State
    R: dict
    losses: Array
    finite: Array
    models: dict = {}  # noqa: RUF012
