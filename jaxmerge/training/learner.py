"""What the continual loop needs to know of a model: trainable weights, features, a frozen head.

A `Learner` hides whether images or texts are learnt.  Its logits are CLIP's::

    logits = scale * unit(features(params, inputs)) @ head          head: [features, columns]

The head comes from class names in prompts, is never trained, and has a column for every class of
the scenario, so that no task changes a shape and nothing is compiled twice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Array, Leaves, is_whole
from jaxmerge.data.streams.scenario import Scenario

if TYPE_CHECKING:
    from jaxmerge.models import bert, clip


class Learner(NamedTuple):
    """A model as the loop sees it.

    Attributes:
        params: theta_0, the weights that are trained and merged; flat name -> array.
        features: ``(params, inputs [B, ...]) -> [B, D]``; pure, the same object for one model.
        prepare: numpy inputs of a source -> numpy inputs of `features` (host side, once).
        head: [D, columns], unit columns.
        scale: what multiplies cosine similarities.
        collate: prepared inputs of a batch, numpy [..., B, ...], to what `features` reads, a pytree
            of numpy arrays of few shapes; texts lose their padding here.
        half: `features` with its matrix products in bfloat16, where the model has that form.
        classes: names of the columns of the head; a stream of other classes is refused.
        write: ``(params, folder)``: a folder of the whole model with these weights, which its
            `load` and transformers read.

    >>> from jaxmerge.data.sources import Source
    >>> from jaxmerge.data.streams.scenario import class_incremental
    >>> x = np.repeat(np.eye(2, dtype=np.float32), 6, axis=0)
    >>> splits = {"train": [0, 1, 2, 6, 7, 8], "val": [3, 9], "test": [4, 5, 10, 11]}
    >>> pets = Source("pets", x, [0] * 6 + [1] * 6, ("cat", "dog"), ("a {}.",), splits)
    >>> features = lambda params, x: x * params["w"]
    >>> learner = Learner({"w": np.ones(2, np.float32)}, features, np.asarray, np.eye(2), 10.0)
    >>> learner.check(class_incremental(pets, 2))
    >>> learner.logits(learner.params, x[:1]).tolist()
    [[10.0, 0.0]]
    """

    params: Leaves
    features: Callable[[Leaves, Any], Array]
    prepare: Callable[[Any], np.ndarray]
    head: Array
    scale: Array
    collate: Callable[[np.ndarray], Any] = np.asarray
    half: Callable[[Leaves, Any], Array] | None = None
    classes: Sequence[str] | None = None
    write: Callable[[Leaves, Path], None] | None = None

    def check(self, scenario: Scenario) -> None:
        """Raises ValueError where the head is not that of the scenario's classes.

        Args:
            scenario: whose classes it is to learn.
        """
        check_columns(self.head.shape[1], self.classes, scenario)

    def model(self, dtype: str = "float32", params: bool = False) -> Spec:
        """The model as `jaxmerge.continual` has it.

        Args:
            dtype: of matrix products, "float32" or "bfloat16".
            params: theta_0 is part of it; else the driver has it.

        Raises:
            ValueError: bfloat16 asked of a model without that form.
        """
        features = self.features if dtype == "float32" else self.half
        if features is None:
            raise ValueError("This learner has no bfloat16 form; train with dtype float32.")
        own = dict(self.params) if params else None
        return frozen_head(features, self.head, self.scale, own)

    def logits(self, params: Leaves, inputs: Array) -> Array:
        """[B, columns]; inside or outside compiled code.

        Args:
            params: of `features`.
            inputs: [B, ...], as `collate` gives them.
        """
        return head_logits(self.features(params, inputs), self.head, self.scale)


def check_columns(columns: int, classes: Sequence[str] | None, scenario: Scenario) -> None:
    """Raise ValueError where the columns of a head are not the classes of a scenario.

    Args:
        columns: how many the head has.
        classes: their names, or None where they are not known.
        scenario: whose classes are to be learnt.

    >>> from jaxmerge.data.digits import digits
    >>> from jaxmerge.data.streams.scenario import class_incremental
    >>> check_columns(10, None, class_incremental(digits(), 5))
    """
    there, own = tuple(scenario.classes), None if classes is None else tuple(classes)
    if columns != len(there):
        raise ValueError(
            f"The learner's head has {columns} columns, the scenario {len(there)} classes; "
            "make the learner for this scenario."
        )
    if own is not None and own != there:
        k = next(k for k, (a, b) in enumerate(zip(own, there, strict=True)) if a != b)
        raise ValueError(
            f"The learner is of another scenario: column {k} of its head is {own[k]!r}, class "
            f"{k} of this scenario is {there[k]!r}; make the learner for this scenario, as "
            "from_clip(model, scenario)."
        )


@models.register
def frozen_head(
    features: Callable[[Leaves, Any], Array],
    head: Array,
    scale: Array,
    params: Leaves | None = None,
) -> Model:
    """Features under a frozen head.

    Args:
        features: ``(params, inputs [B, ...]) -> [B, D]``, pure.
        head: [D, columns], unit columns.
        scale: what multiplies cosine similarities.
        params: theta_0, flat; None where the driver has it.

    Example:
        >>> model = frozen_head(lambda params, x: x * params["w"], np.eye(2), 10.0).build()
        >>> model.apply({"w": 2.0}, jnp.array([[3.0, 4.0]]), 0).logits
        Array([[6., 8.]], dtype=float32)
    """

    def init(key):
        if params is None:
            raise ValueError("This model has no weights of its own: give it params.")
        return dict(params)

    def from_features(weights, values, task):
        return Outputs(head_logits(values, head, scale), values)

    def apply(weights, inputs, task):
        return from_features(weights, features(weights, inputs), task)

    form = jax.ShapeDtypeStruct(jnp.shape(head), jnp.result_type(head))
    return Model(init, apply, from_features=from_features, head=form)


def head_logits(features: Array, head: Array, scale: Array) -> Array:
    """scale * unit(features) @ head.

    Args:
        features: [..., D], any length.
        head: [D, columns], unit columns.
        scale: what multiplies cosine similarities.

    Example:
        >>> head_logits(jnp.array([[3.0, 4.0]]), jnp.eye(2), 10.0)
        Array([[6., 8.]], dtype=float32)
    """
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return scale * (features / jnp.maximum(norm, 1e-12)) @ head


def from_clip(model: clip.Model, scenario: Scenario, truncate: bool = False) -> Learner:
    """The image tower of a CLIP model under the zero-shot head of a scenario's classes.

    The text tower is read once, for the head; the tower, its projection and the temperature are
    frozen as in MagMax.  Images are kept as bytes and normalised on the device.

    Args:
        scenario: its classes, in the templates of its sources, are the head.
        model: a `jaxmerge.models.clip.Model` with both towers and a tokenizer.
        truncate: cut class names in prompts that are longer than the text tower reads.

    >>> from jaxmerge.data.digits import digits
    >>> from jaxmerge.data.streams.scenario import class_incremental
    >>> from jaxmerge.models import clip
    >>> mini = Path(clip.__file__).parents[2] / "assets" / "mini-2k"
    >>> from_clip(clip.load(mini), class_incremental(digits(), 5)).head.shape[1]
    10
    """
    from jaxmerge.models import clip

    def write(params: Leaves, folder: Path) -> None:
        clip.save(dataclasses.replace(model, params={**model.params, **params}), folder)

    heads = [
        clip.zero_shot_head(
            model, s.classes, s.templates, min(256, len(s.classes) * len(s.templates)), truncate
        )
        for s in scenario.sources
    ]
    return Learner(
        params={n: p for n, p in model.params.items() if n.startswith("vision/")},
        features=_image_features(model.config, model.preprocess, "float32"),
        prepare=functools.partial(_pixels, model.preprocess),
        head=jnp.concatenate(heads, axis=1),
        scale=jnp.exp(model.params["logit_scale"]),
        half=_image_features(model.config, model.preprocess, "bfloat16"),
        classes=scenario.classes,
        write=write,
    )


def from_bert(
    model: bert.Model,
    scenario: Scenario,
    scale: float = 20.0,
    length: int = 32,
    truncate: bool = False,
) -> Learner:
    """A sentence encoder under the head of a scenario's class names.

    Class names in prompts and sentences pass through the same tower, so the head is read once,
    from theta_0, and stays.  Batches are shuffled without regard to length and packed
    (`jaxmerge.models.packing`): nothing but attention works on padding.

    Args:
        scenario: its classes, in the templates of its sources, are the head.
        model: a `jaxmerge.models.bert.Model` with a tokenizer.
        scale: what multiplies cosine similarities; sentence-transformers trains with 20.
        length: tokens of a sentence, 3 or more; longer ones are cut, shorter ones filled up. More
            than the model reads is as many as it reads.
        truncate: cut class names in prompts that are longer than the model reads.

    >>> import tokenizers
    >>> from jaxmerge.data.digits import digits
    >>> from jaxmerge.data.streams.scenario import class_incremental
    >>> from jaxmerge.models import bert
    >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 1}, "?"))
    >>> sizes = {"vocab": 2, "positions": 32, "width": 4, "layers": 1, "heads": 1, "hidden": 4}
    >>> config, tokenizer = bert.Config(**sizes, max_tokens=32), bert.Tokenizer(words, 32, 1, 0)
    >>> encoder = bert.Model(config, bert.init(config, jax.random.key(0)), tokenizer)
    >>> from_bert(encoder, class_incremental(digits(), 5)).head.shape
    (4, 10)
    """
    from jaxmerge.models import bert
    from jaxmerge.models.packing import pack

    def write(params: Leaves, folder: Path) -> None:
        bert.save(dataclasses.replace(model, params=params), folder)

    tokenizer, room = model.tokenizer, model.config.room
    if tokenizer is None:
        raise ValueError("This sentence encoder has no tokenizer: load it from its folder.")
    if not is_whole(length) or length < 3:
        raise ValueError(f"length is 3 tokens or more (the model reads {room}), got {length!r}.")

    def prepare(texts: Any) -> np.ndarray:
        return tokenizer(list(texts), truncate=True, length=min(length, room))

    heads = [bert.zero_shot_head(model, s.classes, s.templates, truncate) for s in scenario.sources]
    return Learner(
        params=dict(model.params),
        features=_text_features(model.config, "float32"),
        prepare=prepare,
        head=jnp.concatenate(heads, axis=1),
        scale=jnp.float32(scale),
        collate=functools.partial(pack, pad=model.config.pad),
        half=_text_features(model.config, "bfloat16"),
        classes=scenario.classes,
        write=write,
    )


def _pixels(preprocess: Any, images: Any) -> np.ndarray:
    """uint8 [B, side, side, 3]; a worker process gets this function, so it holds no model."""
    return preprocess.crop(images)[0]


@functools.cache
def _text_features(config: Any, dtype: str) -> Callable:
    """One function object for one architecture, so that compiled code is found again."""
    from jaxmerge.models import bert

    compute = bert.Compute(dtype)
    return lambda params, tokens: bert.text_features(config, params, tokens, compute=compute)


@functools.cache
def _image_features(config: Any, prepare: Any, dtype: str) -> Callable:
    from jaxmerge.models import clip

    compute = clip.Compute(dtype)

    def features(params: Leaves, images: jax.Array) -> jax.Array:
        return clip.image_features(config, params, prepare.normalise(images), compute=compute)

    return features
