"""Mergekit's YAML, run unchanged.

A document with the key ``merge_method`` is mergekit's: ``models``, ``slices`` with layer ranges, or
``modules``; parameters with filters (substrings) and layer gradients, looked up in the source, then
in the slice, the module and the document.  All twenty methods, with mergekit's reading of them
(`jaxmerge.recipes.mergekit_methods`).  What differs on purpose:

    ===================  ==========================================================================
    arithmetic           float32 whatever `dtype` says; `dtype` and `out_dtype` say what is stored
    unknown keys         refused, also misspelt parameters; mergekit ignores them
    random methods       other random numbers (seed 0 by default), whatever the order of models
    breadcrumbs          where gamma keeps no entry at the top, nothing is dropped there; mergekit
                         then drops the whole tensor
    sce                  models weigh by their energy also where it is below 1e-6
    model_stock          no floor of 1e-6 under the product of norms, which shrinks small changes
    slerp, its relatives the angle from half chords; mergekit's arccos loses half the digits
    arcee_fusion         exact quantiles and divergence, no subsample above a million entries
    ties                 at least one entry is kept; mergekit stops where density n < 1
    della                rows of one entry are kept with probability density; mergekit stops
    vocabularies         of different sizes are refused without a tokenizer choice, not truncated
    LoRA                 adapters are applied leaf by leaf in float32, nothing on disk
    ===================  ==========================================================================
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxmerge.core.composition import by_leaf, keep_base, stochastic
from jaxmerge.core.types import Merge
from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError, closest
from jaxmerge.io.architectures import architecture, tower_of
from jaxmerge.io.sources import Source
from jaxmerge.recipes.layers import Layout, ref_of
from jaxmerge.recipes.mergekit_methods import READINGS, REQUIRED, Reading
from jaxmerge.recipes.parse import check_kinds, mapping, number
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
_TEXT = ("default", "text_decoder", "language_model", "text_model")


def key_of(method: Merge, seed: int) -> Any:
    """The PRNG key of a method that needs one."""
    return jax.random.key(seed) if stochastic(method) else None


@dataclasses.dataclass
class Config:
    """One document of mergekit's.

    Attributes:
        content: as it was read.
        name: by which later documents refer to its output.
        seed: not part of the format; from the command line, or of a resolved recipe.
    """

    content: dict[str, Any]
    name: str | None = None
    seed: int = 0
    out_dtype: str | None = None
    resolved: dict[str, Any] | None = None
    overflow: str | None = None

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Config:
        """Check the document's keys."""
        content = mapping(content, "the recipe", KEYS)
        check_kinds(content, KINDS)
        method = content["merge_method"] or ""
        if method not in READINGS:
            raise UserError(f"merge_method {method!r}: {closest(str(method), READINGS)}")
        shapes = [k for k in ("models", "slices", "modules") if content.get(k) is not None]
        if len(shapes) != 1:
            raise UserError(f"the recipe needs one of models, slices, modules; it has {shapes}.")
        resolved = content.pop("resolved", None) or {}
        overflow = content.pop("overflow", None)
        seed = seed_of(resolved.get("seed", 0))
        return cls(content, content.get("name"), seed, None, resolved, overflow)

    def plan(self, models: Models) -> Plan:
        """Open the models, place the layers, look up the parameters of every leaf."""
        content = self.content
        reading = READINGS[content["merge_method"]]
        what = content["merge_method"]
        _check_parameters(content.get("parameters"), reading, "parameters")
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
        vocabulary = Vocabulary.of(setting, template, models, list(sources.values()))
        if vocabulary is None:
            check_vocabulary(list(sources.values()))
        else:
            sources = dict(zip(sources, vocabulary.apply(list(sources.values())), strict=True))
        _check_covered(next(iter(sources.values())), [inside for inside, _, _ in modules])
        for inside, slices, levels in modules:
            layout = Layout(sources, slices, base_ref, inside)
            changes |= layout.changes()
            for number_, piece in enumerate(slices):
                views, base = layout.views(number_)
                depth = functools.partial(layout.depth, number_)
                jobs.append(
                    _job(what, reading, piece, views, base, base_ref, depth, levels,
                         self.seed)
                )  # fmt: skip
        first = sources[base_ref or refs[0]]
        made_of = architecture(first)
        for job in (jobs := [j for j in jobs if j.like]):
            job.method = exempt(job.method, job.like, made_of)
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
        module = mapping(module, f"modules.{name}", ("models", "slices", "parameters"))
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
        some = [mapping(m, "a model", ("model", "parameters")) for m in content["models"]]
        return [{"sources": some}]
    out = []
    if not isinstance(content["slices"], list) or not content["slices"]:
        raise UserError(f"slices must be a list, got {content['slices']!r}.")
    for i, piece in enumerate(content["slices"]):
        known = ("sources", "base_model", "parameters", "residual_weight")
        piece = mapping(piece, f"slices[{i}]", known)
        where = f"slices[{i}].sources"
        if not isinstance(piece.get("sources"), list) or not piece["sources"]:
            raise UserError(f"{where} must be a list.")
        known = ("model", "layer_range", "parameters")
        piece["sources"] = [mapping(s, where, known) for s in piece["sources"]]
        for s in piece["sources"]:
            span = s.get("layer_range")
            if not (
                isinstance(span, list) and len(span) == 2 and all(type(v) is int for v in span)
            ):
                raise UserError(f"{where}: layer_range must be [first, behind the last]: {span!r}.")
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


