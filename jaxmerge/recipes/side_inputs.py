"""Side information about every model: which file holds it, and whether it belongs to the weights.

    method: fisher_merging
    extras: {fisher: [models/a/fisher.safetensors, models/b/fisher.safetensors]}

One file for each model, in the order of `models`, as `jaxmerge stats` writes them (fisher, gram).
Where a recipe says nothing, ``fisher.safetensors`` beside each model is taken, and so on for every
kind that its method needs.  Values are read leaf by leaf, with the leaves they are about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmerge.core.composition import Pipeline
from jaxmerge.core.stage_specs import spec_of
from jaxmerge.errors import UserError
from jaxmerge.io.opened_model import Source
from jaxmerge.io.safetensors import File, Leaves
from jaxmerge.recipes.parse import mapping

if TYPE_CHECKING:
    from jaxmerge.statistics.store import Statistic

KINDS = ("fisher", "gram", "mask")
MEASURED = ("fisher", "gram")  # on data, for weights that are checked; a mask fits any


class Extra(NamedTuple):
    """A file of side information.

    Attributes:
        kind: one of `KINDS`.
        source: the file, opened.
        model: the model that it is about.
        ref: as it stands in the recipe.
    """

    kind: str
    source: Source
    model: Source
    ref: str

    @property
    def statistic(self) -> Statistic:
        """The statistic in the file.

        Raises:
            UserError: it holds something else.
        """
        from jaxmerge.statistics.store import of_file

        file = self.source.source
        measured = of_file(file) if isinstance(file, File) else None
        if measured is None or measured.kind != self.kind:
            other = f"holds a {measured.kind}" if measured else "is no single safetensors file"
            raise UserError(f"extras: {self.source.ref} should hold a {self.kind}, but {other}.")
        return measured

    def check(self) -> None:
        """Raise UserError unless it was measured for the model's very weights; reads the model."""
        if self.kind in MEASURED:
            from jaxmerge.statistics.store import check_weights

            check_weights(self.statistic, self.model, self.source.ref)


def find_extras(setting: Any, needs: Sequence[str], models: Any, sources: Sequence[Source]):
    """The files that a recipe names, and those that its method needs and finds beside the models.

    Args:
        setting: ``{kind: [reference, ...]}``, or None.
        needs: kinds that the method needs.
        models: opens references.
        sources: the models that are merged.

    Raises:
        UserError: not one file for each model, no such file, names that the model lacks.
    """
    setting = mapping(setting or {}, "extras", KINDS)
    out = []
    for kind in dict.fromkeys([*setting, *needs]):
        refs = setting.get(kind)
        if refs is None:
            refs = [str((s.folder or Path()) / f"{kind}.safetensors") for s in sources]
            missing = [r for r in refs if not Path(r).is_file()]
            if missing:
                raise UserError(
                    f"the method needs the {kind} of every model, and there is no {missing[0]}; "
                    f"make it with `jaxmerge stats`, or name the files in the recipe: extras: "
                    f"{{{kind}: [one for each model]}}."
                )
        if not isinstance(refs, list) or len(refs) != len(sources):
            given = f"{len(refs)} files" if isinstance(refs, list) else repr(refs)
            raise UserError(
                f"extras: {kind} must be a list of one file for each of {len(sources)} models, "
                f"got {given}."
            )
        out += [
            Extra(kind, models.open(ref), model, ref)
            for ref, model in zip(refs, sources, strict=True)
        ]
    for extra in out:
        if extra.kind in MEASURED:
            extra.statistic  # noqa: B018 - raises where it is none
        _check_leaves(extra)
    return out


def _check_leaves(extra: Extra) -> None:
    """Raise UserError where the file is about leaves that the model has not, or not so shaped."""
    have = extra.model.like
    wrong = [
        f"{n!r} {list(like.shape)} ({f'{list(have[n].shape)} there' if n in have else 'unknown'})"
        for n, like in extra.source.like.items()
        if n not in have or (extra.kind != "gram" and have[n].shape != like.shape)
    ]
    if wrong:
        raise UserError(
            f"extras: {len(wrong)} leaves in {extra.source.ref} do not fit {extra.model.ref}: "
            f"{', '.join(wrong[:3])}; name and shape them as the checkpoint does."
        )


def by_model(extras: Sequence[Extra], count: int) -> list[dict[str, Leaves]]:
    """What the file driver takes: for each of `count` models, kind -> leaves."""
    if not extras:
        return []
    return [{e.kind: e.source for e in extras[t::count]} for t in range(count)]


def check_axes(extras: Sequence[Extra], grid: Mapping[str, Pipeline]) -> None:
    """Raise UserError where RegMean takes another axis for "in" than a Gram matrix was measured on.

    A square kernel would be merged wrongly without a word.
    """
    wrong = {}
    for extra in extras:
        axes = extra.statistic.about.get("axis", {}) if extra.kind == "gram" else {}
        for n, axis in axes.items():
            taken = spec_of(grid[n].fold).arguments.get("axis") if n in grid else None
            if taken is not None and getattr(taken, "value", taken) != axis:
                wrong.setdefault(axis, {})[n] = extra
    if wrong:
        axis, leaves = next((a, list(names)) for a, names in wrong.items())
        raise UserError(
            f"the Gram matrices of {len(leaves)} leaves such as {leaves[0]!r} belong to axis "
            f"{axis} of their kernels: write axis: {axis} among the arguments of the method"
            f"{' (by leaf: a list of {match, value})' if len(wrong) > 1 else ''}."
        )
