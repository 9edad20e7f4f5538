"""What every driver checks before it computes: the method, the models, their values.

Every refusal is one error that names all offenders and says what to do.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core import names
from jaxmerge.core.composition import Pipeline, resolve, stochastic
from jaxmerge.core.types import Leaves, Merge, Transform, concrete, working_dtype


def grid_of(method: Merge, base: Leaves) -> dict[str, Pipeline]:
    """One pipeline for each leaf that is merged; integers, and leaves without entries, are not."""
    merged_names = [n for n in base if names.is_float(base[n]) and math.prod(base[n].shape)]
    codes: dict[int, str] = {}
    for n in merged_names:
        other = codes.setdefault(zlib.crc32(n.encode()), n)
        if other != n:
            raise ValueError(f"Leaves {other!r} and {n!r} share a random key; rename one of them.")
    return resolve(method, {n: base[n] for n in merged_names})


def check_method(method: Merge, key: Any) -> None:
    """Raise unless `method` is a `Merge` and has the key that it needs."""
    if isinstance(method, Transform):
        raise TypeError(
            f"{method} is a Transform of one task vector, not a Merge. Put it into a chain with "
            f"one, for example jm.chain({method}, jm.add())."
        )
    if not isinstance(method, Merge):
        raise TypeError(f"Expected a Merge such as jm.magmax(0.5), got {method!r}.")
    if stochastic(method) and key is None:
        raise ValueError(f"{method} draws random numbers: pass key=jax.random.key(seed).")


def check_count(method: Merge, count: int, least: bool = True) -> None:
    """Raise unless the method takes that many models."""
    low, high = method.models
    if least and count < low:
        raise ValueError(
            f"{method} needs at least {low} model{'s' * (low > 1)}, got {count or 'none'}."
        )
    if high is not None and count > high:
        raise ValueError(f"{method} takes at most {high} models, got {count}.")


def check_joinable(method: Merge, grid: Mapping[str, Pipeline]) -> None:
    """Raise unless states of disjoint sets of models can be joined on every leaf."""
    wrong = {repr(p.fold): n for n, p in grid.items() if p.fold.combine is None}
    if wrong:
        raise ValueError(
            f"{method} cannot join states, since these folds must see all models in turn: "
            + "; ".join(f"{fold} (for example on leaf {n!r})" for fold, n in wrong.items())
        )


def check_choice(nonfinite: str) -> bool:
    """Whether non-finite entries count as no change (True) or are refused (False)."""
    if nonfinite not in ("raise", "zero"):
        raise ValueError(f'nonfinite must be "raise" or "zero", got {nonfinite!r}.')
    return nonfinite == "zero"


def check_cells(grid: Mapping[str, Pipeline], cells: Mapping[str, Any]) -> None:
    """Raise unless the state has a cell for every leaf of the base, and no other."""
    wrong = [f"no cell for leaf {n!r}" for n in grid if n not in cells]
    wrong += [f"a cell for {n!r}, which the base lacks" for n in cells if n not in grid]
    if wrong:
        raise ValueError(
            "The state was made for another base:\n  " + "\n  ".join(wrong) + "\nMake it by "
            "jm.init(method, base) with the base that is passed to update and merged."
        )


def flat_extra(
    method: Merge, base: Leaves, extra: Mapping[str, Any], who: str
) -> dict[str, Leaves]:
    """The side information of one model as flat mappings; raise where the method lacks some."""
    if not isinstance(extra, Mapping):
        raise ValueError(
            f"The side information about {who} must be a mapping such as {{'fisher': tree}}, got "
            f"{type(extra).__name__}; a measured one is jaxmerge.statistics.extras(statistic)."
        )
    missing = [n for n in method.needs if n not in extra]
    if missing:
        raise ValueError(
            f"{method} needs side information {missing} about every model, {who} has none: "
            f"jm.update(..., {missing[0]}=tree) or "
            f"jm.merge(..., extras=[{{{missing[0]!r}: tree}}, ...])."
        )
    flat = {k: names.flatten(v)[0] if v is not None else {} for k, v in extra.items()}
    wrong = [f"{k} of unknown leaf {n!r}" for k in flat for n in flat[k] if n not in base]
    if wrong:
        raise ValueError(
            f"The side information about {who} does not fit the base:\n  "
            + "\n  ".join(wrong)
            + "\nName its leaves as the base does; a leaf may be left out."
        )
    return flat


def refuse_nonfinite(grid: Mapping[str, Pipeline], base: Leaves, models: Sequence[Leaves]) -> None:
    """Raise one ValueError that names every leaf with NaN or Inf (concrete values only).

    A finite sum proves that every entry is finite, and a sum runs at the speed of memory; entries
    are counted only where it is not.
    """
    sums = {}
    for n in grid:
        leaves = [base[n], *(m[n] for m in models)]
        if not concrete(leaves):
            return
        with jax.ensure_compile_time_eval():  # concrete leaves may sit inside the caller's jit
            sums[n] = _sums(leaves)
    suspects = [n for n, found in jax.device_get(sums).items() if not np.isfinite(found).all()]
    wrong = []
    for n in suspects:
        for t, leaf in enumerate([base[n], *(m[n] for m in models)]):
            wide = np.asarray(leaf)
            wide = wide if wide.dtype.kind == "c" else wide.astype(np.float64)
            count = int(np.sum(~np.isfinite(wide)))
            if count:
                who = "the base" if t == 0 else f"model {t - 1}"
                wrong.append(f"{who}, leaf {n!r}: {count} of {leaf.size} entries")
    if wrong:
        raise ValueError(
            "NaN or Inf in\n  " + "\n  ".join(wrong) + "\nMend the checkpoint, or pass "
            'nonfinite="zero" to count such entries as no change.'
        )


@jax.jit
def _sums(leaves):
    return [jnp.sum(x, dtype=working_dtype(x)) for x in leaves]
