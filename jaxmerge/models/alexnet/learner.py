"""The small AlexNet as the model of a stream; in training it drops units and its norms move."""

from __future__ import annotations

from typing import Any, Literal

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import Count, models
from jaxmerge.core.types import Leaves
from jaxmerge.models.alexnet import modeling
from jaxmerge.models.convolution import is_statistic
from jaxmerge.models.trained_head import trained_head


def tower(config: modeling.Config, dtype: str = "float32") -> Model:
    """Features without a head; ``aux["taps"]`` has the inputs of all kernels."""

    def apply(params: Leaves, inputs: Any, task: Any, **more: Any) -> Outputs:
        output = modeling.forward(config, params, inputs, inputs=True, dtype=dtype, **more)
        aux = {"taps": output.inputs}
        if more and config.running:
            aux["statistics"] = output.statistics
        return Outputs(None, output.features, aux)

    return Model(
        init=lambda key: modeling.init(config, key),
        apply=apply,
        train=lambda params, inputs, task, key: apply(params, inputs, task, train=True, key=key),
        trainable=lambda name: not is_statistic(name),
        statistics=is_statistic,
    )


@models.register(shapes=("filters", "hidden"))
def alexnet(
    classes: Count = 10,
    side: Count = 32,
    channels: Count = 3,
    filters: Any = (64, 128, 256),
    hidden: Any = (2048, 2048),
    drop: bool = True,
    running: bool = True,
    head: Literal["linear", "cosine", "sigmoid"] = "linear",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Model:
    """The small AlexNet of GPM and a trained head without bias.

    Its values are those of a transcription in torch's layers; torchvision has no such network.

    Args:
        classes: columns of the head.
        side, channels: of the images.
        filters, hidden: widths of the three convolutions and the two dense layers.
        drop: whether training drops units.
        running: whether batch norms keep running statistics; the authors' do not, and their
            network is evaluated with the statistics of the batch that is asked.
        head: see `jaxmerge.models.trained_head`.
        dtype: of convolutions and matrix products.
    """
    config = modeling.Config(side, channels, tuple(filters), tuple(hidden), drop, running)
    return trained_head(tower(config, dtype), config.features, classes, head, bias=False)
