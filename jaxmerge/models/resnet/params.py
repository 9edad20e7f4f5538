"""The layouts of ResNet checkpoints: torchvision's and Hugging Face's, and what their keys say.

Code for small pictures calls the same tensors by other names (`shortcut` for `downsample`, `linear`
or `classifier` for `fc`); `plain_key` brings them to torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from jaxmerge.io.key_tables import Entry, Table
from jaxmerge.models.resnet.config import Config

BUFFER = "num_batches_tracked"
_LAYER = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight")


def plain_key(key: str) -> str:
    """A key as torchvision writes it.

    >>> plain_key("module.layer2.0.shortcut.0.weight"), plain_key("linear.bias")
    ('layer2.0.downsample.0.weight', 'fc.bias')
    """
    key = key.removeprefix("module.").replace(".shortcut.", ".downsample.")
    return re.sub(r"^(linear|classifier)\.(weight|bias)$", r"fc.\2", key)


def is_hf(keys: Iterable[str]) -> bool:
    """Whether a checkpoint has transformers' layout."""
    return any("encoder.stages." in key for key in keys)


def torchvision_table(config: Config, head: bool = False) -> list[Entry]:
    """The layout of torchvision's `resnet18`; `head` with its classifier `fc`."""
    table = Table()
    _pair(table, "conv1", "bn1", "stem")
    for index, (stage, block, shortcut) in enumerate(_places(config)):
        key, name = f"layer{stage + 1}.{block}", f"block_{index:02d}"
        _pair(table, f"{key}.conv1", f"{key}.bn1", f"{name}/first")
        _pair(table, f"{key}.conv2", f"{key}.bn2", f"{name}/second")
        if shortcut:
            _pair(table, f"{key}.downsample.0", f"{key}.downsample.1", f"{name}/shortcut")
    if head:
        table.dense("fc", "head")
    return table.entries


def hf_table(config: Config, head: bool = False, prefix: str = "") -> list[Entry]:
    """The layout of transformers' `ResNetModel`, or of its classifier with a head.

    Raises:
      ValueError: a stem that transformers' ResNet does not have.
    """
    if config.stem != "imagenet":
        raise ValueError(
            f"transformers' ResNet has the stem of ImageNet only, found {config.stem!r}; use the"
            " layout torchvision"
        )
    table = Table()
    _pair_hf(table, f"{prefix}embedder.embedder", "stem")
    for index, (stage, block, shortcut) in enumerate(_places(config)):
        key, name = f"{prefix}encoder.stages.{stage}.layers.{block}", f"block_{index:02d}"
        _pair_hf(table, f"{key}.layer.0", f"{name}/first")
        _pair_hf(table, f"{key}.layer.1", f"{name}/second")
        if shortcut:
            _pair_hf(table, f"{key}.shortcut", f"{name}/shortcut")
    if head:
        table.dense("classifier.1", "head")
    return table.entries


def _places(config: Config) -> list[tuple[int, int, bool]]:
    """Stage, number in the stage, and whether there is a shortcut, of every block."""
    return [
        (stage, block, stage > 0 and block == 0)
        for stage, count in enumerate(config.blocks)
        for block in range(count)
    ]


def _pair(table: Table, conv: str, norm: str, name: str) -> None:
    table.add(f"{conv}.weight", f"{name}/conv/kernel", kind="patch")
    table.norm(norm, f"{name}/norm")
    table.add(f"{norm}.running_mean", f"{name}/norm/mean")
    table.add(f"{norm}.running_var", f"{name}/norm/variance")


def _pair_hf(table: Table, key: str, name: str) -> None:
    _pair(table, f"{key}.convolution", f"{key}.normalization", name)


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The architecture of a checkpoint with torchvision's keys, from its shapes alone.

    Raises:
      ValueError: not a ResNet of basic blocks.
    """
    stem = shapes.get("conv1.weight", ())
    blocks: dict[int, int] = {}
    for key in shapes:
        if match := _LAYER.fullmatch(key):
            stage = int(match[1])
            blocks[stage] = max(blocks.get(stage, 0), int(match[2]) + 1)
    stages = sorted(blocks)
    if len(stem) != 4 or not stages or stages != list(range(1, len(stages) + 1)):
        raise ValueError("these are not the keys of a ResNet (conv1, layer1.0.conv1, ...)")
    if any(".conv3." in key for key in shapes):
        raise ValueError("a ResNet of bottleneck blocks (ResNet-50 and up); expected basic blocks")
    if stem[2] not in (3, 7):
        raise ValueError(f"conv1.weight: found a kernel of {stem[2]} pixels, expected 3 or 7")
    return Config(
        stem="cifar" if stem[2] == 3 else "imagenet",
        width=stem[0],
        channels=stem[1],
        blocks=tuple(blocks[stage] for stage in stages),
    )


def config_from_hf(settings: Mapping) -> Config:
    """Reads transformers' `config.json` of a ResNet.

    Raises:
      ValueError: another model type, or a form of ResNet that is not ours.
    """
    kind = settings.get("model_type")
    if kind != "resnet":
        raise ValueError(f"config.json: found model_type {kind!r}, expected resnet")
    sizes, width = list(settings.get("hidden_sizes", ())), settings.get("embedding_size", 64)
    wrong = []
    if settings.get("layer_type", "bottleneck") != "basic":
        wrong.append("layer_type is not basic")
    if sizes != [width * 2**stage for stage in range(len(sizes))] or not sizes:
        wrong.append(f"hidden_sizes {sizes} do not double from embedding_size {width}")
    if settings.get("hidden_act", "relu") != "relu":
        wrong.append(f"hidden_act {settings['hidden_act']!r} is not relu")
    if settings.get("downsample_in_first_stage", False):
        wrong.append("downsample_in_first_stage")
    if wrong:
        raise ValueError(f"config.json: a ResNet that is not supported: {'; '.join(wrong)}")
    return Config(
        width=width, blocks=tuple(settings["depths"]), channels=settings.get("num_channels", 3)
    )


def config_to_hf(config: Config, classes: Iterable[str] | None = None) -> dict:
    """What transformers' `config.json` says of this architecture."""
    sizes = [config.width * 2**stage for stage in range(len(config.blocks))]
    settings = {
        "model_type": "resnet",
        "architectures": ["ResNetModel" if classes is None else "ResNetForImageClassification"],
        "layer_type": "basic",
        "embedding_size": config.width,
        "hidden_sizes": sizes,
        "depths": list(config.blocks),
        "num_channels": config.channels,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
    }
    if classes is not None:
        settings["id2label"] = {str(k): name for k, name in enumerate(classes)}
        settings["label2id"] = {name: k for k, name in enumerate(classes)}
    return settings
