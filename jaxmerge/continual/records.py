"""A stream of tasks is a fold: the records that everything in `jaxmerge.continual` is made of.

One task is five stages, each a function ``(setup, stream, state, t) -> state``
(`jaxmerge.continual.stages`)::

    begin -> train (one lax.scan) -> end -> fold (`jm.update` of every merge) -> score (R[t, group])

Two drivers call them (`jaxmerge.continual.drivers`): `program` scans them, so that a whole stream
is one pure function for ``jit``, ``vmap`` and ``lax.map``; `run` calls them one by one.

Three rules keep it small:

* **params** are all that prediction needs, **memory** is all that only learning needs;
* what grows with the tasks is a leaf ``[tasks, ...]``, a *slot* for each task;
* what a method changes in the network is a **wrap**, ``Model -> Model``; what it changes in
  learning is a **hook**.

A `Method` is plain fine-tuning and something besides.  All its fields are optional, several methods
compose in their order, and each sees its own memory only::

    @methods.register
    def l2(strength: NonNegative = 1.0):
        def loss(model, step):
            pull = sum(jnp.sum((p - step.base[n]) ** 2) for n, p in step.params.items())
            return 0.5 * strength * pull
        return Method(loss=loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from jaxmerge.core.types import Array, Leaves, Tree

LAST = "last model"  # the label of the deployment that is no merge


class Outputs(NamedTuple):
    """What a model says of a batch; what nobody reads costs nothing, the compiler removes it.

    Attributes:
        logits: ``[B, classes]``, ``[B, L, vocabulary]``, a tuple with one for each depth of labels.
        features: ``[B, D]``, what the head reads.
        aux: a mapping of whatever else: losses of a router, queries of prompts, batch statistics.
    """

    logits: Any
    features: Any = None
    aux: Any = None


class Batch(NamedTuple):
    """Examples; every leaf has them on its first axis.

    Attributes:
        inputs: ``[B, ...]``, or a pytree of such.
        targets: likewise: labels, shifted tokens, labels of every depth.
        task: int32 ``[B]``, where each example is from (joint training and replay mix tasks).
        weight: float32 ``[B]``, 0 where there is no example.
    """

    inputs: Any
    targets: Any
    task: Array
    weight: Array


class Model(NamedTuple):
    """A network as pure functions of its params, a flat mapping of names to arrays.

    Attributes:
        init: ``key -> params``; a pretrained model ignores the key.
        apply: ``(params, inputs, task) -> Outputs``: training, and tests that give the task.
        predict: ``(params, inputs, seen) -> Outputs``: tests at which it is not; `seen` is the last
            task that was learnt.  None: `apply`, which then must not read the task.
        train: ``(params, inputs, task, key) -> Outputs``: `apply` as it is in training, where that
            differs (dropout, normalisation over the batch).  None: `apply`.
        from_features: ``(params, features, task) -> Outputs``: the part of the network after its
            features, for methods that replay activations.  None: the model has no such entry.
        trainable: whether a leaf of this name is trained.
        slots: whether a leaf of this name is ``[tasks, ...]``; a task trains one slot of it.
        slot: ``(params, task) -> int32``: which slot a task trains.  By default its own; a method
            that grows by novelty keeps the table in an untrained leaf, which its `begin` writes.
            A slot that is not there is an error in `run` and in the loop; compiled code, which
            cannot raise, makes the losses of the task NaN, and so `Result.finite` False.
        statistics: whether a leaf of this name is not trained but rewritten by each training step,
            from ``aux["statistics"]`` of `train`, a mapping of names to new values.
        taps: ``(params, inputs, task) -> {kernel: its inputs}``, of a wrap whose kernels are made
            of several leaves. None: they are found, see `jaxmerge.continual.taps`.
        weights: ``(params, task) -> leaves``: what merges fold, by default every leaf.
        put: ``(params, merged) -> params``: brings a merge of `weights` back.
        head: shape ``[features, columns]`` and dtype of what makes logits of the features, where no
            leaf ``head/kernel`` says it.

    >>> model = Model(lambda key: {"w": 2.0}, lambda params, x, task: params["w"] * x)
    >>> model.learn({"w": 2.0}, 3.0, task=0, key=None), model.answer({"w": 2.0}, 3.0, seen=0)
    (6.0, 6.0)
    """

    init: Callable[[Array], Leaves]
    apply: Callable[..., Outputs]
    predict: Callable[..., Outputs] | None = None
    train: Callable[..., Outputs] | None = None
    from_features: Callable[..., Outputs] | None = None
    trainable: Callable[[str], bool] = lambda name: True
    slots: Callable[[str], bool] = lambda name: False
    slot: Callable[..., Array] = lambda params, task: task
    statistics: Callable[[str], bool] = lambda name: False
    taps: Callable[..., Mapping[str, Array]] | None = None
    weights: Callable[..., Leaves] = lambda params, task: params
    put: Callable[[Leaves, Leaves], Leaves] = lambda params, merged: {**params, **merged}
    head: jax.ShapeDtypeStruct | None = None

    def learn(self, params: Leaves, inputs: Tree, task: Array, key: Array) -> Outputs:
        """Outputs as in training: `train`, or else `apply`.

        Args:
            params: all leaves.
            inputs: [B, ...], or a pytree of such.
            task: int32, or [B].
            key: PRNG key, of dropout and the like.
        """
        if self.train is None:
            return self.apply(params, inputs, task)
        return self.train(params, inputs, task, key)

    def answer(self, params: Leaves, inputs: Tree, seen: Array) -> Outputs:
        """Outputs without the task: `predict`, or else `apply`.

        Args:
            params: all leaves.
            inputs: [B, ...], or a pytree of such.
            seen: int32, the last task that was learnt.
        """
        return (self.predict or self.apply)(params, inputs, seen)


class Step(NamedTuple):
    """What a hook sees inside the compiled step; it is made in the trace, so it holds functions.

    Attributes:
        params: the weights before the step, slots and untrained leaves too.
        base: theta_0.
        batch: what the model reads.
        stored: the batch's inputs as they are stored, before the problem's view.  A buffer keeps
            these, and shows them to the model through `view`.
        view: ``(stored, task [B], key) -> inputs``: another key gives another augmentation.
        outputs: of the batch.
        memory: of this method alone.
        info: what the stream says of its tasks, leaves ``[tasks, ...]``.
        task: int32, the index of the task.
        count: int32, the steps taken in this task; `total` steps are to be taken.
        key: of this step and this method.
        objective: ``(outputs, batch) -> [B]``, that of the task or of a method that replaces it.
        grads: of the objective alone, without the losses of methods; for the leaves that train.
        updates: what the step adds to the trained leaves.
    """

    params: Leaves
    base: Leaves
    batch: Batch
    stored: Any
    view: Callable[..., Any]
    outputs: Any
    memory: Any
    info: Any
    task: Array
    count: Array
    total: Array
    key: Array
    objective: Callable[..., Array]
    grads: Any = None
    updates: Any = None


class Border(NamedTuple):
    """What a hook sees of a task before its first and after its last step.

    Attributes:
        index: int32, the task.
        base: theta_0.
        info: what the stream says of its tasks.
        key: of this border and this method.
        read: ``count -> Batch``: the first `count` examples of the task's sample (by default the
            order of training), seen as at evaluation; fewer where there are fewer.
        objective: ``(outputs, batch) -> [B]``, that of the task.
        stored: ``count -> inputs`` of the same examples as they are stored, which a buffer keeps;
            None: as they are read.
    """

    index: Array
    base: Leaves
    info: Any
    key: Array
    read: Callable[[int], Batch]
    objective: Callable[..., Array]
    stored: Callable[[int], Any] | None = None


def nothing(model: Model, params: Leaves, batch: Batch, stored: Any) -> tuple:
    """The memory of a method that needs none."""
    return ()


class Method(NamedTuple):
    """What is added to plain fine-tuning.

    Attributes:
        wrap: ``(model, tasks) -> model``: adds leaves, changes `apply`, what trains or merges.
        init: ``(model, params, batch, stored) -> memory``: of the batch, as the model reads it, and
            of its inputs as they are stored only shapes count.
        begin, end: ``(model, params, memory, border) -> (params, memory)``.
        objective: ``(outputs, batch, info, task) -> [B]``, in place of the task's own.
        loss: ``(model, step) -> scalar`` that is added.
        perturb: ``(model, step, trained, objective_at) -> trained``: moves the weights before the
            step looks at them; ``objective_at(trained)`` is the gradient of the objective alone.
            The move is part of the updates, so that hooks `update` and spans hold for it too.
        gradient: ``(model, step, grads, grad_at) -> grads``, before the optimiser;
            ``grad_at(trained)`` is the total gradient at other weights.
        replaces: what it puts something else in the place of, in words, besides an `objective`:
            "the gradient" (by the mean of clients' changes), "the mean over the stream's batch" (by
            one that counts replayed examples too), "the head". Of methods that name the same
            thing a stream may have one.
        update: ``(model, step, updates) -> (updates, memory)``, after the optimiser.
        spans: ``memory -> {kernel: M [in, k]}`` (or a `projection.Span`, where the projector M M'
            is kept): what updates of a kernel stay outside of, behind the optimiser and all hooks
            `update`, of the memory that these leave: see `jaxmerge.continual.projection`.
        stops: ``(model, memory, name) -> bool``: whether a trained leaf stays as it is after the
            first task, whatever the optimiser and other hooks propose for it.
        claims: ``(model, params) -> names``: kernels of the network, below all wraps, whose change
            this method alone decides or which it makes of other leaves; no other method of the
            stream may claim one of them. Of the params only shapes count.
        steps: whether it makes the steps of the kernels that it claims itself, in `update`, of
            their gradients: what the optimiser proposes for these must be the gradient, that is
            ``sgd(1.0)``.
        observe: ``(model, step) -> memory``, after every step.
        examples: ``(t, tasks, seed) -> [(s, positions), ...]``: what task t trains on besides its
            own examples, chosen on the host before its batches are drawn: positions in the
            training examples of tasks s. `tasks` are `TaskLabels`.
        host: `begin` and `end` need concrete arrays (numpy, files); then only `run` serves.

    Matrix products are of full precision (`jaxmerge.numerics.precision`) in all hooks but
    `objective` and `loss`, which multiply as the model does.
    """

    wrap: Callable[[Model, int], Model] | None = None
    init: Callable[..., Any] = nothing
    begin: Callable[..., tuple[Leaves, Any]] | None = None
    objective: Callable[..., Array] | None = None
    loss: Callable[..., Array] | None = None
    perturb: Callable[..., Any] | None = None
    gradient: Callable[..., Any] | None = None
    replaces: tuple[str, ...] = ()
    update: Callable[..., tuple[Any, Any]] | None = None
    spans: Callable[[Any], Mapping[str, Any]] | None = None
    stops: Callable[[Model, Any, str], bool] | None = None
    claims: Callable[[Model, Leaves], Iterable[str]] | None = None
    steps: bool = False
    observe: Callable[..., Any] | None = None
    end: Callable[..., tuple[Leaves, Any]] | None = None
    examples: Callable[..., list] | None = None
    host: bool = False


class TaskLabels(NamedTuple):
    """What is known of a task when its examples are chosen.

    Attributes:
        labels: int [N], the column of every training example.
        columns: int [K], those of the task, in its order.
    """

    labels: Array
    columns: Array
