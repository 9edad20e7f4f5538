"""Composition: `chain` stages around one merge, `partition` the leaves among merges.

Both give back an ordinary `Merge`, so compositions nest.  `chain` concatenates stages; `partition`
and `by_leaf` set `route`, which `resolve` follows outside compiled code until one plain pipeline
is left for every leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmerge.core.keys import leaf_key
from jaxmerge.core.patterns import compile_pattern
from jaxmerge.core.registry import register
from jaxmerge.core.specs import Spec
from jaxmerge.core.stage_specs import spec_of
from jaxmerge.core.types import Array, Labels, Leaves, Measure, Merge, Transform, zeros


@register
def chain(*stages: Transform | Merge) -> Merge:
    """Put transforms around one merge: those before act on every row, those after on the result.

    Args:
        stages: transforms of every row, exactly one merge, transforms of the result.

    Example:
        >>> import jaxmerge as jm
        >>> jm.chain(jm.trim(0.2), jm.disjoint_mean(), jm.scale(0.4))
        chain(trim(density=0.2), disjoint_mean(), scale(factor=0.4))

    Raises:
        ValueError: not exactly one of the stages is a `Merge`.
    """
    wrong = [s for s in stages if not isinstance(s, Transform | Merge)]
    if wrong:
        raise TypeError(f"chain() takes Transforms and one Merge, got {wrong!r}.")
    at = [i for i, s in enumerate(stages) if isinstance(s, Merge)]
    if len(at) != 1:
        raise ValueError(
            f"chain() takes exactly one Merge among its stages, got {len(at)} in {len(stages)}: "
            f"{list(stages)}. Put row-wise Transforms (trim, dare, scale, ...) around one Merge "
            "(mean, max_magnitude, disjoint_mean, ...)."
        )
    before, fold, after = stages[: at[0]], stages[at[0]], stages[at[0] + 1 :]
    assert isinstance(fold, Merge)  # found above
    late = [t for t in after if isinstance(t, Transform) and t.models]
    if late:
        raise ValueError(
            f"{late} has a number for each model, but acts on the one merged task vector: give it "
            "one number, or put it before the merge."
        )
    models = fold.models[0], _least([fold.models[1], *(t.models for t in before)])
    needs = tuple(dict.fromkeys((*fold.needs, *(n for t in before for n in t.needs))))
    return fold._replace(
        before=before + fold.before, after=fold.after + after, models=models, needs=needs
    )


@register
def partition(merges: Mapping[str, Merge], label: Labels) -> Merge:
    """Route every leaf to the merge that its label names.

    Args:
        merges: label -> merge.
        label: ``(name, leaf) -> label``, or ordered rules ``[(regex, label), ...]`` of which the
            first that matches (``re.search``) decides; every leaf must match one.

    Raises:
        ValueError: leaves that match no rule or carry an unknown label, all of them named.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> merges = {"mean": jm.mean(), "base": jm.keep_base()}
        >>> method = jm.partition(merges, [("bias", "base"), (".*", "mean")])
        >>> base, model = ({"w": f(1), "bias": f(1)} for f in (np.zeros, np.ones))
        >>> out = jm.merge(method, base, [model])
        >>> float(out["w"][0]), float(out["bias"][0])
        (1.0, 0.0)
    """
    choose = label if callable(label) else rules(label)

    def route(name: str, like: Leaves) -> Merge:
        chosen = choose(name, like[name])
        if chosen is None or chosen not in merges:
            bad = [n for n, x in like.items() if choose(n, x) not in merges]
            raise ValueError(
                f"{len(bad)} leaves have no merge, for example {bad[:5]} labelled "
                f"{choose(bad[0], like[bad[0]])!r}; labels with a merge: {sorted(merges)}. "
                "Add a last rule ('.*', label) for the rest."
            )
        return merges[chosen]

    every = list(merges.values())
    return Merge(
        init=_routed,
        update=_routed,
        combine=_routed if all(m.combine for m in every) else None,
        models=(max(m.models[0] for m in every), _least(m.models[1] for m in every)),
        stochastic=any(stochastic(m) for m in every),
        needs=tuple(sorted({n for m in every for n in m.needs})),
        route=route,
    )


@register
def by_leaf(choose: Callable[[str, Leaves], Merge]) -> Merge:
    """A merge chosen for each leaf by its name: gradients over layers.

    Args:
        choose: ``(name, like) -> Merge``; `like` maps all names to arrays or shapes.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> method = jm.by_leaf(lambda name, like: jm.magmax(1.0 if name == "head" else 0.5))
        >>> out = jm.merge(method, None, [{"body": np.ones(1), "head": np.ones(1)}])
        >>> float(out["body"][0]), float(out["head"][0])
        (0.5, 1.0)
    """
    return Merge(init=_routed, update=_routed, combine=_routed, route=choose)


@register
def keep_base() -> Merge:
    """Leave the leaf as it is in the base.  Memory: 0.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> jm.merge(jm.keep_base(), {"w": np.zeros(1)}, [{"w": np.ones(1)}])["w"]
        array([0.])
    """
    return Merge(
        init=lambda leaf: (),
        update=lambda cell, x, ctx: (),
        finalize=lambda cell, ctx: zeros(ctx.base),
        combine=lambda a, b: (),
        elementwise=True,
    )


def rules(ordered: Sequence[tuple[str, str]]) -> Callable[[str, Array], str | None]:
    """A labelling function from ordered ``(regex, label)`` pairs; None where nothing matches."""
    compiled = [(compile_pattern(pattern), label) for pattern, label in ordered]

    def label(name: str, leaf: Array) -> str | None:
        return next((label for pattern, label in compiled if pattern.search(name)), None)

    return label


def by_ndim(name: str, leaf: Array) -> str:
    """ "matrix" for leaves with two axes, "rest" for all others.

    Args:
        name: of the leaf; not used.
        leaf: an array, or anything with a shape.

    Example:
        >>> import numpy as np
        >>> by_ndim("fc/kernel", np.ones((2, 3))), by_ndim("fc/bias", np.ones(3))
        ('matrix', 'rest')
    """
    return "matrix" if len(leaf.shape) == 2 else "rest"


def stochastic(method: Merge) -> bool:
    """Whether the method draws random numbers anywhere."""
    return method.stochastic or any(t.stochastic for t in method.before + method.after)


class Pipeline(NamedTuple):
    """What happens to one leaf: the plain stages left when every route has been followed."""

    before: tuple[Transform, ...]
    fold: Merge
    after: tuple[Transform, ...]

    @property
    def specs(self) -> tuple[tuple[Spec, ...], Spec, tuple[Spec, ...]]:
        """The same as a pytree that compiled code takes as an argument and builds again."""
        return tuple(map(spec_of, self.before)), spec_of(self.fold), tuple(map(spec_of, self.after))

    @property
    def stochastic(self) -> bool:
        """Whether any stage of this leaf draws random numbers."""
        return self.fold.stochastic or any(t.stochastic for t in self.before + self.after)

    @property
    def decomposes(self) -> bool:
        """Whether any stage of this leaf calls LAPACK."""
        return self.fold.decomposes or any(t.decomposes for t in self.before + self.after)

    def key(self, root: Any, name: str) -> Any:
        """The key of this leaf; None where nothing is drawn, for a key costs as much as a leaf."""
        if not self.stochastic:
            return None
        if root is None:
            raise ValueError(
                f"On leaf {name!r} random numbers are drawn: pass key=jax.random.key(seed)."
            )
        return leaf_key(root, name)

    @property
    def measures(self) -> tuple[Measure | None, ...]:
        """In order: of each transform before, of the row, of the cells, of each after.

        Last that of the cells before each row: no driver but a walk row by row can gather it.
        """
        return (
            *(t.measure for t in self.before),
            self.fold.measure,
            self.fold.closing,
            *(t.measure for t in self.after),
            self.fold.opening,
        )


def resolve(method: Merge, like: Leaves) -> dict[str, Pipeline]:
    """Follow all routes: one `Pipeline` for each leaf name, outside compiled code."""
    return {name: _pipeline(method, name, like) for name in like}


def _pipeline(method: Merge, name: str, like: Leaves) -> Pipeline:
    before, after = method.before, method.after
    while method.route is not None:
        method = method.route(name, like)
        before, after = before + method.before, method.after + after

    def settle(t: Transform) -> Transform:
        while t.route is not None:
            t = t.route(name, like)
        return t

    return Pipeline(tuple(map(settle, before)), method, tuple(map(settle, after)))


def _routed(*_: Any) -> Any:
    raise TypeError(
        "This merge routes each leaf to another merge, so it has no fold of its own; "
        "run it with jm.merge(), jm.update() or jm.merge_files()."
    )


def _least(values: Any) -> int | None:
    return min((v for v in values if v is not None), default=None)
