"""A pre-trained encoder under a head that trains, where a `Learner` has one that is frozen.

    logits = z @ kernel + bias          z = scale * unit(features(params, inputs))

With the class names' columns as kernel and no bias that is what the frozen head says, so a stream
starts at the zero-shot accuracy, and head and encoder learn from there.  What the head reads has
the length `scale`: some twenty for a sentence encoder, near that of a vision transformer's
features, so that rates of published heads are of the right size.

Methods that train, restore, align or read a linear head (`slca`, `slcapp`, `prd`, `er` with
features, ...) then run on any encoder that has a learner.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import Count, models
from jaxmerge.core.types import Array, Leaves
from jaxmerge.models.trained_head import LEAVES, Kind, trained_head, unit
from jaxmerge.training.learner import Learner
from jaxmerge.training.model_learner import ModelLearner


@models.register
def encoder(
    features: Callable[[Leaves, Any], Array],
    width: Count,
    classes: Count,
    scale: Array,
    head: Kind = "linear",
    half: Callable[[Leaves, Any], Array] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Model:
    """Features of a given length under a trained head; the driver has the weights.

    Args:
        features: ``(params, inputs [B, ...]) -> [B, D]``, pure.
        width: D.
        classes: columns of the head.
        scale: the length of what the head reads.
        head: see `jaxmerge.models.trained_head`.
        half: `features` with matrix products in bfloat16; None: there is no such form.
        dtype: "bfloat16" reads `half`.

    Raises:
        ValueError: bfloat16 without `half`; `init`, since the weights are the driver's.

    Example:
        >>> model = encoder(lambda params, x: x * params["w"], 2, 2, 5.0).build()
        >>> params = {"w": 2.0, "head/kernel": jnp.eye(2), "head/bias": jnp.zeros(2)}
        >>> model.apply(params, jnp.array([[3.0, 4.0]]), 0).logits
        Array([[3., 4.]], dtype=float32)
    """
    read = features if dtype == "float32" else half
    if read is None:
        raise ValueError("This encoder has no bfloat16 form; train with dtype float32.")

    def init(key: Array) -> Leaves:
        raise ValueError("This model has no weights of its own: give it params.")

    def apply(params: Leaves, inputs: Any, task: Array) -> Outputs:
        return Outputs(None, scale * unit(read(params, inputs), -1))

    return trained_head(Model(init, apply), width, classes, head)


def with_trained_head(
    learner: Learner, start: Literal["names", "zeros"] = "names", head: Kind = "linear"
) -> ModelLearner:
    """The learner's encoder under a head that trains, is merged and is stored as any leaf.

    Args:
        learner: of `from_clip`, `from_bert`, or one of your own.
        start: of the head's columns: "names", those of the frozen head, or "zeros".
        head: "linear", "cosine" (whose trained scale starts at the learner's) or "sigmoid".

    Returns:
        A learner whose leaves are the encoder's and ``head/...``.  `write` writes the encoder
        alone, as its files have no place for a head.

    Raises:
        ValueError: another `start` or `head`; a cosine head of zeros, which has no direction.

    >>> from jaxmerge.data.digits import digits
    >>> from jaxmerge.data.streams.scenario import class_incremental
    >>> from jaxmerge.models import clip
    >>> from jaxmerge.training.learner import from_clip
    >>> mini = Path(clip.__file__).parents[2] / "assets" / "mini-2k"
    >>> frozen = from_clip(clip.load(mini), class_incremental(digits(), 5))
    >>> learner, x = with_trained_head(frozen), frozen.prepare(digits().inputs[:2])
    >>> one, two = (k.logits(k.params, x) for k in (frozen, learner))
    >>> bool(jnp.allclose(one, two, atol=1e-4)), learner.params["head/bias"].shape
    (True, (10,))
    """
    if start not in ("names", "zeros"):
        raise ValueError(f"start: found {start!r}, expected names or zeros")
    if start == "zeros" and head == "cosine":
        raise ValueError("a cosine head of zeros has no direction: start it from names")
    kernel = jnp.asarray(learner.head, jnp.float32)
    width, classes = kernel.shape
    network = encoder(
        learner.features, width, classes, jnp.float32(learner.scale), head, learner.half
    )
    first = kernel if start == "names" else jnp.zeros_like(kernel)
    more = {"head/kernel": first}
    more |= (
        {"head/scale": jnp.float32(learner.scale)}
        if head == "cosine"
        else {"head/bias": jnp.zeros(classes, jnp.float32)}
    )

    def write(params: Leaves, folder: Path) -> None:
        assert learner.write is not None
        learner.write({n: p for n, p in params.items() if n not in LEAVES}, folder)

    return ModelLearner(
        {**learner.params, **more}, network, learner.prepare, classes, learner.collate,
        learner.classes, write if learner.write is not None else None,
    )  # fmt: skip
