"""A pipeline of diffusers as one model: components in sub-folders, each with its weights.

    model_index.json           names the components
    unet/  transformer/  vae/  text_encoder/  ...      weights and config of each
    scheduler/  tokenizer/  feature_extractor/  ...    files without weights

Leaves are called "unet/down_blocks.0...", with the component before the first slash.  An output has
the same sub-folders, each component in a file of the name it had, and everything else as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError
from jaxmerge.io.safetensors import Leaves
from jaxmerge.io.untrusted import inside, read_json

PIPELINE = "model_index.json"
WEIGHTS = (
    ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".msgpack", ".onnx",
    ".onnx_data", ".pb", ".ckpt",
)  # fmt: skip
FILES = {"diffusers": "diffusion_pytorch_model.safetensors"}  # by library, when there are shards


def components(folder: Path) -> dict[str, str]:
    """Sub-folder -> library, of everything that a pipeline names; empty for another folder."""
    if not (folder / PIPELINE).is_file():
        return {}
    libraries = {
        name: str(value[0])
        for name, value in read_json(folder / PIPELINE).items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    }
    wrong = [n for n in libraries if "/" in n or not inside(folder, n)]
    if wrong:
        raise UserError(f"{folder / PIPELINE} names folders outside of its own: {wrong[:5]}.")
    return {n: library for n, library in libraries.items() if (folder / n).is_dir()}


class Components(Leaves):
    """Several models under one roof, their names behind those of their sub-folders.

    Attributes:
        parts: component -> name of its file in an output.
    """

    def __init__(self, models: Mapping[str, Leaves], parts: Mapping[str, str]):
        self.models, self.parts = dict(models), dict(parts)
        self.stamps = {p: s for m in models.values() for p, s in m.stamps.items()}
        self.like = {f"{c}/{n}": like for c, m in models.items() for n, like in m.like.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        component, _, inner = name.partition("/")
        return self.models[component].read(inner, start, stop)

    def into(self, out: Any, name: str, start: int = 0) -> None:
        component, _, inner = name.partition("/")
        self.models[component].into(out, inner, start)

    def close(self) -> None:
        for model in self.models.values():
            model.close()


def open_components(folder: Path, open_one: Callable[[Path], Any]) -> tuple[Components, list, dict]:
    """The components of a pipeline that hold weights: leaves, files, configs by component."""
    models, parts, files, config = {}, {}, [], {}
    for name, library in components(folder).items():
        where = folder / name
        if not any(where.glob("*.safetensors")):
            if any(where.glob("*.bin")):
                raise UserError(
                    f"{where} holds pickled weights; save the pipeline as safetensors "
                    "(save_pretrained, safe_serialization=True)."
                )
            continue
        source = open_one(where)
        models[name] = source
        files += source.files
        single = len(source.files) == 1
        usual = FILES.get(library, "model.safetensors")
        parts[name] = source.files[0].name if single else usual
        config[name] = source.config()
    if not models:
        raise UserError(f"{folder}: no component of {PIPELINE} holds safetensors.")
    return Components(models, parts), files, config
