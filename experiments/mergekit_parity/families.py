"""Recipes on every other family that mergekit has a definition of: a gradient, a slerp, a stack."""

from __future__ import annotations

from recipes import DIFFERS, Case, model, names, recipe


def by_family(family: str) -> dict[str, Case]:
    """Recipes of models whose layers one number counts."""
    _, a, b, _ = names(family)
    gradient = [0.0, 0.3, 1.0]
    source = lambda m, r: {"sources": [{"model": m, "layer_range": r}]}
    out = {
        f"{family}/gradient": Case([
            recipe("linear", [model(a, weight=gradient), model(b, weight=0.5)])
        ]),
        f"{family}/slerp": Case([recipe("slerp", [model(b)], a, {"t": [0.1, 0.9]})]),
        f"{family}/stack": Case([{
            "merge_method": "passthrough", "dtype": "float32",
            "slices": [source(a, [0, 3]), source(b, [2, 4])],
        }]),
    }  # fmt: skip
    why = lambda n: DIFFERS.get(n) or DIFFERS.get(family)
    return {n: case._replace(differs=why(n)) for n, case in out.items()}
