"""From a recipe's description of a method to the method: names, arguments, chains, rules.

    method: magmax                              a name
    method: {ties: {density: 0.2}}              a name with arguments
    method: {name: ties, density: 0.2}          the same
    method: [{trim: 0.2}, disjoint_mean, {scale: 0.4}]      a chain

An argument that differs from leaf to leaf (see `jaxmerge.recipes.values`) makes its stage a route:
the stage is built for every leaf with the leaf's own values, once for equal values.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxmerge.core.composition import by_leaf, chain, keep_base, partition, stochastic
from jaxmerge.core.patterns import PatternError, compile_pattern
from jaxmerge.core.registry import REGISTRY, get
from jaxmerge.core.specs import Spec, Static
from jaxmerge.core.stage_specs import spec_of
from jaxmerge.core.types import Merge, Transform
from jaxmerge.errors import UserError, closest
from jaxmerge.io.architectures import Architecture, architecture
from jaxmerge.recipes.parse import mapping
from jaxmerge.recipes.values import Where, constant, reader


def build(method: Any, models: int, like: Any, what: str = "method") -> Merge:
    """The method that a recipe describes.

    Args:
        models: how many models there are.
        like: the leaves, as an `Architecture` where the config is known too.

    Raises:
        UserError: an unknown name or argument (with the closest known one), a value that its
            factory refuses.
    """
    if isinstance(method, Merge):
        return method
    like = like if isinstance(like, Architecture) else architecture(like)
    if isinstance(method, list):
        stages = [_stage(m, models, like, f"{what}[{i}]") for i, m in enumerate(method)]
        try:
            return chain(*stages)
        except (TypeError, ValueError) as error:
            raise UserError(f"{what}: {error}") from None
    stage = _stage(method, models, like, what)
    if isinstance(stage, Transform):
        raise UserError(
            f"{what}: {method!r} changes one task vector and merges nothing; write a list such as "
            f"[{method!r}, add]."
        )
    return stage


def as_data(method: Merge | Transform | Spec) -> Any:
    """A made method as recipes write it; what data cannot say (functions, arrays) as it prints.

    >>> import jaxmerge as jm
    >>> as_data(jm.chain(jm.trim(0.2), jm.disjoint_mean(), jm.scale(0.4)))
    [{'trim': {'density': 0.2}}, 'disjoint_mean', {'scale': {'factor': 0.4}}]
    """
    spec = method if isinstance(method, Spec) else getattr(method, "spec", None) or spec_of(method)
    name = getattr(spec.factory, "__name__", "")
    try:
        if name not in REGISTRY:
            raise TypeError
        if name == "chain":
            return [as_data(s) for s in spec.arguments["stages"]]
        defaults = {k: p.default for k, p in inspect.signature(spec.factory).parameters.items()}
        plain = {k: _plain(v) for k, v in spec.arguments.items()}
        given = {k: v for k, v in plain.items() if v != _plain(defaults[k])}
    except TypeError:
        return str(method)
    return {name: given} if given else name


def _plain(value: Any) -> Any:
    value = value.value if isinstance(value, Static) else value
    if isinstance(value, Spec | Merge | Transform):
        return as_data(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if value is inspect.Parameter.empty:
        return value
    raise TypeError("no plain data")


def route(rules: Any, default: Merge | None, models: int, like: Any) -> Merge:
    """Rules around a method: ``{only: regex}``, or ``[{match: regex, method: ...}, ...]``."""
    if isinstance(rules, Mapping):
        only = mapping(rules, "rules", ("only",)).get("only")
        if default is None:
            raise UserError("rules: {only: ...} needs a method.")
        _check_matches([("only", _regex(only))], like)
        return partition(
            {"merged": default, "base": keep_base()}, [(only, "merged"), (".*", "base")]
        )
    if not isinstance(rules, list) or not rules:
        raise UserError(f"rules must be a list of {{match, method}} or {{only: ...}}: {rules!r}.")
    merges, ordered = {}, []
    for i, rule in enumerate(rules):
        rule = mapping(rule, f"rules[{i}]", ("match", "method"))
        for key in ("match", "method"):
            if key not in rule:
                raise UserError(f"rules[{i}] has no {key}.")
        label = f"{i}"
        merges[label] = build(rule["method"], models, like, f"rules[{i}].method")
        ordered.append((_regex(rule["match"]), label))
    _check_matches([(f"[{i}].match", pattern) for i, (pattern, _) in enumerate(ordered)], like)
    if default is not None:
        merges["default"] = default
        ordered.append((".*", "default"))
    return partition(merges, ordered)


def _check_matches(patterns: list[tuple[str, str]], like: Any) -> None:
    """Refuse regexes that match no leaf, all of them: as a rule a name is misspelt."""
    like = like.like if isinstance(like, Architecture) else like
    idle = [(where, p) for where, p in patterns if not any(map(compile_pattern(p).search, like))]
    if idle:
        raise UserError(
            f"rules: {', '.join(f'{where} {p!r}' for where, p in idle)} matches none of the "
            f"{len(like)} leaves, which are named such as {', '.join(list(like)[:3])}. See all of "
            "them with jaxmerge inspect; correct the rule, or leave it out."
        )


def _regex(pattern: Any) -> str:
    if not isinstance(pattern, str | re.Pattern):
        raise UserError(f"rules: a regular expression must be text, got {pattern!r}.")
    try:
        return compile_pattern(pattern).pattern
    except (PatternError, TypeError) as error:
        raise UserError(f"rules: {error}") from None


NO_TEXT = (
    "Any",
    "float",
    "int",
    "bool",
    "Number",
    "Numbers",
    "Numbers | None",
    "Labels",
    "Block | None",
)


def _stage(method: Any, models: int, made_of: Architecture, what: str) -> Merge | Transform:
    name, arguments, first = _parts(method, what)
    try:
        factory = get(name)
    except KeyError:
        raise UserError(f"{what}: no method is named {name!r}: {closest(name, REGISTRY)}") from None
    signature = inspect.signature(factory).parameters
    if name in ("by_leaf", "chain", "partition"):
        raise UserError(f"{what}: write a list for a chain, and rules for {name}.")
    if first is not None:
        if not signature:
            raise UserError(f"{what}: {name} takes no argument, got {first!r}.")
        arguments = {next(iter(signature)): first}
    mapping(arguments, f"{what}: {name}", signature)
    fixed, varying = {}, {}
    for key, value in arguments.items():
        where = f"{what}: {name}.{key}"
        annotation = str(signature[key].annotation)
        if "Merge" in annotation or "Transform" in annotation:
            fixed[key] = build(value, models, made_of, where)
        elif isinstance(value, str) and annotation in NO_TEXT:
            raise UserError(f"{where} must be a number, got {value!r}.")
        elif annotation == "int" or isinstance(signature[key].default, bool | str | int):
            fixed[key] = value  # no number that could differ from leaf to leaf
        elif isinstance(value, str | bool):
            fixed[key] = value
        elif (read := reader(value, models, where, made_of.like, key == "weights")) is not None:
            varying[key] = read
        else:
            fixed[key] = constant(value, models, where, key == "weights")
    for key, value in of_family(name, signature, made_of).items():
        if key in arguments:
            continue
        if key not in AXES:
            fixed[key] = value
        elif len(values := set(value.values())) == 1:
            fixed[key] = values.pop()
        elif values:
            usual = signature[key].default
            varying[key] = lambda leaf, v=value, usual=usual: v.get(leaf.name, usual)
    if not varying:
        return _call(factory, fixed, what)
    return _varying(factory, fixed, varying, made_of, what)


AXES = ("axis", "output_axis")


def of_family(name: str, signature: Mapping[str, Any], made_of: Architecture) -> dict[str, Any]:
    """What a recipe leaves to the model: which leaves are kernels, where layers lie, and by kernel
    which axis is "in" (``axis``) or "out"."""
    out: dict[str, Any] = {}
    if "leaves" in signature:
        out["leaves"] = made_of.by_kernel
    if name == "lines":
        out["block"] = made_of.block_depth
    into = {n: 0 if made_of.transposed(n) else 1 for n in made_of.like if made_of.kernel(n)}
    if "axis" in signature and type(usual := signature["axis"].default) is int:
        out["axis"] = into if usual >= 0 else {n: i and usual for n, i in into.items()}
    if "output_axis" in signature:
        out["output_axis"] = {n: 1 - i for n, i in into.items()}
    return out


def _parts(method: Any, what: str) -> tuple[str, dict[str, Any], Any]:
    if isinstance(method, str):
        return method, {}, None
    if isinstance(method, Mapping) and "name" in method:
        arguments = dict(method)
        name = arguments.pop("name")
        if isinstance(name, str):
            return name, arguments, None
    elif isinstance(method, Mapping) and len(method) == 1:
        ((name, arguments),) = method.items()
        if isinstance(name, str):
            if arguments is None:
                return name, {}, None
            if isinstance(arguments, Mapping) and not {"gradient", "models"} & set(arguments):
                return name, dict(arguments), None
            return name, {}, arguments
    raise UserError(f"{what} must be a name, {{name: arguments}} or a list (a chain): {method!r}.")


def _call(factory: Callable, arguments: Mapping[str, Any], what: str) -> Merge | Transform:
    try:
        return factory(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from None


def _varying(factory, fixed, varying, made_of, what) -> Merge | Transform:
    """A stage built anew for every leaf whose values differ."""
    like = made_of.like
    built: dict[tuple, Merge | Transform] = {}
    stages: dict[str, Any] = {}
    for n in like:
        values = {k: read(Where(n, made_of.depth(n))) for k, read in varying.items()}
        code = tuple(values.items())
        if code not in built:
            built[code] = _call(factory, fixed | values, f"{what} at leaf {n!r}")
        stages[n] = built[code]
    sample = next(iter(stages.values()))
    if len(built) > 1 and any(m is not None and m.scope == "row" for m in _measures(sample)):
        raise UserError(
            f"{what}: {sample} looks at the whole model, so its arguments cannot differ from leaf "
            "to leaf. Write a chain whose varying stage does not ([{trim: 0.2}, disjoint_mean, "
            "{scale: [0, 1]}]), or choose a scope of single leaves."
        )
    choose = lambda name, like: stages[name]
    if isinstance(sample, Transform):
        return Transform(kernel=lambda x, ctx: x, stochastic=sample.stochastic, route=choose)
    return by_leaf(choose)._replace(
        stochastic=stochastic(sample), models=sample.models, needs=sample.needs
    )


def _measures(stage: Merge | Transform) -> list:
    if isinstance(stage, Transform):
        return [stage.measure]
    inner = [t.measure for t in stage.before + stage.after]
    return [*inner, stage.measure, stage.opening, stage.closing]
