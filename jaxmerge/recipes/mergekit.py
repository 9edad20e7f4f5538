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
    buffers              stay as in the base (rotary frequencies, masks); there merged like weights
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxmerge.core.composition import by_leaf, keep_base, stochastic
from jaxmerge.core.types import Merge
from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError, closest
from jaxmerge.io.architectures import architecture, part_of, tower_of
from jaxmerge.io.safetensors import Leaves
from jaxmerge.io.sources import Source, View
from jaxmerge.recipes.layers import Layout, ref_of
from jaxmerge.recipes.mergekit_methods import READINGS, REQUIRED, Reading
from jaxmerge.recipes.parse import check_kinds, mapping, number_of
from jaxmerge.recipes.plan import (
    Models,
    Plan,
    check_rename,
    check_vocabulary,
    dtype_of,
    exempt,
    seed_of,
)
from jaxmerge.recipes.values import gradient
from jaxmerge.recipes.vocabulary import Vocabulary

KEYS = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "name", "resolved", "rename", "overflow",
)  # fmt: skip
KINDS = {
    "merge_method": (str,), "models": (list,), "slices": (list,), "modules": (dict,),
    "base_model": (str, dict), "parameters": (dict,), "dtype": (str,), "out_dtype": (str,),
    "tokenizer_source": (str,), "tokenizer": (dict,), "chat_template": (str,), "name": (str,),
    "resolved": (dict,), "rename": (dict,), "overflow": (str,),
}  # fmt: skip
MODULES = {
    "vision_tower": ("vision",),
    "audio_tower": ("audio",),
    "multi_modal_projector": ("projector",),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
}  # name in a recipe -> towers
PARTS = {"self_attn": "attention", "mlp": "mlp"}  # filters that name a part of a layer
_TEXT = ("default", "text_decoder", "language_model", "text_model")


def key_of(method: Merge, seed: int) -> Any:
    """The PRNG key of a method that needs one."""
    return jax.random.key(seed) if stochastic(method) else None


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
        content, ignored = read_keys(content, READINGS[method])
        check_kinds(content, KINDS)
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
        refs = [ref_of(r) for r in _references(self.content)]
        base = self.content.get("base_model")
        return [*([ref_of(base)] if base else []), *refs]

    def plan(self, models: Models) -> Plan:
        """Open the models, place the layers, look up the parameters of every leaf."""
        with naming(self.ignored):
            return self._plan(models)

    def _plan(self, models: Models) -> Plan:
        content = self.content
        reading = READINGS[content["merge_method"]]
        what = content["merge_method"]
        modules = _modules(content)
        jobs: list[Job] = []
        changes: dict[Any, Any] = {}
        refs = [ref_of(r) for r in _references(content)]
        base_ref = ref_of(content["base_model"]) if content.get("base_model") else None
        models.rename = check_rename(
            content.get("rename"), [*([base_ref] if base_ref else []), *refs]
        )
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
        _check_covered(next(iter(sources.values())), [inside for inside, _, _ in modules])
        for inside, slices, levels in modules:
            layout = Layout(sources, slices, base_ref, inside)
            changes |= layout.changes()
            for i, piece in enumerate(slices):
                views, base = layout.views(i)
                depth = functools.partial(layout.depth, i)
                for group, theta in by_presence(views, base, models.leaves):
                    jobs.append(
                        _job(what, reading, piece, group, theta, base_ref, depth, levels, self.seed)
                    )
        first = sources[base_ref or refs[0]]
        made_of = architecture(first)
        taken = [
            f"filter {f!r}: no leaf of {first.ref} has that in its name; taken as the {PARTS[f]}"
            for f in absent(first)
            if f in _filters(content)
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
            resolved=_resolved(content, models),
            method=what,
            config=changes | (vocabulary.config if vocabulary else {}),
            files=vocabulary.files if vocabulary else {},
            warnings=[*(vocabulary.warnings if vocabulary else []), *taken],
        )


Module = tuple[Callable[[str], bool], list, list]  # its leaves, slices, levels of parameters


def _modules(content: Mapping[str, Any]) -> list[Module]:
    world = content.get("parameters") or {}
    if content.get("modules") is None:
        return [(lambda name: True, _slices(content), [world])]
    modules = content["modules"]
    if not isinstance(modules, Mapping) or not modules:
        raise UserError(f"modules must map names to models or slices, got {modules!r}.")
    elsewhere = {t for m in modules for t in MODULES.get(m, ())}
    out: list[Module] = []
    for name, module in modules.items():
        module = mapping(module, f"modules.{name}", MODULE)
        if name in MODULES:
            inside = lambda n, towers=MODULES[name]: tower_of(n) in towers
        elif name in _TEXT:
            inside = lambda n: tower_of(n) not in elsewhere
        else:
            raise UserError(f"modules.{name}: {closest(name, [*MODULES, *_TEXT])}")
        out.append((inside, _slices(module), [module.get("parameters") or {}, world]))
    return out