def _job(what, reading, piece, views, base, base_ref, depth, levels, seed) -> Job:
    base_ref = ref_of(piece["base_model"]) if piece.get("base_model") else base_ref
    _check_parameters(piece.get("parameters"), reading, "slice parameters")
    for s, _ in views:
        _check_parameters(s.get("parameters"), reading, f"parameters of {s['model']}")
    levels = [piece.get("parameters") or {}, *levels]
    if reading.base in ("needed", "model") and base is None:
        raise UserError(f"{what} needs base_model.")
    if reading.base == "model":
        others = [v for v in views if ref_of(v[0]["model"]) != base_ref]
        mine = [v for v in views if ref_of(v[0]["model"]) == base_ref]
        merged = [*(mine[:1] or [({"model": base_ref}, base)]), *others]
        base = None
    elif reading.base == "none":
        merged, base = views, None
    else:
        merged = [v for v in views if base is None or ref_of(v[0]["model"]) != base_ref]
    low, high = reading.count
    if not low <= len(merged) <= (high or len(merged)):
        number_ = f"{low}" if low == high else f"at least {low}"
        raise UserError(f"{what} merges {number_} model(s) (besides the base); got {len(merged)}.")
    like = (base or merged[0][1]).like
    built: dict[Any, Merge] = {}
    made: dict[str, Merge] = {}
    for n in like:
        look = lambda key, default, own, n=n: _look(key, default, [own, *levels], n, depth, what)
        world = {k: look(k, d, {}) for k, d in reading.world.items()}
        each = {
            k: tuple(look(k, d, s.get("parameters") or {}) for s, _ in merged)
            for k, d in reading.model.items()
        }
        code = tuple(world.values()), tuple(each.values())
        if code not in built:
            try:
                built[code] = reading.build(world, each)
            except (TypeError, ValueError) as error:
                raise UserError(f"{what} at leaf {n!r}: {error}") from None
        made[n] = built[code]
    models = [v for _, v in merged]
    if what == "passthrough" and all(scale is None for _, ((scale,),) in built):
        base, method = models[0], keep_base()
    elif len(built) == 1:
        (method,) = built.values()
    else:
        first = next(iter(built.values()), keep_base())
        method = by_leaf(lambda name, like: made[name])._replace(
            stochastic=any(map(stochastic, built.values())), models=first.models
        )
    return Job(method, models, base, key_of(method, seed))


def _look(key: str, default: Any, levels: Sequence[Mapping], name: str, depth: Callable, what: str):
    for parameters in levels:
        if key in parameters:
            value = _value(parameters[key], name, depth, f"{what}: {key}")
            if value is not None:
                return value
    if default is REQUIRED:
        raise UserError(
            f"{what}: no {key} for leaf {name!r}. Give every model a {key}, or add an entry "
            f"without a filter."
        )
    return default


def _value(value: Any, name: str, depth: Callable, what: str) -> Any:
    if isinstance(value, list):
        if value and all(isinstance(v, Mapping) for v in value):
            for entry in value:
                entry = mapping(entry, what, ("filter", "value"))
                text = entry.get("filter")
                if text in (None, "*") or str(text) in name:
                    return _value(entry.get("value"), name, depth, what)
            return None
        if not value:
            raise UserError(f"{what}: an empty list.")
        return gradient([float(number(v, what)) for v in value], depth(name))
    if isinstance(value, bool) or value is None:
        return value
    return float(number(value, what))


def _check_parameters(parameters: Any, reading: Reading, what: str) -> None:
    if parameters is not None:
        mapping(parameters, what, sorted({*reading.world, *reading.model}))


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
