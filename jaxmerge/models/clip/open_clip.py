"""Configs of OpenCLIP: `open_clip_config.json` both ways, and architectures read off tensors.

A plain state dict (OpenAI's, or a fine-tuned one) carries no config. Everything but the number of
heads, the activation and the epsilon stands in the shapes of its tensors; heads are 64 wide in
every model of OpenAI's, and OpenAI's own state dicts are told by three numbers that only they hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxmerge.models.clip.config import Config, Text, Vision

OPENAI_BUFFERS = ("input_resolution", "context_length", "vocab_size")
HEAD = 64  # width of a head where nothing else is said


def config_from_open_clip(settings: Mapping) -> Config:
    """Reads the `model_cfg` of an `open_clip_config.json`.

    Raises:
      ValueError: settings of an architecture that is not OpenAI's ViT, all listed.
    """
    model = settings.get("model_cfg", settings)
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    known = {
        "": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"},
        "vision_cfg.": {
            *("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size")
        },
        "text_cfg.": {*("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")},
    }
    strange = [
        f"{prefix}{key}={part[key]!r}"
        for (prefix, keys), part in zip(known.items(), (model, vision, text), strict=True)
        for key in sorted(set(part) - keys)
    ]
    if isinstance(vision.get("layers"), list):
        strange.append(f"vision_cfg.layers={vision['layers']!r} (a ResNet)")
    if missing := sorted({"embed_dim", "vision_cfg", "text_cfg"} - set(model)):
        strange.append(f"no {', '.join(missing)}")
    if strange:
        raise ValueError(
            f"this OpenCLIP config is not a plain ViT with a text transformer: {'; '.join(strange)}"
        )
    width, text_width = vision.get("width", 768), text.get("width", 512)
    vocab = text.get("vocab_size", 49408)
    return Config(
        Vision(
            image=vision.get("image_size", 224),
            patch=vision.get("patch_size", 16),
            width=width,
            layers=vision.get("layers", 12),
            heads=width // vision.get("head_width", HEAD),
            hidden=int(width * vision.get("mlp_ratio", 4.0)),
        ),
        Text(
            vocab=vocab,
            context=text.get("context_length", 77),
            width=text_width,
            layers=text.get("layers", 12),
            heads=text.get("heads", 8),
            hidden=int(text_width * text.get("mlp_ratio", 4.0)),
            **_ends(vocab),
        ),
        projection_dim=model["embed_dim"],
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
    )


def config_to_open_clip(config: Config, mean, std) -> dict:
    """The `open_clip_config.json` that OpenCLIP builds the same architecture from.

    Raises:
      ValueError: a tower is missing, or the config asks for what OpenCLIP cannot be told here.
    """
    vision, text = config.vision, config.text
    refusal = "this model cannot be written for OpenCLIP"
    if vision is None or text is None or config.projection_dim is None:
        raise ValueError(f"{refusal}: it needs both towers and the projection")
    wrong = []
    if config.eps != 1e-5:
        wrong.append(f"layer norms have eps {config.eps} (expected 1e-05)")
    if text.eos not in (2, text.vocab - 1):
        wrong.append(f"eos {text.eos} is not the largest id ({text.vocab - 1})")
    if wrong:
        raise ValueError(f"{refusal}: {'; '.join(wrong)}")
    model = {
        "embed_dim": config.projection_dim,
        "quick_gelu": config.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "patch_size": vision.patch,
            "mlp_ratio": _ratio(vision.hidden, vision.width),
        },
        "text_cfg": {
            "context_length": text.context,
            "vocab_size": text.vocab,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": _ratio(text.hidden, text.width),
        },
    }
    return {"model_cfg": model, "preprocess_cfg": {"mean": list(mean), "std": list(std)}}


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The architecture of a state dict in OpenCLIP's layout.

    The activation is OpenAI's quick GELU when the dict is OpenAI's own, the exact one otherwise;
    heads are 64 wide. Pass a config to `clip.load` where that is not so.

    Raises:
      ValueError: the names are not those of this layout.
    """
    needed = (
        *("visual.conv1.weight", "visual.positional_embedding", "visual.proj"),
        *("visual.transformer.resblocks.0.mlp.c_fc.weight", "token_embedding.weight"),
        *("positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight", "logit_scale"),
    )
    if missing := [key for key in needed if key not in shapes]:
        raise ValueError(
            "neither a config.json nor an open_clip_config.json says the architecture, and the"
            f" tensors are not those of OpenCLIP's layout: missing {', '.join(missing)}"
        )
    width, _, patch, _ = shapes["visual.conv1.weight"]
    side = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    vocab, text_width = shapes["token_embedding.weight"]
    openai = all(key in shapes for key in OPENAI_BUFFERS)
    return Config(
        Vision(
            image=side * patch,
            patch=patch,
            width=width,
            layers=_count(shapes, r"visual\.transformer\.resblocks\.(\d+)\."),
            heads=max(width // HEAD, 1),
            hidden=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        ),
        Text(
            vocab=vocab,
            context=shapes["positional_embedding"][0],
            width=text_width,
            layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
            heads=max(text_width // HEAD, 1),
            hidden=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
            **_ends(vocab),
        ),
        projection_dim=shapes["visual.proj"][1],
        activation="quick_gelu" if openai else "gelu",
    )


def _ends(vocab: int) -> dict[str, int]:
    # OpenCLIP reads the state at the largest id; with its own vocabulary that is the end token.
    return {"bos": vocab - 2, "eos": vocab - 1, "pad": 0}


def _count(shapes: Mapping, pattern: str) -> int:
    return 1 + max(int(match[1]) for key in shapes if (match := re.match(pattern, key)))


def _ratio(hidden: int, width: int) -> float:
    """The number r with `int(width * r) == hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
