"""jaxmerge's own recipes: one dataclass, read from YAML or from a Python file.

    base: models/base                    # theta_0; left out, the weights are merged themselves
    models: [models/a, models/b+adapter, org/name@revision]
    method: {ties: {density: 0.2, factor: 0.5}}               # jaxmerge.recipes.method_spec
    rules: {only: 'mlp'}                 # the rest from the base; or [{match, method}, ...]
    extras: {fisher: [fa.safetensors, fb.safetensors]}        # jaxmerge.recipes.side_inputs
    out_dtype: bfloat16                  # default: each leaf keeps the base's
    seed: 0

    import: my_methods.py                # run first: what it registers is known to the recipe

A Python recipe is a file that sets ``recipe`` to a `Recipe` or to such a mapping; other variables
are its own business.  A Python recipe and an imported file are run, so run only your own: a YAML
recipe may import only with ``--allow-import``, and only files beside it (or below).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxmerge.core.stage_specs import spec_of
from jaxmerge.core.types import Merge
from jaxmerge.core.validation import grid_of
from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError, about
from jaxmerge.io.architectures import architecture
from jaxmerge.io.untrusted import check_regular
from jaxmerge.recipes.method_spec import as_data, build, route
from jaxmerge.recipes.parse import check_kinds, mapping
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
from jaxmerge.recipes.python_files import run_imported, variables
from jaxmerge.recipes.side_inputs import by_model, check_axes, find_extras
from jaxmerge.recipes.vocabulary import Vocabulary
from jaxmerge.recipes.vocabulary import resolved as resolved_tokenizer

if TYPE_CHECKING:
    from jaxmerge.recipes.adapters import AdapterRecipe
    from jaxmerge.recipes.mergekit import Config


@dataclasses.dataclass
class Recipe:
    """A merge as data.

    Attributes:
        models: references (`jaxmerge.io.sources`), or names of earlier stages.
        method: see `jaxmerge.recipes.method_spec`; may be left out where rules cover every leaf.
        base: theta_0; left out for methods of the weights themselves (mean, linear, slerp, ...),
            "none" for zeros with any method.
        rules: ``{only: regex}``, or ``[{match: regex, method: ...}]`` in order.
        extras: ``{kind: [file, ...]}``, side information about every model; by default what the
            method needs is looked for beside the models.
        dtype, out_dtype: of the output's floating leaves (`out_dtype` wins).  Arithmetic is
            float32 always, float64 for float64 leaves.
        seed: of random methods.
        nonfinite: "raise" refuses NaN and Inf by leaf, "zero" counts them as no change.
        overflow: of values beyond the range of the output's dtype: "raise", "clip" or "allow".
        tokenizer: "base" (default), "union", a model, or {source, tokens, pad_to_multiple_of}.
        chat_template: "auto", a known name, or Jinja text.
        rename: ``{model: {prefix of its names: prefix in the base}}``.
        name: of this stage, by which later ones refer to its output.
        stages: recipes that are run first; a recipe of nothing else gives what its last one gives.
        resolved: what a finished merge noted: versions, hashes.  Checked, if there.
    """

    models: list[str]
    method: Any = None
    base: str | None = None
    rules: Any = None
    extras: Any = None
    dtype: str | None = None
    out_dtype: str | None = None
    seed: int = 0
    nonfinite: str = "raise"
    overflow: str | None = None
    tokenizer: Any = None
    chat_template: str | None = None
    name: str | None = None
    rename: Any = None
    stages: list[Any] = dataclasses.field(default_factory=list)
    resolved: dict[str, Any] | None = None

    @property
    def ignored(self) -> list[str]:
        """Keys that nothing reads: none, they are refused."""
        return []

    def references(self) -> list[str]:
        """Every model that the recipe names, the names of other recipes among them."""
        models = self.models if isinstance(self.models, list) else []  # `plan` says what is wrong
        return [r for r in (self.base, *models) if isinstance(r, str)]

    def plan(self, models: Models) -> Plan:
        """Open the models and build the method."""
        given = isinstance(self.method, Merge)
        check_kinds({k: v for k, v in vars(self).items() if k != "method" or not given}, KINDS)
        if not isinstance(self.models, list) or not all(isinstance(m, str) for m in self.models):
            raise UserError(f"models must be a list of references, got {self.models!r}.")
        if not self.models:
            raise UserError("models is an empty list.")
        check_models(self.models)
        if self.nonfinite not in ("raise", "zero"):
            raise UserError(f'nonfinite must be "raise" or "zero", got {self.nonfinite!r}.')
        bases = [] if self.base in (None, NO_BASE) else [self.base]
        models.rename = check_rename(self.rename, [*bases, *self.models])
        if models.leaves == "union":
            raise UserError("--tensor-union needs a recipe in mergekit's form (merge_method).")
        first, *others = opened = models.family([*bases, *self.models])
        base, merged = (first, others) if bases else (None, opened)
        vocabulary = Vocabulary.of(
            self.tokenizer, self.chat_template, models, opened, based=bool(bases)
        )
        rest: list[Any] = merged
        if vocabulary is None:
            check_vocabulary(opened)
        else:
            base, *rest = vocabulary.apply([base, *merged])
        if models.leaves == "intersection":
            ((group, base),) = by_presence([({}, m) for m in rest], base, models.leaves)
            rest = [m for _, m in group]
        like = (base or rest[0]).like
        made_of = architecture(base or rest[0])
        method = None if self.method is None else build(self.method, len(rest), made_of)
        if self.rules is not None:
            method = route(self.rules, method, len(rest), made_of)
        if method is None:
            raise UserError("a recipe needs a method, or rules.")
        if self.base is None:
            check_weights_merge(method, like)
        method = exempt(method, like, made_of, [m for m in (base, *rest) if m is not None])
        seed = seed_of(self.seed)
        extras = find_extras(self.extras, method.needs, models, merged)
        sides = by_model(extras, len(rest))
        job = Job(method, rest, base, key_of(method, seed), sides)
        check_axes(extras, job.grid)
        resolved = {k: v for k, v in vars(self).items() if not (v is None or v == [])}
        resolved["method"] = as_data(self.method) if isinstance(self.method, Merge) else self.method
        if self.rename:
            resolved["rename"] = {models.resolve(r): dict(v) for r, v in self.rename.items()}
        resolved |= {"models": [models.resolve(m) for m in self.models], "seed": seed}
        if self.tokenizer:
            resolved["tokenizer"] = resolved_tokenizer(self.tokenizer, models)
        for ref in bases:
            resolved["base"] = models.resolve(ref)
        if extras:
            kinds = dict.fromkeys(e.kind for e in extras)
            resolved["extras"] = {k: [e.source.ref for e in extras if e.kind == k] for k in kinds}
        resolved.pop("stages", None)
        resolved.pop("resolved", None)
        return Plan(
            jobs=[job],
            models=models,
            source=first,
            out_dtype=dtype_of(self.out_dtype or self.dtype, "out_dtype"),
            seed=seed,
            resolved=resolved,
            method=str(self.method)
            if given
            else repr(self.method if self.rules is None else (self.rules, self.method)),
            nonfinite=self.nonfinite,
            config=vocabulary.config if vocabulary else {},
            files=vocabulary.files if vocabulary else {},
            extras=extras,
            warnings=vocabulary.warnings if vocabulary else [],
        )


NO_BASE = "none"
OF_WEIGHTS = frozenset(
    [
        "mean", "linear", "interpolation", "ema", "three_way_ema", "slerp", "arc", "nuslerp",
        "multislerp", "karcher", "fisher_mean", "regmean", "random_mix", "scale", "keep_base",
    ]
)  # fmt: skip


def check_weights_merge(method: Merge, like: Mapping[str, Any]) -> None:
    """Raise UserError where a method of task vectors would merge the weights themselves."""
    stages = [s for p in grid_of(method, like).values() for s in (*p.before, p.fold, *p.after)]
    names = {getattr(spec_of(s).factory, "__name__", "") for s in stages} - OF_WEIGHTS
    if names:
        raise UserError(
            f"{method} works on task vectors, the changes from a base, and the recipe names no "
            f"base: add base: (the model that the others were fine-tuned from), or write base: "
            f"{NO_BASE} to merge the weights as if the base were zero."
        )


KINDS = {
    "base": (str,), "dtype": (str,), "out_dtype": (str,), "nonfinite": (str,), "name": (str,),
    "overflow": (str,),
    "chat_template": (str,), "tokenizer": (str, dict), "resolved": (dict,), "stages": (list,),
    "models": (list,), "seed": (int,), "rules": (list, dict), "method": (str, dict, list),
    "extras": (dict,), "rename": (dict,),
}  # fmt: skip
Document: TypeAlias = "Recipe | Config | AdapterRecipe"


def load(path: str | Path, allow_import: bool = False) -> list[Document]:
    """The merges of a recipe file, in the order in which they are run; the last is the result.

    Args:
        allow_import: run the files that a YAML recipe imports.

    Raises:
        UserError: no such file, unknown keys (with the closest known one), not plain YAML, an
            import that is not allowed or lies elsewhere.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no recipe {path}.")
    check_regular(path, "a recipe is a file")
    if path.suffix == ".py":
        recipe = variables(path).get("recipe")
        if recipe is None:
            raise UserError(f"{path} sets no variable named recipe.")
        return documents(recipe)
    from jaxmerge.recipes.plain_yaml import load_yaml

    out = []
    for content in load_yaml(path):
        if isinstance(content, dict) and "import" in content:
            run_imported(path, content.pop("import"), allow_import)
        with about(path):
            out += documents(content)
    if not out:
        raise UserError(f"{path} is empty; a recipe names a method and models at least.")
    try:
        return in_order(out)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def in_order(merges: list[Document]) -> list[Document]:
    """Documents in the order in which they can be run; the last is the result.

    That is the one without a name; if all have one, the last of those that no other asks for.

    Raises:
        UserError: two have the same name or none, or they refer to each other in a circle.
    """
    unnamed = [d for d in merges if not d.name]
    if len(unnamed) > 1:
        raise UserError(f"every merge but one needs a name; {len(unnamed)} have none.")
    by_name = {d.name: i for i, d in enumerate(merges) if d.name}
    if len(by_name) < len(merges) - len(unnamed):
        raise UserError(f"two merges have one name; the names are {[d.name for d in merges]}.")
    asked = [
        [by_name[n] for n in (p for r in d.references() for p in r.split("+")) if n in by_name]
        for d in merges
    ]
    free = [i for i in range(len(merges)) if not any(i in names for names in asked)]
    result = merges.index(unnamed[0]) if unnamed else free[-1] if free else 0
    graph = TopologicalSorter(dict(enumerate(asked)))
    try:
        order = [i for i in graph.static_order() if i != result]
    except CycleError as error:
        circle = " -> ".join(merges[i].name or "the one without a name" for i in error.args[1])
        raise UserError(f"the merges wait for each other: {circle}.") from None
    return [merges[i] for i in (*order, result)]


