"""What a recipe comes to: opened models, jobs for the file driver, files beside the weights.

`Models` opens references once and mends the one harmless mismatch between checkpoints of a family:
weights that are tied and stored by some of them once, by others twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmerge.core import names
from jaxmerge.core.composition import by_leaf, keep_base, stochastic
from jaxmerge.core.types import Merge
from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError, closest
from jaxmerge.io.architectures import Architecture, architecture
from jaxmerge.io.header import CODES
from jaxmerge.io.opened_model import Source, View
from jaxmerge.io.safetensors import Leaves
from jaxmerge.io.sources import laid_out, open_source
from jaxmerge.recipes.side_inputs import Extra

MAX_MODELS = 1000  # of one merge


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
        files: further files of the output, such as a merged tokenizer; None for those of the
            source that are left out.
        nonfinite: "raise" or "zero".
        single: name of the file of weights, which then is one whatever its size.
        extras: files of side information, to be checked against their models before the merge.
        warnings: a line for everything that the user should know before the merge.
    """

    jobs: list[Job]
    models: Models
    source: Any
    out_dtype: Any
    seed: int
    resolved: dict[str, Any]
    method: str
    config: dict[Any, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes | Path | None] = dataclasses.field(default_factory=dict)
    nonfinite: str = "raise"
    extras: Sequence[Extra] = ()
    warnings: Sequence[str] = ()
    single: str | None = None


class Models:
    """References, each opened once.

    Args:
        near: folders against which relative paths are tried after the working directory.
        stages: names of earlier merges -> their outputs.
        leaves: "same" asks all models for the same leaves, "union" merges every leaf among the
            models that have it, "intersection" merges the leaves that all have.
        by_range: of models in buckets read the headers alone, see `jaxmerge.io.sources`.

    Attributes:
        rename: reference -> prefix of its names -> what stands there in the base.
    """

    def __init__(
        self,
        near: Sequence[Path] = (),
        allow_pickle: bool = False,
        stages: Mapping[str, Path] | None = None,
        leaves: str = "same",
        by_range: bool = False,
    ):
        self.near, self.allow_pickle, self.stages = near, allow_pickle, stages or {}
        self.leaves, self.by_range = leaves, by_range
        self.opened: dict[str, Source] = {}
        self.rename: dict[str, dict[str, str]] = {}

    def open(self, ref: Any) -> Source:
        """The source of a reference, or of leaves that are open already."""
        if isinstance(ref, Leaves):
            name = getattr(ref, "ref", "") or f"leaves in memory {len(self.opened)}"
            source = ref if isinstance(ref, Source) else Source(ref, name, None, (), {})
            known = [s for s in self.opened.values() if s is source or s.source is ref]
            return known[0] if known else self.opened.setdefault(name, source)
        if not isinstance(ref, str) or not ref:
            raise UserError(f"a model must be a path or org/name@revision, got {ref!r}.")
        if ref not in self.opened:
            path = self.path(ref)
            source = open_source(
                path, near=self.near, allow_pickle=self.allow_pickle, by_range=self.by_range
            )
            self.opened[ref] = renamed(source, self.rename.get(ref, {}))
        return self.opened[ref]

    def path(self, ref: str) -> str:
        """The reference with the outputs of earlier stages in place of their names."""
        return "+".join(str(self.stages.get(part, part)) for part in ref.split("+"))

    def family(self, refs: Sequence[str]) -> list[Source]:
        """Sources that are merged with each other, the first being the measure of the rest."""
        first, *rest = (self.open(r) for r in refs)
        return [first, *(s if s is first else fit(first, s) for s in rest)]

    def resolve(self, ref: str) -> str:
        """The reference in a form that means the same anywhere."""
        return self.open(ref).ref

    def close(self, given: Sequence[Any] = ()) -> None:
        """Close what was opened here, not what was `given` open."""
        for source in self.opened.values():
            if not any(source is g or source.source is g for g in given):
                source.close()


def check_models(refs: Sequence[Any]) -> None:
    """Raise if so many models are named that their programs would not be compiled in hours."""
    if len(refs) > MAX_MODELS:
        raise UserError(
            f"{len(refs):,} models are named; at most {MAX_MODELS:,} are merged at once. Merge "
            "groups of them first (stages), or fold them one by one with jm.update."
        )


def check_rename(setting: Any, refs: Collection[str]) -> dict[str, dict[str, str]]:
    """``rename: {MODEL: {prefix: prefix in the base}}``, checked."""
    out = dict(setting or {}) if isinstance(setting, Mapping | None) else {"": setting}
    for ref, table in out.items():
        if ref not in refs:
            raise UserError(f"rename: {ref!r} is no model of the recipe: {closest(str(ref), refs)}")
        good = isinstance(table, Mapping) and table
        if not good or not all(isinstance(x, str) for pair in table.items() for x in pair):
            raise UserError(f"rename: {ref} must map prefixes to prefixes, got {table!r}.")
    return out


