"""A ResNet as the model of a stream; in training its norms read the batch, and move.

The running statistics are leaves of the model that no optimiser trains: a step replaces them by
what `train` gives in ``aux["statistics"]``.  Merges see them like any leaf, since a merged model
needs statistics; ``merge_statistics=False`` leaves them to those of the last model.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import Count, models
from jaxmerge.core.types import Leaves
from jaxmerge.models.convolution import is_statistic
from jaxmerge.models.resnet import checkpoint, modeling
from jaxmerge.models.resnet.config import Config
from jaxmerge.models.trained_head import trained_head


def tower(
    config: Config, dtype: str = "float32", params: Leaves | None = None,
    merge_statistics: bool = True,
) -> Model:  # fmt: skip
    """Features without a head; ``aux["taps"]`` has the inputs of all kernels.

    Args:
        config: the architecture.
        dtype: of the convolutions.
        params: a trained model to start from; None: drawn from the key.
        merge_statistics: whether merges see the running statistics.
    """

    def apply(params: Leaves, inputs: Any, task: Any, train: bool = False) -> Outputs:
        output = modeling.forward(config, params, inputs, train=train, inputs=True, dtype=dtype)
        moves = train and config.running
        aux = {"taps": output.inputs} | ({"statistics": output.statistics} if moves else {})
        return Outputs(None, output.features, aux)

    folded = lambda params, task: {n: p for n, p in params.items() if not is_statistic(n)}
    return Model(
        init=lambda key: modeling.init(config, key) if params is None else dict(params),
        apply=apply,
        train=lambda params, inputs, task, key: apply(params, inputs, task, train=True),
        trainable=lambda name: not is_statistic(name),
        statistics=is_statistic,
        weights=(lambda params, task: params) if merge_statistics else folded,
    )


@models.register(shapes=("blocks",))
def resnet18(
    classes: Count = 10,
    stem: Literal["imagenet", "cifar"] = "cifar",
    width: Count = 64,
    blocks: Any = (2, 2, 2, 2),
    channels: Count = 3,
    head: Literal["linear", "cosine", "sigmoid"] = "linear",
    pretrained: str | None = None,
    merge_statistics: bool = True,
    running: bool = True,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Model:
    """ResNet-18 and a trained head; reads normalised images ``[B, height, width, channels]``.

    Args:
        classes: columns of the head.
        stem: "cifar" for small pictures, "imagenet".
        width: channels of the first stage; 20 is the "reduced" ResNet-18 of the online papers.
        blocks: a stage; (3, 4, 6, 3) is ResNet-34.
        channels: of the images.
        head: see `jaxmerge.models.trained_head`.
        pretrained: a checkpoint of this architecture as `jaxmerge.models.resnet.load` reads it; its
            head counts where it has as many columns.
        merge_statistics: whether merges see the running statistics; else a merged model has those
            of the last model.
        running: whether batch norms keep running statistics; without, evaluation reads the batch
            that is asked (torch: ``track_running_stats=False``), as in GPM's code.
        dtype: of the convolutions.

    Raises:
        ValueError: a checkpoint of another architecture.
    """
    config, params = Config(stem, width, tuple(blocks), channels, running=running), None
    if pretrained is not None:
        model = _read(pretrained)
        found = dataclasses.replace(model.config, running=running)
        if found != config:
            raise ValueError(
                f"{pretrained}: found {found}, expected {config}; set stem, width, blocks"
                " and channels to those of the checkpoint"
            )
        params = {n: p for n, p in model.params.items() if running or not is_statistic(n)}
    below = tower(config, dtype, params, merge_statistics)
    return trained_head(below, config.features, classes, head)


@functools.lru_cache(maxsize=2)
def _read(path: str) -> checkpoint.Model:
    return checkpoint.load(path)
