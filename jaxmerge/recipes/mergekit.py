"""Mergekit's YAML, run unchanged.

A document with the key ``merge_method`` is mergekit's: ``models``, ``slices`` with layer ranges, or
``modules``; parameters with filters (substrings) and layer gradients, looked up in the source, then
in the slice, the module and the document.  All twenty methods, with mergekit's reading of them
(`jaxmerge.recipes.mergekit_methods`).  What differs on purpose:

    ===================  ==========================================================================
    arithmetic           float32 whatever `dtype` says; `dtype` and `out_dtype` say what is stored
    unknown keys         ignored as there, but named in a warning; refused with --strict
    random methods       other random numbers (seed 0 by default); as there, masks belong to a
                         model's place in the list
    buffers              stay as in the base (rotary frequencies, masks); there merged like weights,
                         and left out where not all models have them
    filters              `self_attn` and `mlp` where a family has other words for attention and mlp:
                         there they match nothing
    ties, breadcrumbs    of equal magnitudes the first in the tensor stay, there whichever the sort
                         puts first; as many of them
    breadcrumbs          keeps at least one entry of a tensor; there none where density n < 1
    sce                  models weigh by their energy also where it is below 1e-6
    model_stock          no floor of 1e-6 under the product of norms, which shrinks small changes
    slerp, its relatives the angle from half chords; mergekit's arccos loses half the digits
    nuslerp by rows      what is a row of a tensor with more than two axes: all axes but the first
                         (the last by columns) together; there one axis alone
    arcee_fusion         exact quantiles and divergence, no subsample above a million entries
    della                rows of one entry are kept with probability density; mergekit stops
    vocabularies         of different sizes are refused without a tokenizer choice, not truncated
    padding rows         beyond the last token (`pad_to_multiple_of`) are zero; there the mean of
                         all rows
    chat templates       of a name are written from the formats' descriptions, not copied: white
                         space may differ; the output gets chat_template.jinja besides the config
    LoRA                 adapters are applied leaf by leaf in float32, nothing on disk
    ===================  ==========================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxmerge.core.composition import by_leaf, keep_base, stochastic
from jaxmerge.core.types import Merge
from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError, closest
from jaxmerge.io.architectures import architecture
from jaxmerge.io.opened_model import View
from jaxmerge.io.safetensors import Leaves
from jaxmerge.recipes import mergekit_document as document
from jaxmerge.recipes.layers import Layout, ref_of
from jaxmerge.recipes.mergekit_methods import READINGS
from jaxmerge.recipes.mergekit_parameters import PARTS, absent, filters, labelled, look_up
from jaxmerge.recipes.parse import check_kinds
from jaxmerge.recipes.plan import (
    Models,
    Plan,
    by_presence,
    check_models,
    check_rename,
    check_vocabulary,
    dtype_of,
    exempt,
    key_of,
    seed_of,
)
from jaxmerge.recipes.vocabulary import Vocabulary


@contextlib.contextmanager
def naming(ignored: Sequence[str]) -> Iterator[None]:
    """Add to a refusal the keys that nothing reads: as a rule the one that is missing, misspelt."""
    try:
        yield
    except UserError as error:
        more = "".join(f"\n  {line}" for line in ignored[:5])
        raise UserError(f"{error}{more}") from None


@dataclasses.dataclass
class Config:
    """One document of mergekit's.

    Attributes:
        content: as it was read, without what is ignored.
        name: by which other documents refer to its output.
        seed: not part of the format; from the command line, or of a resolved recipe.
        ignored: a line for every key that nothing reads.
    """

    content: dict[str, Any]
    name: str | None = None
    seed: int = 0
    out_dtype: str | None = None
    resolved: dict[str, Any] | None = None
    ignored: list[str] = dataclasses.field(default_factory=list)
    overflow: str | None = None

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Config:
        """Check the document, and put aside the keys that nothing reads, as mergekit does."""
        method = content["merge_method"] or ""
        if not isinstance(method, str) or method not in READINGS:
            raise UserError(f"merge_method {method!r}: {closest(str(method), READINGS)}")
        content, ignored = document.read_keys(content, READINGS[method])
        check_kinds(content, document.KINDS)
        shapes = [k for k in ("models", "slices", "modules") if content.get(k) is not None]
        if len(shapes) != 1:
            raise UserError(f"the recipe needs one of models, slices, modules; it has {shapes}.")
        if content.get("tokenizer") and content.get("tokenizer_source"):
            raise UserError("the recipe has tokenizer and tokenizer_source: write one of them.")
        resolved = content.pop("resolved", None) or {}
        overflow = content.pop("overflow", None)
        seed = seed_of(resolved.get("seed", 0))
        config = cls(content, content.get("name"), seed, None, resolved, ignored, overflow)
        with naming(ignored):
            config.references()
        return config

    def references(self) -> list[str]:
        """Every model that the document names, the names of other documents among them."""
        refs = [ref_of(r) for r in document.references(self.content)]
        base = self.content.get("base_model")
        return [*([ref_of(base)] if base else []), *refs]

    def plan(self, models: Models) -> Plan:
        """Open the models, place the layers, look up the parameters of every leaf."""
        with naming(self.ignored):
            return self._plan(models)

    def _plan(self, models: Models) -> Plan:
        content = self.content
        what = content["merge_method"]
        modules = document.modules(content)
        jobs: list[Job] = []
        changes: dict[Any, Any] = {}
        refs = [ref_of(r) for r in document.references(content)]
        base_ref = ref_of(content["base_model"]) if content.get("base_model") else None
        models.rename = check_rename(
            content.get("rename"), [*([base_ref] if base_ref else []), *refs]
        )
        check_models(refs)
        family = models.family(list(dict.fromkeys([base_ref or refs[0], *refs])))
        sources = dict(zip(dict.fromkeys([base_ref or refs[0], *refs]), family, strict=True))
        setting = content.get("tokenizer") or content.get("tokenizer_source")
        template = content.get("chat_template")
        vocabulary = Vocabulary.of(
            setting, template, models, list(sources.values()), based=base_ref is not None
        )
        if vocabulary is None:
            check_vocabulary(list(sources.values()))
        else:
            sources = dict(zip(sources, vocabulary.apply(list(sources.values())), strict=True))
        document.check_covered(next(iter(sources.values())), content.get("modules") or {}, modules)
        for inside, slices, levels in modules:
            layout = Layout(sources, slices, base_ref, inside)
            changes |= layout.changes()
            for i, piece in enumerate(slices):
                views, base = layout.views(i)
                depth = functools.partial(layout.depth, i)
                here = ref_of(piece["base_model"]) if piece.get("base_model") else base_ref
                within = [piece.get("parameters") or {}, *levels]
                jobs += [
                    _job(what, group, theta, here, within, depth, self.seed)
                    for group, theta in by_presence(views, base, models.leaves)
                ]
        first = sources[base_ref or refs[0]]
        made_of = architecture(first)
        taken = [
            f"filter {f!r}: no leaf of {first.ref} has that in its name; taken as the {PARTS[f]}"
            for f in absent(first)
            if f in filters(content)
        ]
        for job in (jobs := [j for j in jobs if j.like]):
            models_of = [m for m in (job.base, *job.models) if m is not None]
            job.method = exempt(job.method, job.like, made_of, models_of)
        return Plan(
            jobs=jobs,
            models=models,
            source=first,
            out_dtype=dtype_of(
                self.out_dtype or content.get("out_dtype") or content.get("dtype"), "dtype"
            ),
            seed=self.seed,
            resolved=document.resolved(content, models),
            method=what,
            config=changes | (vocabulary.config if vocabulary else {}),
            files=vocabulary.files if vocabulary else {},
            warnings=[*(vocabulary.warnings if vocabulary else []), *taken],
        )


Views = list[tuple[dict[str, Any], Leaves]]  # entries of the recipe with the leaves they name


def _merged(
    what: str, views: Views, base: Leaves | None, base_ref: str | None
) -> tuple[Views, Leaves | None]:
    """What a method merges, in its order, and the base that it takes task vectors from."""
    reading = READINGS[what]
    if reading.base in ("needed", "model") and base is None:
        there = next(iter(views[0][1]))
        lacks = f": {base_ref} lacks leaf {there!r}" if base_ref else ""
        raise UserError(f"{what} needs base_model{lacks}.")
    others = [v for v in views if ref_of(v[0]["model"]) != base_ref]
    of_base = [v for v in views if ref_of(v[0]["model"]) == base_ref]
    if reading.base == "model":
        assert base is not None
        merged, base = [*(of_base[:1] or [({"model": base_ref}, base)]), *others], None
    elif reading.base in ("none", "joins"):
        whole = all("layer_range" not in s for s, _ in views)
        joins = reading.base == "joins" and whole and base is not None and not of_base
        merged, base = [*views, *([({"model": base_ref}, base)] if joins else [])], None
    else:
        merged = views if base is None else others
    low, high = reading.count
    if not low <= len(merged) <= (high or len(merged)):
        number_ = f"{low}" if low == high else f"at least {low}"
        raise UserError(f"{what} merges {number_} model(s) (besides the base); got {len(merged)}.")
    return merged, base


def _job(
    what: str,
    views: Views,
    base: Leaves | None,
    base_ref: str | None,
    levels: Sequence[Mapping[str, Any]],
    depth: Callable[[str], float],
    seed: int,
) -> Job:
    """The merge of one slice.

    Args:
        levels: parameters of the slice, of the module and of the document.
        depth: where in the slice a leaf stands, in [0, 1].
    """
    reading = READINGS[what]
    alone = [v for v in (*(v for _, v in views), base) if v is not None]
    if len(alone) == 1 and base_ref is not None:  # of a union: nothing to merge it with
        return Job(keep_base(), alone, alone[0])
    merged, base = _merged(what, views, base, base_ref)
    like, words = (base or merged[0][1]).like, absent(merged[0][1])
    built: dict[Any, Merge] = {}
    merges: dict[str, Merge] = {}
    for n in like:
        t = depth(n)
        at = lambda view, n=n: labelled(name_in(view, n), words)
        world = {
            k: look_up(k, d, levels, labelled(n, words), t, what) for k, d in reading.world.items()
        }
        per_leaf = {
            k: tuple(
                look_up(k, d, [s.get("parameters") or {}, *levels], at(v), t, what, s["model"])
                for s, v in merged
            )
            for k, d in reading.model.items()
        }
        code = tuple(world.values()), tuple(per_leaf.values())
        if code not in built:
            try:
                built[code] = reading.build(world, per_leaf)
            except (TypeError, ValueError) as error:
                raise UserError(f"{what} at leaf {n!r}: {error}") from None
        merges[n] = built[code]
    models = [v for _, v in merged]
    if what == "passthrough" and all(scale is None for _, ((scale,),) in built):
        base, method = models[0], keep_base()
    elif len(built) == 1:
        (method,) = built.values()
    else:
        first = next(iter(built.values()), keep_base())
        method = by_leaf(lambda name, like: merges[name])._replace(
            stochastic=any(map(stochastic, built.values())), models=first.models
        )
    return Job(method, models, base, key_of(method, seed))


def name_in(view: Any, name: str) -> str:
    """What a leaf of the output is called in the file of one model."""
    while type(view) is View and name in view.names:
        name, view = view.names[name], view.source
    return name
