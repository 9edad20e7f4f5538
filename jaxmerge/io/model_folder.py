"""What a model's folder holds besides the weights, and what of it belongs to an output.

    config, tokenizer, templates    *.json, *.txt, *.model, *.jinja, *.tiktoken, *.spm, *.bpe
    chat templates                  additional_chat_templates/
    model_index.json                sub-folders of a pipeline, without weights (diffusers)
    modules.json                    the sub-folders that it names, whole (sentence-transformers)
    auto_map, modules.json          the folder's *.py, where a config or a module names code of it
    licences                        LICENSE*, NOTICE*, USE_POLICY*

Indices of shards, recipes, results and adapters are left out: they describe other weights.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmerge.io.architectures import configs
from jaxmerge.io.architectures.config_changes import dtype_changes
from jaxmerge.io.pipelines import WEIGHTS, components
from jaxmerge.io.untrusted import check_inside, read_text

TAKEN = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.bpe", "*.codes",
    "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
LEFT = (
    "*.index.json", "adapter_*", "recipe*", "results.json", "metrics*.json", "_*", ".*",
    "hf_quant_config.json", "quantize_config.json", "quant_config.json", "training_args*",
    "trainer_state.json", "requirements*.txt", "tensorstore_index.json", "model_structure.json",
    "checkpoint_metadata.json",
)  # fmt: skip
SUBFOLDERS = ("additional_chat_templates",)
MAX_BYTES = 64 << 20  # bytes of one file at the top; sub-folders of modules hold weights
FILES = 1000  # of one sub-folder


def belongings(folder: Path | None) -> dict[str, Path]:
    """Name in an output -> file, for everything that belongs to the model besides its weights.

    Raises:
        UserError: one of them is a link out of the folder.
    """
    if folder is None:
        return {}
    out = {
        p.name: p
        for p in sorted(folder.iterdir())
        if p.is_file() and p.stat().st_size < MAX_BYTES and _taken(p.name)
    }
    check_inside(folder, out)
    if _code(folder):
        code = {p.name: p for p in sorted(folder.glob("*.py")) if p.stat().st_size < MAX_BYTES}
        check_inside(folder, code)
        out |= code
    for name in components(folder):
        files = [p for p in _inside(folder, folder / name) if not p.name.endswith(WEIGHTS)]
        out |= {str(p.relative_to(folder)): p for p in files}
    for name in [*SUBFOLDERS, *module_folders(folder)]:
        out |= {str(p.relative_to(folder)): p for p in _inside(folder, folder / name)}
    return out


def _taken(name: str) -> bool:
    match = lambda patterns: any(fnmatch.fnmatch(name, g) for g in patterns)
    return match(TAKEN) and not match(LEFT)


def read_json(path: Path) -> Any:
    """What a JSON file of a folder holds; None where it is not there or not JSON."""
    try:
        return json.loads(read_text(path)) if path.is_file() else None
    except (ValueError, RecursionError):
        return None


def lacking(folder: Path | None) -> list[str]:
    """A line for everything that a folder's files name and that it does not hold."""
    if folder is None:
        return []
    gone = [p for p in module_folders(folder) if not _inside(folder, folder / p)]
    out = [f"{folder}: modules.json names {p!r}, which is no folder in it" for p in gone]
    files = {f"{v.split('.')[0]}.py" for v in _code(folder) if "." in v}
    gone = sorted(f for f in files if not (folder / f).is_file())
    out += [f"{folder}: its files name the code of {f!r}, which is not there" for f in gone]
    return [f"{line}; the output lacks it too" for line in out]


def _code(folder: Path) -> list[str]:
    """What configs and modules name of the folder's own code (not ``repository--module.Class``)."""
    names = ("config.json", "tokenizer_config.json", "processor_config.json",
             "preprocessor_config.json", "generation_config.json")  # fmt: skip
    contents = [read_json(folder / n) for n in names]
    named = [v for c in contents if isinstance(c, Mapping) for v in _strings(c.get("auto_map"))]
    kinds = [t for m in _modules(folder) if isinstance(t := m.get("type"), str)]
    named += [t for t in kinds if not t.startswith("sentence_transformers.")]
    return [v for v in named if "--" not in v]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for v in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(v)


def module_folders(folder: Path) -> list[str]:
    """The sub-folders that modules.json names; the folder itself is none of them."""
    paths = [m.get("path") for m in _modules(folder)]
    return [p for p in paths if isinstance(p, str) and p.strip("./")]


def _modules(folder: Path) -> list[Mapping[str, Any]]:
    """The entries of modules.json."""
    modules = read_json(folder / "modules.json")
    return [m for m in modules if isinstance(m, Mapping)] if isinstance(modules, list) else []


def _inside(folder: Path, sub: Path) -> list[Path]:
    """The files of a sub-folder, unless they lie elsewhere (but in a hub cache's blobs)."""
    if not sub.is_dir() or not sub.resolve().is_relative_to(folder.resolve()):
        return []
    allowed = [folder.resolve()]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent.resolve() / "blobs")
    files = [p for p in sorted(sub.rglob("*"))[:FILES] if p.is_file()]
    return [p for p in files if any(p.resolve().is_relative_to(a) for a in allowed)]


def output_belongings(
    source: Any, dtype: Any = None, changes: Mapping[str, Any] | None = None
) -> dict[str, bytes | Path]:
    """The files of an output besides the weights, from the source whose config it takes.

    Args:
        source: a `Source`; anything without a folder gives nothing.
        dtype: of the output's floating leaves, None if each leaf keeps its own.
        changes: what the merge changes in config.json: a key, or a path of keys -> its value.
    """
    folder = getattr(source, "folder", None)
    files: dict[str, bytes | Path] = dict(belongings(folder))
    path = files.get("config.json")
    if isinstance(path, Path):
        config, new = source.config(), {}
        if dtype is not None:
            new |= dtype_changes(config, dtype.name)
        new |= {(k,) if isinstance(k, str) else k: v for k, v in (changes or {}).items()}
        config = configs.changed(config, new)
        if read_json(path) != config:
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            files["config.json"] = text.encode()
    return files
