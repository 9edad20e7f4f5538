"""Any registered model as what the loop learns with: a perceptron, a ResNet, one of your own.

`from_model` takes the spec of a model with a trained head; its weights are drawn by its own `init`
(or read from a checkpoint, where the model says so), and everything else is the model's: what it
trains, what its norms rewrite at each step, what merges see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.records import Model
from jaxmerge.continual.registry import models
from jaxmerge.core.specs import Spec, Static
from jaxmerge.core.types import Array, Leaves, Tree
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.training.learner import Learner, check_columns


class ModelLearner(NamedTuple):
    """A registered model as the loop sees it; `from_model` makes one.

    Attributes:
        params: theta_0; flat name -> array.
        network: spec of the model.
        prepare: numpy inputs of a source -> numpy inputs of the model (host side, once).
        columns: of its logits, one for every class.
        collate, classes, write: as in `Learner`.

    >>> from jaxmerge.data.digits import digits
    >>> from jaxmerge.data.streams.scenario import class_incremental
    >>> scenario = class_incremental(digits(), 5)
    >>> learner = from_model({"mlp": {"inputs": 64, "hidden": [8]}}, scenario)
    >>> learner.check(scenario)
    >>> x = learner.prepare(digits().inputs[:2])
    >>> learner.features(learner.params, x).shape, learner.logits(learner.params, x).shape
    ((2, 8), (2, 10))
    >>> learner.model("bfloat16")
    mlp(inputs=64, hidden=(8,), dtype='bfloat16')
    """

    params: Leaves
    network: Spec
    prepare: Callable[[Any], np.ndarray]
    columns: int
    collate: Callable[[np.ndarray], Any] = np.asarray
    classes: Sequence[str] | None = None
    write: Callable[[Leaves, Path], None] | None = None

    def check(self, scenario: Scenario) -> None:
        """Raises ValueError where the columns are not the scenario's classes.

        Args:
            scenario: whose classes it is to learn.
        """
        check_columns(self.columns, self.classes, scenario)

    def model(self, dtype: str = "float32", params: bool = False) -> Spec:
        """The model as `jaxmerge.continual` has it.

        Args:
            dtype: of matrix products, "float32" (as the spec says) or "bfloat16".
            params: theta_0 is part of it; else the driver has it.

        Raises:
            ValueError: bfloat16 asked of a model without that form.
        """
        network = self.network
        if dtype != "float32":
            if "dtype" not in network.arguments:
                raise ValueError(f"{network} has no bfloat16 form; train with dtype float32.")
            network = Spec(network.factory, {**network.arguments, "dtype": Static(dtype)})
        return from_weights(network, dict(self.params)) if params else network

    def features(self, params: Leaves, inputs: Tree) -> Array:
        """[B, D], what the head reads.

        Args:
            params: of the model.
            inputs: [B, ...], as `collate` gives them.
        """
        return self.network.build().apply(params, inputs, jnp.int32(0)).features

    def logits(self, params: Leaves, inputs: Tree) -> Array:
        """[B, columns]; inside or outside compiled code.

        Args:
            params: of the model.
            inputs: [B, ...], as `collate` gives them.
        """
        return self.network.build().answer(params, inputs, jnp.int32(0)).logits


AnyLearner = Learner | ModelLearner


@models.register
def from_weights(network: Model, params: Leaves) -> Model:
    """A model that starts from given weights.

    Args:
        network: spec of the model.
        params: theta_0, flat; all its leaves.

    Example:
        >>> from jaxmerge.models.mlp.learner import mlp
        >>> params = mlp(4, (3,), 2).build().init(jax.random.key(7))
        >>> model = from_weights(mlp(4, (3,), 2), params).build()
        >>> bool((model.init(jax.random.key(0))["head/kernel"] == params["head/kernel"]).all())
        True
    """
    return network._replace(init=lambda key: dict(params))


def floats(inputs: np.ndarray | Sequence[float]) -> np.ndarray:
    """float32 [B, ...]: bytes as numbers in [0, 1], all else as it is.

    Args:
        inputs: numbers.

    >>> floats(np.uint8([0, 255])).tolist(), floats([2.0]).tolist()
    ([0.0, 1.0], [2.0])
    """
    x = np.asarray(inputs)
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)


def from_model(
    network: Spec | str | Mapping[str, Any],
    scenario: Scenario,
    prepare: Callable[[Any], np.ndarray] = floats,
    *,
    seed: int = 0,
    collate: Callable[[np.ndarray], Any] = np.asarray,
    write: Callable[[Leaves, Path], None] | None = None,
) -> ModelLearner:
    """A registered model with a head of its own as a learner.

    Args:
        network: spec of the model, its name, or ``{name: {setting: value}}``; its logits have a
            column for every class of the scenario.
        scenario: what is learnt.
        prepare: numpy inputs of a source -> numpy inputs of the model; worker processes get it,
            so it is a function of a module, or a `functools.partial` of one.
        seed: of the weights that `init` draws: the same theta_0 for all streams, as merging needs.
        collate, write: as in `Learner`.

    Raises:
        ValueError: an unknown model or setting; inputs that the model does not read; logits of
            another form than [B, classes].

    >>> from jaxmerge.data.digits import digits
    >>> from jaxmerge.data.streams.scenario import class_incremental
    >>> learner = from_model({"mlp": {"inputs": 64}}, class_incremental(digits(), 5))
    >>> learner.network, sorted(learner.params)[:2]
    (mlp(inputs=64, hidden=(100, 100)), ['head/bias', 'head/kernel'])
    """
    spec = models.from_settings(network)
    model = spec.build()
    params = {n: jnp.asarray(p) for n, p in model.init(jax.random.key(seed)).items()}
    shown = collate(prepare(scenario.sources[0].inputs[np.zeros(2, int)]))
    try:
        out = jax.eval_shape(lambda: model.answer(params, shown, jnp.int32(0)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{spec} does not read the prepared examples of {scenario.sources[0].name!r}: {error}"
        ) from None
    form = list(np.shape(out.logits)) if hasattr(out.logits, "shape") else None
    many = len(scenario.classes)
    if form != [2, many]:
        has = f"logits {form} of 2 examples" if form else "no array of logits"
        setting = ", such as classes=" + str(many) if "classes" in spec.arguments else ""
        raise ValueError(
            f"{spec} gives {has}; the scenario has {many} classes, so [2, {many}] is expected"
            f"{setting}."
        )
    return ModelLearner(params, spec, prepare, many, collate, scenario.classes, write)
