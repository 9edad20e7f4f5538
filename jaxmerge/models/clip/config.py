"""What a CLIP model looks like: two transformer towers and a shared space.

`Config.from_hf` and `Config.to_hf` translate Hugging Face's `config.json` both ways. A config may
have one tower only (the vision-only folders that fine-tuned checkpoints are published as).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from jaxmerge.models.transformer import ACTIVATIONS

IDS = ("bos", "eos", "pad")  # of a text tower; all else are sizes


@dataclass(frozen=True)
class Vision:
    """The image tower: `(image / patch)^2` patches and one class token.

    >>> Vision(image=224, patch=32).tokens
    50
    """

    image: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072

    @property
    def tokens(self) -> int:
        """Length of the sequence: the patches and the class token."""
        return (self.image // self.patch) ** 2 + 1


@dataclass(frozen=True)
class Text:
    """The text tower; features are read where `eos` first stands.

    `eos = 2` is what old configs carry by mistake: there, as in transformers, the largest token
    id of the text marks the end.
    """

    vocab: int = 49408
    context: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int = 2048
    bos: int = 49406
    eos: int = 49407
    pad: int = 1


@dataclass(frozen=True)
class Config:
    """A CLIP architecture.

    Attributes:
      vision, text: the towers; None where there is none.
      projection_dim: width of the shared space; None for a tower without projection.
      activation: "quick_gelu" (OpenAI's weights) or "gelu" (the exact one; most of OpenCLIP's).
      eps: of every layer norm.
      logit_scale: initial value of the log of the factor on cosine similarities.

    Raises:
      ValueError: sizes that do not fit together.

    >>> vision = Vision(image=32, patch=8, width=128, heads=4)
    >>> Config(vision, text=None, projection_dim=64).vision.tokens
    17
    """

    vision: Vision | None = Vision()
    text: Text | None = Text()
    projection_dim: int | None = 512
    activation: str = "quick_gelu"
    eps: float = 1e-5
    logit_scale: float = 2.6592

    def __post_init__(self):
        wrong = []
        if self.vision is None and self.text is None:
            wrong.append("neither a vision nor a text tower")
        for which, tower in (("vision", self.vision), ("text", self.text)):
            if tower is None:
                continue
            sizes = {f.name: getattr(tower, f.name) for f in fields(tower) if f.name not in IDS}
            if low := [f"{name} {size}" for name, size in sizes.items() if size < 1]:
                wrong.append(f"{which}: expected at least 1, found {', '.join(low)}")
            elif tower.width % tower.heads:
                wrong.append(
                    f"{which}: width {tower.width} is not a multiple of {tower.heads} heads"
                )
        if self.vision is not None and self.vision.image % max(self.vision.patch, 1):
            wrong.append(
                f"vision: image {self.vision.image} is not a multiple of patch {self.vision.patch}"
            )
        if self.activation not in ACTIVATIONS:
            wrong.append(
                f"activation {self.activation!r}, expected one of {', '.join(sorted(ACTIVATIONS))}"
            )
        if wrong:
            raise ValueError(f"CLIP config: {'; '.join(wrong)}")

    @property
    def image_tower(self) -> Vision:
        """The image tower where there must be one."""
        if self.vision is None:
            raise ValueError("no vision tower (config.vision is None)")
        return self.vision

    @property
    def text_tower(self) -> Text:
        """The text tower where there must be one."""
        if self.text is None:
            raise ValueError("no text tower (config.text is None)")
        return self.text

    @property
    def image_flops(self) -> int:
        """Floating point operations of the image tower's matrix products, forward, one image.

        A multiplication and an addition count as two; a training step takes three times as many.
        What nothing reads is not counted: of the last block, all but the keys and values of the
        tokens behind the first.
        """
        v = self.image_tower
        shared = 4 * v.tokens * v.width**2  # keys and values
        token = 4 * v.width**2 + 4 * v.tokens * v.width + 4 * v.width * v.hidden
        blocks = v.layers * shared + ((v.layers - 1) * v.tokens + 1) * token
        patches = 2 * (v.tokens - 1) * 3 * v.patch**2 * v.width
        return patches + blocks + 2 * v.width * (self.projection_dim or 0)

    @classmethod
    def from_hf(cls, config: Mapping) -> Config:
        """Reads a Hugging Face `config.json` (`clip`, `clip_vision_model`, `clip_text_model`).

        Values that the file leaves out are those of transformers. A tower alone has
        `projection_dim=None` unless its `architectures` say `WithProjection`.

        Args:
          config: what the file holds.
        """
        kind = config.get("model_type")
        if kind == "clip":
            vision = {**config.get("vision_config", {}), **(config.get("vision_config_dict") or {})}
            text = {**config.get("text_config", {}), **(config.get("text_config_dict") or {})}
            projection = config.get("projection_dim", 512)
        elif kind in ("clip_vision_model", "clip_text_model"):
            vision = config if kind == "clip_vision_model" else None
            text = config if kind == "clip_text_model" else None
            projected = any("WithProjection" in name for name in config.get("architectures") or ())
            projection = config.get("projection_dim", 512) if projected else None
        else:
            raise ValueError(
                f"config.json: found model_type {kind!r}, expected clip, clip_vision_model or"
                " clip_text_model"
            )
        towers = [tower for tower in (vision, text) if tower is not None]
        if vision is not None and vision.get("num_channels", 3) != 3:
            raise ValueError(f"config.json: found {vision['num_channels']} channels, expected 3")
        return cls(
            vision=None if vision is None else _read(Vision, vision, _VISION),
            text=None if text is None else _read(Text, text, _TEXT),
            projection_dim=projection,
            activation=_same("hidden_act", towers, "quick_gelu"),
            eps=_same("layer_norm_eps", towers, 1e-5),
            logit_scale=config.get("logit_scale_init_value", 2.6592),
        )

    def to_hf(self) -> dict:
        """The `config.json` with which transformers builds the same architecture."""
        shared = {"hidden_act": self.activation, "layer_norm_eps": self.eps}
        if self.projection_dim is not None:
            shared["projection_dim"] = self.projection_dim
        vision = text = None
        if self.vision is not None:
            vision = {"model_type": "clip_vision_model", **_write(self.vision, _VISION), **shared}
        if self.text is not None:
            text = {"model_type": "clip_text_model", **_write(self.text, _TEXT), **shared}
        suffix = "" if self.projection_dim is None else "WithProjection"
        if text is None:
            return {"architectures": [f"CLIPVisionModel{suffix}"], **(vision or {})}
        if vision is None:
            return {"architectures": [f"CLIPTextModel{suffix}"], **text}
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "logit_scale_init_value": self.logit_scale,
            "vision_config": vision,
            "text_config": text,
        }


_SHARED = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
_VISION = {"image": "image_size", "patch": "patch_size", **_SHARED}
_TEXT = {
    "vocab": "vocab_size",
    "context": "max_position_embeddings",
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "pad": "pad_token_id",
    **_SHARED,
}


def _read(kind, tower: Mapping, fields: Mapping):
    values = {ours: tower[theirs] for ours, theirs in fields.items() if theirs in tower}
    wrong = [f"{fields[k]}={v!r}" for k, v in values.items() if not isinstance(v, int)]
    if wrong:
        raise ValueError(f"config.json: expected whole numbers, found {', '.join(wrong)}")
    return kind(**values)


def _write(tower, fields: Mapping) -> dict:
    return {theirs: getattr(tower, ours) for ours, theirs in fields.items()}


def _same(field: str, towers: list[Mapping], default):
    values = {tower.get(field, default) for tower in towers}
    if len(values) > 1:
        raise ValueError(f"config.json: both towers must share {field}, found {sorted(values)}")
    return values.pop()
