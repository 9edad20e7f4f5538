"""What a recipe comes to: opened models, jobs for the file driver, files beside the weights.

`Models` opens references once and mends the one harmless mismatch between checkpoints of a family:
weights that are tied and stored by some of them once, by others twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError, closest
from jaxmerge.io.header import CODES
from jaxmerge.io.sources import Source, open_source
from jaxmerge.recipes.side_inputs import Extra

HEADS = ("lm_head.weight", "model.lm_head.weight", "language_model.lm_head.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")


@dataclasses.dataclass
class Plan:
    """A recipe, ready to be run.

    Attributes:
        jobs: what `jaxmerge.drivers.files.api.merge_jobs` runs.
        models: the opened references.
        source: whose config, tokenizer and other files the output gets.
        out_dtype: of floating leaves; None keeps the base's.
        seed: of the PRNG key.
        resolved: the recipe as data, with references that mean the same anywhere.
        method: for the model card, as it prints.
        config: changes of config.json, by key or by path of keys.
        files: further files of the output, such as a merged tokenizer.
        nonfinite: "raise" or "zero".
        extras: files of side information, to be checked against their models before the merge.
    """

    jobs: list[Job]
    models: Models
    source: Any
    out_dtype: Any
    seed: int
    resolved: dict[str, Any]
    method: str
    config: dict[Any, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes | Path] = dataclasses.field(default_factory=dict)
    nonfinite: str = "raise"
    extras: Sequence[Extra] = ()


class Models:
    """References, each opened once.

    Args:
        near: folders against which relative paths are tried after the working directory.
        stages: names of earlier merges -> their outputs.
    """

    def __init__(
        self,
        near: Sequence[Path] = (),
        allow_pickle: bool = False,
        stages: Mapping[str, Path] | None = None,
    ):
        self.near, self.allow_pickle, self.stages = near, allow_pickle, stages or {}
        self.opened: dict[str, Source] = {}

    def open(self, ref: Any) -> Source:
        """The source of a reference."""
        if not isinstance(ref, str) or not ref:
            raise UserError(f"a model must be a path or org/name@revision, got {ref!r}.")
        if ref not in self.opened:
            name, plus, rest = ref.partition("+")
            path = f"{self.stages[name]}{plus}{rest}" if name in self.stages else ref
            self.opened[ref] = open_source(path, near=self.near, allow_pickle=self.allow_pickle)
        return self.opened[ref]

    def family(self, refs: Sequence[str]) -> list[Source]:
        """Sources that are merged with each other, the first being the measure of the rest."""
        first, *rest = (self.open(r) for r in refs)
        return [first, *(s if s is first else tie(first, s) for s in rest)]

    def resolve(self, ref: str) -> str:
        """The reference in a form that means the same anywhere."""
        return self.open(ref).ref

    def close(self) -> None:
        for source in self.opened.values():
            source.close()


def tie(first: Source, other: Source) -> Source:
    """`other` with the output head of `first`: added where it is tied to the embedding and not
    stored, left out where `first` does not store it."""
    names = dict(other.names)
    for head in HEADS:
        if (head in first) == (head in other):
            continue
        leaves, tied = (other, other) if head in first else (other, first)
        embedding = next((n for n in leaves if n.endswith(EMBEDDINGS)), None)
        if embedding is None or not tied.config().get("tie_word_embeddings", True):
            continue
        if head in first:
            names[head] = other.names[embedding]
        elif np.array_equal(other[head], other[embedding]):
            del names[head]
    if names == other.names:
        return other
    changed = Source(other.source, other.ref, other.folder, other.files, other.config())
    changed.names = names
    changed.like = {new: other.source.like[old] for new, old in names.items()}
    return changed


def check_vocabulary(sources: Sequence[Source | None]) -> None:
    """Raise where models have vocabularies of different sizes: both sizes, and the ways out."""
    sizes = {}
    for source in sources:
        if source is not None:
            for n in source:
                if n.endswith(EMBEDDINGS):
                    sizes.setdefault(n, {}).setdefault(source.like[n].shape[0], source.ref)
    for leaf, found in sizes.items():
        if len(found) > 1:
            listed = ", ".join(f"{size} rows in {ref}" for size, ref in found.items())
            raise UserError(
                f"The vocabularies differ: {leaf} has {listed}. Either build the merged vocabulary "
                "(tokenizer: union), or keep the base's (tokenizer: base), by which rows of tokens "
                "that the base lacks are dropped."
            )


def dtype_of(name: Any, what: str) -> Any:
    """A floating dtype by its name."""
    if name is None:
        return None
    floats = {d.name: d for d in CODES if d.kind in "fV" or d.name.startswith(("bfloat", "float"))}
    alias = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
    name = alias.get(name, name)
    if name not in floats:
        raise UserError(f"{what}: no dtype {name!r}: {closest(str(name), floats)}")
    return floats[name]


def seed_of(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise UserError(f"seed must be an integer from 0 to 2^32 - 1, got {value!r}.")
    return value