def documents(content: Any) -> list[Document]:
    """One recipe as data -> its stages and itself.

    >>> [d.method for d in documents({"models": ["a", "b"], "method": "mean"})]
    ['mean']
    """
    if isinstance(content, Recipe):
        recipe = content
    elif isinstance(content, Mapping) and {"experts", "gate_mode"} & set(content):
        raise UserError(
            "this is a recipe of mergekit-moe (experts, gate_mode), which builds a mixture of "
            "experts; that is not there yet: merge the experts by a merge_method, or run "
            "mergekit-moe."
        )
    elif isinstance(content, Mapping) and "merge_method" in content:
        from jaxmerge.recipes.mergekit import Config

        return [Config.read(content)]
    elif isinstance(content, Mapping) and "adapters" in content:
        from jaxmerge.recipes.adapters import AdapterRecipe

        return [AdapterRecipe.read(content)]
    else:
        known = [f.name for f in dataclasses.fields(Recipe)]
        content = mapping(content, "the recipe", known)
        if list(content) == ["stages"] and isinstance(content["stages"], list):
            return [d for stage in content["stages"] for d in documents(stage)]
        if "models" not in content:
            raise UserError("the recipe has no models.")
        recipe = Recipe(**content)
    check_kinds(vars(recipe), KINDS)
    if not isinstance(recipe.stages, list):
        raise UserError(f"stages must be a list of recipes, got {recipe.stages!r}.")
    return [d for stage in recipe.stages for d in documents(stage)] + [recipe]
