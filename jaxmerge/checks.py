"""What every driver checks before it computes: the method, the models, their values.

Every refusal is one error that names all offenders and says what to do.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge import names
from jaxmerge.combine import Pipeline, resolve, stochastic
from jaxmerge.core import Leaves, Merge, Transform, concrete


def grid_of(method: Merge, base: Leaves) -> dict[str, Pipeline]:
    """One pipeline for each leaf that is merged (integer leaves are not)."""
    merged_names = [n for n in base if names.is_float(base[n])]
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
    low, high = method.models
    if least and count < low:
        raise ValueError(
            f"{method} needs at least {low} model{'s' * (low > 1)}, got {count or 'none'}."
        )
    if high is not None and count > high:
        raise ValueError(f"{method} takes at most {high} models, got {count}.")


def flat_extra(method: Merge, extra: Mapping[str, Any]) -> dict[str, Leaves]:
    missing = [n for n in method.needs if n not in extra]
    if missing:
        raise ValueError(
            f"{method} needs side information {missing} about every model: "
            f"jm.update(..., {missing[0]}=tree) or "
            f"jm.merge(..., extras=[{{{missing[0]!r}: tree}}, ...])."
        )
    return {k: names.flatten(v)[0] if v is not None else {} for k, v in extra.items()}


@jax.jit
def _count_nonfinite(leaves):
    return [jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in leaves]


def refuse_nonfinite(grid: Mapping[str, Pipeline], base: Leaves, models: Sequence[Leaves]) -> None:
    """Raise one ValueError that names every leaf with NaN or Inf (concrete values only)."""
    wrong = []
    for n in grid:
        leaves = [base[n], *(m[n] for m in models)]
        if not concrete(leaves):
            return
        for t, count in enumerate(_count_nonfinite(leaves)):
            if count:
                who = "the base" if t == 0 else f"model {t - 1}"
                wrong.append(f"{who}, leaf {n!r}: {int(count)} of {leaves[t].size} entries")
    if wrong:
        raise ValueError(
            "NaN or Inf in\n  " + "\n  ".join(wrong[:40]) + "\nMend the checkpoint, or pass "
            'nonfinite="zero" to count such entries as no change.'
        )
