"""A document of mergekit's taken apart: what is written where, and what nothing reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmerge.errors import UserError, closest
from jaxmerge.io.architectures import architecture, tower_of
from jaxmerge.io.opened_model import Source
from jaxmerge.recipes.layers import ref_of
from jaxmerge.recipes.mergekit_methods import Reading
from jaxmerge.recipes.parse import mapping
from jaxmerge.recipes.plan import Models
from jaxmerge.recipes.vocabulary import resolved as resolved_tokenizer

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
SHOWN = 20  # keys that nothing reads, with a hint
MODEL = ("model", "parameters")
SOURCE = ("model", "layer_range", "parameters")
SLICE = ("sources", "base_model", "parameters", "residual_weight")
MODULE = ("models", "slices", "parameters")
Module = tuple[Callable[[str], bool], list, list]  # its leaves, slices, levels of parameters


def modules(content: Mapping[str, Any]) -> list[Module]:
    """The modules of a document, the whole model where it names none."""
    world = content.get("parameters") or {}
    if content.get("modules") is None:
        return [(lambda name: True, slices(content), [world])]
    modules = content["modules"]
    if not isinstance(modules, Mapping) or not modules:
        raise UserError(f"modules must map names to models or slices, got {modules!r}.")
    elsewhere = {t for m in modules for t in MODULES.get(m, ())}
    paths = [m for m in modules if m not in MODULES and m not in _TEXT]
    out: list[Module] = []
    for name, module in modules.items():
        module = mapping(module, f"modules.{name}", MODULE)
        apart = [p for p in paths if p != name and (name not in paths or below(p, name))]
        if name in MODULES:
            own = lambda n, towers=MODULES[name]: tower_of(n) in towers
        elif name in _TEXT:
            own = lambda n: tower_of(n) not in elsewhere
        else:
            own = lambda n, path=name: below(n, path)
        inside = lambda n, own=own, apart=apart: own(n) and not any(below(n, p) for p in apart)
        out.append((inside, slices(module), [module.get("parameters") or {}, world]))
    return out


def below(name: str, path: str) -> bool:
    """Whether a leaf lies below a path.

    >>> below("model.layers.0.norm.weight", "model.layers"), below("model.norm.weight", "model.no")
    (True, False)
    """
    return name.startswith(path) and re.match(r"$|[./]|(?<=_)\d", name[len(path) :]) is not None


def check_covered(first: Source, named: Mapping[str, Any], inside: Sequence[Module]) -> None:
    """Raise UserError for modules without a leaf, and for leaves that would be missing.

    Args:
        first: the model whose leaves the output has.
        named: the modules of the document by name, empty where it has none.
        inside: what `modules` makes of them.
    """
    parts = (*MODULES, *_TEXT)
    for name, (own, _, _) in zip(named, inside, strict=False):
        if name not in parts and not any(map(own, first)):
            stacks = [s.path for s in architecture(first).stacks]
            raise UserError(
                f"modules.{name}: no part of a model, and no leaf of {first.ref} lies below that; "
                f"{closest(name, [*parts, *stacks])}"
            )
    left = [n for n in first if not any(own(n) for own, _, _ in inside)]
    if left:
        raise UserError(
            f"modules cover all but {len(left)} leaves of {first.ref} such as {left[0]!r}; add the "
            f"module that holds them: {', '.join((*MODULES, 'default'))}, or a path of leaves."
        )


def slices(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The slices of a document or a module, checked; one of whole models where it has `models`."""
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


def references(content: Mapping[str, Any]) -> list[Any]:
    """Every model that is named, in order."""
    out = []
    parts = content["modules"].values() if content.get("modules") else [content]
    for part in parts:
        for piece in slices(part):
            for s in piece["sources"]:
                if "model" not in s:
                    raise UserError(f"a source has no model: {s!r}.")
                out.append(s["model"])
            if piece.get("base_model"):
                out.append(piece["base_model"])
    return out


def read_keys(content: Mapping[str, Any], reading: Reading) -> tuple[dict[str, Any], list[str]]:
    """The document without the keys that nothing reads, and a line for each of those."""
    ignored: list[str] = []
    parameters = sorted({*reading.world, *reading.model})

    def take(value: Any, where: str, known: Sequence[str]) -> Any:
        if not isinstance(value, Mapping):
            return value  # refused, with what was expected, where it is used
        for k in value:
            if k not in known:
                few = known and len(ignored) < SHOWN
                hint = f" ({closest(str(k), known)})" if few else ""
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


def resolved(content: Mapping[str, Any], models: Models) -> dict[str, Any]:
    """The document with references that mean the same anywhere."""

    def walk(value: Any, key: str = "") -> Any:
        if key in ("model", "base_model") and value is not None:
            return models.resolve(ref_of(value))
        if isinstance(value, Mapping):
            return {k: walk(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v) for v in value]
        return value

    own = ("tokenizer", "tokenizer_source")
    out = walk({k: v for k, v in content.items() if k not in own})
    if out.get("rename"):
        out["rename"] = {models.resolve(r): dict(v) for r, v in content["rename"].items()}
    for key in own:
        if content.get(key):
            out[key] = resolved_tokenizer(content[key], models)
    return out
