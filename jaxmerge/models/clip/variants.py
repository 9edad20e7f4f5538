"""The published sizes, one table with its sources."""

from __future__ import annotations

from typing import NamedTuple

from jaxmerge.errors import closest
from jaxmerge.models.clip.config import Config, Text, Vision


class Variant(NamedTuple):
    """A published architecture: its config and the hub repositories that hold weights of it."""

    config: Config
    hub: tuple[str, ...]
    source: str


def _vision(image: int, patch: int, width: int, layers: int, heads: int, hidden: int) -> Vision:
    return Vision(image, patch, width, layers, heads, hidden)


def _text(width: int, layers: int, heads: int) -> Text:
    return Text(width=width, layers=layers, heads=heads, hidden=4 * width)


_OPENAI = "Radford et al. 2021 (arXiv 2103.00020), table 20"
_LAION = "OpenCLIP, Cherti et al. 2022 (arXiv 2212.07143), model_configs/{}.json"

VARIANTS: dict[str, Variant] = {
    "ViT-B/32": Variant(
        Config(_vision(224, 32, 768, 12, 12, 3072), _text(512, 12, 8), 512),
        ("openai/clip-vit-base-patch32",),
        _OPENAI,
    ),
    "ViT-B/16": Variant(
        Config(_vision(224, 16, 768, 12, 12, 3072), _text(512, 12, 8), 512),
        ("openai/clip-vit-base-patch16",),
        _OPENAI,
    ),
    "ViT-L/14": Variant(
        Config(_vision(224, 14, 1024, 24, 16, 4096), _text(768, 12, 12), 768),
        ("openai/clip-vit-large-patch14",),
        _OPENAI,
    ),
    "ViT-L/14@336": Variant(
        Config(_vision(336, 14, 1024, 24, 16, 4096), _text(768, 12, 12), 768),
        ("openai/clip-vit-large-patch14-336",),
        _OPENAI,
    ),
    "ViT-H/14": Variant(
        Config(_vision(224, 14, 1280, 32, 16, 5120), _text(1024, 24, 16), 1024, "gelu"),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",),
        _LAION.format("ViT-H-14"),
    ),
    "ViT-g/14": Variant(
        Config(_vision(224, 14, 1408, 40, 16, 6144), _text(1024, 24, 16), 1024, "gelu"),
        ("laion/CLIP-ViT-g-14-laion2B-s12B-b42K",),
        _LAION.format("ViT-g-14"),
    ),
    "ViT-bigG/14": Variant(
        Config(_vision(224, 14, 1664, 48, 16, 8192), _text(1280, 32, 20), 1280, "gelu"),
        ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",),
        _LAION.format("ViT-bigG-14"),
    ),
}


def variant(name: str) -> Config:
    """The config of a published size, by its name or by its repository on the hub.

    The weights that LAION trained at sizes B and L use the exact GELU: take
    `dataclasses.replace(variant("ViT-B/32"), activation="gelu")` for those, or load their folder.

    Args:
      name: of `VARIANTS`, such as "ViT-B/32", or of a repository on the hub.

    Raises:
      KeyError: an unknown name.

    >>> variant("ViT-L/14@336").vision.tokens
    577
    """
    if name in VARIANTS:
        return VARIANTS[name].config
    for known in VARIANTS.values():
        if name in known.hub:
            return known.config
    raise KeyError(f"no CLIP variant is called {name!r}; {closest(name, VARIANTS)}")
