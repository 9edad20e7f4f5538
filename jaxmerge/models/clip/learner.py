"""Both towers of a CLIP model as the model of a stream of pairs; pairs from captions of classes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models
from jaxmerge.core.draws import draws
from jaxmerge.core.types import Array, Leaves
from jaxmerge.data.sources import Source
from jaxmerge.models.clip import checkpoint
from jaxmerge.models.clip.modeling import image_features, text_features
from jaxmerge.models.folders import folder_of


@models.register
def clip_towers(pretrained: str = "mini") -> Model:
    """An image and a text tower that both train; the temperature is the problem's (`pairs`).

    Reads ``{"image": uint8 [B, side, side, 3], "text": int32 [B, length]}``, as `captioned` makes
    them, and gives ``aux["image"]`` and ``aux["text"]`` [B, p].

    Args:
        pretrained: a folder that `jaxmerge.models.clip.load` reads, or the name of a model that
            comes with the package, "mini" or "mini-2k".

    Raises:
        ValueError: a model without one of the towers.

    Example:
        >>> names = clip_towers("mini-2k").build().init(None)
        >>> sorted({n.partition("/")[0] for n in names})
        ['text', 'vision']
    """
    model = opened(pretrained)
    prepare = model.preprocess
    if prepare is None or model.config.text is None:
        lacks = "text" if model.config.text is None else "image"
        raise ValueError(f"{pretrained} has no {lacks} tower; pairs need both.")

    def apply(params: Leaves, inputs: Mapping[str, Array], task: Any) -> Outputs:
        pixels = prepare.normalise(inputs["image"])
        image = image_features(model.config, params, pixels)
        return Outputs(
            None, aux={"image": image, "text": text_features(model.config, params, inputs["text"])}
        )

    own = {n: p for n, p in model.params.items() if n.startswith(("vision/", "text/"))}
    return Model(lambda key: dict(own), apply)


@functools.lru_cache(maxsize=2)
def opened(pretrained: str) -> checkpoint.Model:
    """The model of a folder, or of a name that comes with the package.

    Args:
        pretrained: see `clip_towers`.

    >>> opened("mini-2k").config.text is not None
    True
    """
    return checkpoint.load(folder_of(pretrained))


def captioned(
    model: checkpoint.Model, source: Source, split: str, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The images of a split, each with its class in one of the source's templates.

    Args:
        model: whose picture size and tokenizer are used.
        source: images, names of classes, templates.
        split: "train", "val" or "test".
        seed: of the templates that are drawn.

    Returns:
        ``{"image": uint8 [N, side, side, 3], "text": int32 [N, length]}`` and the labels [N].

    Raises:
        ValueError: a model without a tokenizer or image tower; a caption that is too long for it.

    >>> from jaxmerge.data.digits import digits
    >>> x, y = captioned(opened("mini-2k"), digits(), "test")
    >>> x["image"].shape, len(x["text"]) == len(y)
    ((360, 32, 32, 3), True)
    """
    if model.tokenizer is None or model.preprocess is None:
        lacks = "tokenizer" if model.tokenizer is None else "image tower"
        raise ValueError(f"pairs cannot be made: this model has no {lacks}; load a full folder.")
    rows = source.splits[split]
    drawn = draws(seed).integers(len(source.templates), size=len(rows))
    labels = np.asarray(source.labels)[rows].astype(np.int32)
    texts = [
        source.templates[d].replace("{}", source.classes[c])
        for d, c in zip(drawn, labels, strict=True)
    ]
    tokens = model.tokenizer(texts)
    ends = np.argmax(tokens == model.tokenizer.end, axis=1)  # nothing behind them is looked at
    tokens = tokens[:, : int(ends.max()) + 1].astype(np.int32)
    return {"image": model.preprocess.crop(source.inputs[rows])[0], "text": tokens}, labels