def _check_covered(first: Source, modules: Sequence[Callable[[str], bool]]) -> None:
    """Raise UserError for leaves that no module covers: they would be missing in the output."""
    left = [n for n in first if not any(inside(n) for inside in modules)]
    if left:
        raise UserError(
            f"modules cover all but {len(left)} leaves of {first.ref} such as {left[0]!r}; add the "
            f"module that holds them: {', '.join((*MODULES, 'text_decoder'))}."
        )


def _slices(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    if content.get("slices") is None:
        if not isinstance(content.get("models"), list) or not content["models"]:
            raise UserError(f"models must be a list, got {content.get('models')!r}.")
        sources = [mapping(m, "a model", MODEL) for m in content["models"]]
        return [{"sources": sources}]
    out = []
    if not isinstance(content["slices"], list) or not content["slices"]:
        raise UserError(f"slices must be a list, got {content['slices']!r}.")
    for i, piece in enumerate(content["slices"]):
        piece = mapping(piece, f"slices[{i}]", SLICE)
        where = f"slices[{i}].sources"
        if not isinstance(piece.get("sources"), list) or not piece["sources"]:
            raise UserError(f"{where} must be a list.")
        piece["sources"] = [mapping(s, where, SOURCE) for s in piece["sources"]]
        for s in piece["sources"]:
            span = s.get("layer_range")
            if not (
                isinstance(span, list) and len(span) == 2 and all(type(v) is int for v in span)
            ):
                raise UserError(
                    f"{where}: layer_range must be [first, behind the last]: {str(span)[:60]}."
                )
        if len({b - a for a, b in (s["layer_range"] for s in piece["sources"])}) > 1:
            raise UserError(f"{where}: the layer ranges have different lengths.")
        out.append(piece)
    return out


def _references(content: Mapping[str, Any]) -> list[Any]:
    """Every model that is named, in order."""
    out = []
    parts = content["modules"].values() if content.get("modules") else [content]
    for part in parts:
        for piece in _slices(part):
            for s in piece["sources"]:
                if "model" not in s:
                    raise UserError(f"a source has no model: {s!r}.")
                out.append(s["model"])
            if piece.get("base_model"):
                out.append(piece["base_model"])
    return out


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


def _job(what, reading, piece, views, base, base_ref, depth, levels, seed) -> Job:
    base_ref = ref_of(piece["base_model"]) if piece.get("base_model") else base_ref
    levels = [piece.get("parameters") or {}, *levels]
    alone = [v for v in (*(v for _, v in views), base) if v is not None]
    if len(alone) == 1 and base_ref is not None:  # of a union: nothing to merge it with
        return Job(keep_base(), alone, alone[0])
    if reading.base in ("needed", "model") and base is None:
        lacks = f": {base_ref} lacks leaf {next(iter(alone[0]))!r}" if base_ref else ""
        raise UserError(f"{what} needs base_model{lacks}.")
    if reading.base == "model":
        others = [v for v in views if ref_of(v[0]["model"]) != base_ref]
        mine = [v for v in views if ref_of(v[0]["model"]) == base_ref]
        merged = [*(mine[:1] or [({"model": base_ref}, base)]), *others]
        base = None
    elif reading.base in ("none", "joins"):
        given = [ref_of(s["model"]) for s, _ in views]
        whole = all("layer_range" not in s for s, _ in views)
        joins = reading.base == "joins" and whole and base is not None and base_ref not in given
        merged, base = [*views, *([({"model": base_ref}, base)] if joins else [])], None
    else:
        merged = [v for v in views if base is None or ref_of(v[0]["model"]) != base_ref]
    low, high = reading.count
    if not low <= len(merged) <= (high or len(merged)):
        number_ = f"{low}" if low == high else f"at least {low}"
        raise UserError(f"{what} merges {number_} model(s) (besides the base); got {len(merged)}.")
    like, words = (base or merged[0][1]).like, absent(merged[0][1])
    built: dict[Any, Merge] = {}
    merges: dict[str, Merge] = {}
    for n in like:
        t = depth(n)
        look = lambda key, default, own, name, t=t: _look(
            key, default, [own, *levels], name, t, what
        )
        world = {k: look(k, d, {}, labelled(n, words)) for k, d in reading.world.items()}
        per_leaf = {
            k: tuple(
                look(k, d, s.get("parameters") or {}, labelled(name_in(v, n), words))
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


def absent(names: Iterable[str]) -> dict[str, str]:
    """Filters that name a part of a layer and stand in none of these names, with the part."""
    return {f: part for f, part in PARTS.items() if not any(f in n for n in names)}


def labelled(name: str, words: Mapping[str, str]) -> str:
    """What filters match: a name, and behind it the absent words for its part of a layer.

    >>> labelled("transformer.h.0.attn.c_proj.weight", {"self_attn": "attention"})
    'transformer.h.0.attn.c_proj.weight self_attn'
    """
    return " ".join((name, *(word for word, part in words.items() if part_of(name) == part)))


def _filters(content: Any) -> set[str]:
    """Every filter of a document."""
    if isinstance(content, Mapping):
        own = {str(content["filter"])} if "filter" in content else set()
        return own.union(*map(_filters, content.values()))
    return set().union(*map(_filters, content)) if isinstance(content, list) else set()


def _look(key: str, default: Any, levels: Sequence[Mapping], name: str, t: float, what: str):
    for parameters in levels:
        if key in parameters:
            value = _value(parameters[key], name, t, f"{what}: {key}")
            if value is not None:
                return value
    if default is REQUIRED:
        raise UserError(
            f"{what}: no {key} for leaf {name.split()[0]!r}. Give every model a {key}, or add an "
            f"entry without a filter."
        )
    return default


def _value(value: Any, name: str, t: float, what: str) -> Any:
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        if value and all(isinstance(v, Mapping) for v in value):
            for entry in value:
                entry = mapping(entry, what, ("filter", "value"))
                text = entry.get("filter")
                if text in (None, "*") or str(text) in name:
                    return _value(entry.get("value"), name, t, what)
            return None
        if not value:
            raise UserError(f"{what}: an empty list.")
        return gradient([float(number_of(v, what)) for v in value], t)
    if isinstance(value, bool) or value is None:
        return value
    return float(number_of(value, what))


def read_keys(content: Mapping[str, Any], reading: Reading) -> tuple[dict[str, Any], list[str]]:
    """The document without the keys that nothing reads, and a line for each of those."""
    ignored: list[str] = []
    parameters = sorted({*reading.world, *reading.model})

    def take(value: Any, where: str, known: Sequence[str]) -> Any:
        if not isinstance(value, Mapping):
            return value  # refused, with what was expected, where it is used
        for k in value:
            if k not in known:
                hint = f" ({closest(str(k), known)})" if known else ""
                ignored.append(f"{where}: nothing reads {k!r}{hint}")
        return {
            k: take(v, f"{where}: parameters", parameters) if k == "parameters" else v
            for k, v in value.items()
            if k in known
        }

    def entries(value: Any, where: str, known: Sequence[str]) -> Any:
        if not isinstance(value, list):
            return value
        return [take(v, f"{where}[{i}]", known) for i, v in enumerate(value)]

    def shapes(value: dict[str, Any], where: str) -> dict[str, Any]:
        if "models" in value:
            value["models"] = entries(value["models"], f"{where}models", MODEL)
        if "slices" in value:
            value["slices"] = entries(value["slices"], f"{where}slices", SLICE)
            slices = value["slices"]
            for i, piece in enumerate(slices if isinstance(slices, list) else ()):
                if isinstance(piece, Mapping) and "sources" in piece:
                    place = f"{where}slices[{i}].sources"
                    piece["sources"] = entries(piece["sources"], place, SOURCE)
        return value

    out = shapes(take(content, "the recipe", KEYS), "")
    if isinstance(out.get("modules"), Mapping):
        out["modules"] = {
            name: shapes(read, f"modules.{name}.") if isinstance(read, dict) else read
            for name, module in out["modules"].items()
            for read in [take(module, f"modules.{name}", MODULE)]
        }
    return out, list(dict.fromkeys(ignored))


MODEL = ("model", "parameters")
SOURCE = ("model", "layer_range", "parameters")
SLICE = ("sources", "base_model", "parameters", "residual_weight")
MODULE = ("models", "slices", "parameters")


def _resolved(content: Mapping[str, Any], models: Models) -> dict[str, Any]:
    """The document with references that mean the same anywhere."""

    def walk(value: Any, key: str = "") -> Any:
        if key in ("model", "base_model") and value is not None:
            return models.resolve(ref_of(value))
        if isinstance(value, Mapping):
            return {k: walk(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v) for v in value]
        return value

    out = walk(dict(content))
    if out.get("rename"):
        out["rename"] = {models.resolve(r): dict(v) for r, v in content["rename"].items()}
    tokenizer = out.get("tokenizer_source")
    if isinstance(tokenizer, str) and tokenizer not in ("union", "base"):
        out["tokenizer_source"] = models.resolve(tokenizer)
    return out
