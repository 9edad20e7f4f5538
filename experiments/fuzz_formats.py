"""What `experiments/fuzz.py` damages: for each format a sound input, and what reads it.

A `Format` writes a sound input into an empty folder, names the files that are damaged, and reads
the result as a command would.  `read` returns nothing; it raises `Wrong` where what was accepted is
not what an independent reader (or the undamaged part) says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_checkpoints import (
    model,
    read_file,
    read_gguf,
    read_journal,
    read_orbax,
    read_shards,
    read_torch,
    read_whole,
    write_archive,
    write_gguf,
    write_journal,
    write_msgpack,
    write_orbax,
    write_shards,
    write_torch,
)
from fuzz_data import (
    read_images,
    read_npz,
    read_results,
    read_statistic,
    read_tables,
    read_texts,
    results,
    write_images,
    write_npz,
    write_parquet,
    write_statistic,
    write_tables,
    write_texts,
)
from fuzz_recipes import (
    read_adapter,
    read_config,
    read_recipe,
    read_resolved,
    read_tokenizer,
    two_models,
    write_adapter,
    write_recipe,
    write_resolved,
)
from safetensors.numpy import save_file


class Format(NamedTuple):
    """One kind of input.

    Attributes:
        write: makes a sound one in a folder.
        files: which of its files are damaged.
        read: reads it.
        slow: an input takes a good part of a second.
    """

    write: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    slow: bool = False


FORMATS: dict[str, Format] = {
    "safetensors": Format(
        lambda p: save_file(model(0), p / "m.safetensors"), ("m.safetensors",), read_file
    ),
    "index": Format(write_shards, ("m/model.safetensors.index.json",), read_shards),
    "pickle": Format(write_torch, ("m.bin",), read_torch),
    "GGUF": Format(write_gguf, ("m.gguf",), read_gguf),
    "npz model": Format(write_archive, ("m.npz",), read_whole),
    "msgpack": Format(write_msgpack, ("m.msgpack",), read_whole),
    "orbax": Format(write_orbax, ("m/_METADATA", "m/manifest.ocdbt"), read_orbax, slow=True),
    "config": Format(two_models, ("base/config.json", "base/tokenizer_config.json"), read_config,
                     slow=True),
    "tokenizer": Format(two_models, ("base/tokenizer.json", "a/tokenizer.json"), read_tokenizer),
    "adapter": Format(
        write_adapter, ("l/adapter_config.json", "l/adapter_model.safetensors"), read_adapter
    ),
    "recipe": Format(write_recipe, ("own.yaml", "mk.yaml"), read_recipe, slow=True),
    "resolved recipe": Format(write_resolved, ("out/recipe.resolved.yaml",), read_resolved,
                              slow=True),
    "journal": Format(write_journal, (".out.partial/journal.jsonl",), read_journal),
    "results": Format(
        lambda p: (p / "r.json").write_text(results().to_json()) and None, ("r.json",), read_results
    ),
    "Parquet": Format(write_parquet, ("r.parquet",), read_results),
    "npz": Format(write_npz, ("d_train.npz", "d_test.npz"), read_npz),
    "text": Format(write_texts, ("data_full.json", "domains.json", "train.csv", "custrev.all"),
                   read_texts),
    "table": Format(write_tables, ("t.csv", "t.jsonl", "t.tsv"), read_tables),
    "images": Format(write_images, ("d/a/0.png", "d/b/0.jpg"), read_images),
    "statistics": Format(write_statistic, ("f.safetensors",), read_statistic),
}  # fmt: skip
