"""A perceptron as the model of a stream."""

from __future__ import annotations

from typing import Any, Literal

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import Count, models
from jaxmerge.models.mlp import modeling
from jaxmerge.models.trained_head import trained_head


def tower(config: modeling.Config, dtype: str = "float32") -> Model:
    """Features without a head; ``aux["taps"]`` has the inputs of all kernels."""

    def apply(params: Any, inputs: Any, task: Any, key: Any = None) -> Outputs:
        output = modeling.forward(config, params, inputs, key=key, inputs=True, dtype=dtype)
        return Outputs(None, output.features, {"taps": output.inputs})

    train = apply if any(config.dropout) else None
    return Model(lambda key: modeling.init(config, key), apply, train=train)


@models.register(static=("dropout",), shapes=("hidden",))
def mlp(
    inputs: Count = 784,
    hidden: Any = (100, 100),
    classes: Count = 10,
    bias: bool = True,
    activation: Literal["relu", "tanh", "gelu"] = "relu",
    dropout: Any = (),
    head: Literal["linear", "cosine", "sigmoid"] = "linear",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Model:
    """A perceptron and a trained head; by default 784-100-100-10, that of permuted MNIST.

    Args:
        inputs: numbers of an example, whatever its shape.
        hidden: widths of the hidden layers.
        classes: columns of the head.
        bias: whether layers and head have one (GPM and its relatives have none).
        activation: of the hidden layers.
        dropout: rates behind the hidden layers in training, such as (0.2, 0.5, 0.5).
        head: see `jaxmerge.models.trained_head`.
        dtype: of the matrix products below the head.
    """
    config = modeling.Config(inputs, hidden, bias, activation, dropout)
    return trained_head(tower(config, dtype), config.features, classes, head, bias=bias)