def renamed(source: Source, prefixes: Mapping[str, str]) -> Source:
    """A model under other names: of the prefixes that a name begins with, the longest is replaced.

    Raises:
        UserError: two leaves get one name, or no name begins with a prefix.
    """
    if not prefixes:
        return source
    table: dict[str, str] = {}
    used = set()
    for n in source:
        prefix = max((p for p in prefixes if n.startswith(p)), key=len, default=None)
        used.add(prefix)
        new = n if prefix is None else prefixes[prefix] + n[len(prefix) :]
        if new in table:
            raise UserError(f"rename: {source.ref}: {table[new]!r} and {n!r} become {new!r}.")
        table[new] = n
    idle = [p for p in prefixes if p not in used]
    if idle:
        raise UserError(f"rename: {source.ref} has no leaf whose name begins with {idle[0]!r}.")
    return source.renamed(table)


def fit(first: Source, other: Source) -> Source:
    """`other` with the leaves of `first` as far as the same arrays are stored in other places.

    A copy of a tied array is added where `first` stores it and left out where it does not, if it is
    equal to the other copy; buffers, which are constants, are left out where `first` lacks them;
    fused leaves are split, or split ones joined, where `first` has them so.
    """
    other = laid_out(other, set(first))
    ours, theirs = architecture(first), architecture(other)
    table = {n: n for n in other if n in first or theirs.merged(n)}
    for group in dict.fromkeys((*ours.tied, *theirs.tied)):
        stored = [n for n in group if n in other]
        for n in group:
            if n in first and n not in other and stored and n in theirs.copies(stored[0]):
                table[n] = stored[0]
            elif n in other and n not in first:
                copies = [c for c in stored if c in first and c in ours.copies(n)]
                if copies and _equal(other, n, copies[0]):
                    table.pop(n, None)
    if table.keys() == other.names.keys():
        return other
    return other.renamed(table)


def _equal(source: Source, a: str, b: str) -> bool:
    return source.like[a].shape == source.like[b].shape and np.array_equal(source[a], source[b])


def exempt(
    method: Merge, like: Mapping[str, Any], made_of: Architecture, models: Sequence[Leaves]
) -> Merge:
    """The method, with buffers and frozen towers as they are in the base.

    A mean of constants is no constant.  A tower that somebody has trained all the same is merged,
    and one that a model has in part must be whole.
    """
    constant = {n for n in like if not made_of.merged(n)}
    frozen = {n: module for n in constant if (module := made_of.frozen(n)) is not None}
    for module in set(frozen.values()):
        having = [m for m in models if any(n.startswith(module) for n in m)]
        constant -= {n for n in frozen if frozen[n] == module and _differs(having, n)}
    if not any(names.is_float(like[n]) for n in constant):
        return method
    inner = by_leaf(lambda name, like: keep_base() if name in constant else method)
    return inner._replace(stochastic=stochastic(method), models=method.models, needs=method.needs)


def _differs(models: Sequence[Leaves], name: str) -> bool:
    """Whether not all models have the values of the first in a leaf."""
    first, *rest = models
    alike = lambda m: name in m and m.like[name].shape == first.like[name].shape
    return not all(alike(m) and np.array_equal(m[name], first[name]) for m in rest)


def check_vocabulary(sources: Sequence[Source | None]) -> None:
    """Raise where models have vocabularies of different sizes: both sizes, and the ways out."""
    sizes: dict[str, dict[int, str]] = {}
    for source in sources:
        if source is not None:
            made_of = architecture(source)
            for n in filter(made_of.vocabulary, source):
                if len(source.like[n].shape) == 2:
                    sizes.setdefault(n, {}).setdefault(made_of.rows(n), source.ref)
    for leaf, by_size in sizes.items():
        if len(by_size) > 1:
            listed = ", ".join(f"{size} rows in {ref}" for size, ref in by_size.items())
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


def key_of(method: Merge, seed: int) -> Any:
    """The PRNG key of a method that needs one."""
    return jax.random.key(seed) if stochastic(method) else None


def by_presence(views, base, leaves: str) -> list[tuple[list, Leaves | None]]:
    """Views of the leaves that the same models have; one set of views unless `leaves` says more.

    Args:
        views: of the sources, each with its entry in the recipe.
        leaves: "same" leaves all as they are, "intersection" takes what all have, "union" one set
            for every set of models that have a leaf.
    """
    if leaves == "same":
        return [(views, base)]
    everyone = [v for _, v in views] + ([base] if base is not None else [])
    names = dict.fromkeys(n for v in everyone for n in v)
    have = {n: tuple(n in v for v in everyone) for n in names}
    if leaves == "intersection":
        have = {n: h for n, h in have.items() if all(h)}
        if not have:
            raise UserError("--tensor-intersection: the models have no leaf in common.")
    out = []
    for kind in dict.fromkeys(have.values()):
        group = [n for n in have if have[n] == kind]
        pick = lambda v, group=group: View(v, {n: n for n in group}, v.ref)
        there = [(s, pick(v)) for (s, v), has in zip(views, kind, strict=False) if has]
        theta = pick(base) if base is not None and kind[-1] else None
        out.append((there, theta))
    return out
