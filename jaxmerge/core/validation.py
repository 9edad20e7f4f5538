"""What every driver checks before it computes: the method, the models, their values.

Every refusal is one error that names all offenders and says what to do.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.core import names
from jaxmerge.core.composition import Pipeline, resolve, stochastic
from jaxmerge.core.hyperparameters import Listed
from jaxmerge.core.stage_specs import spec_of
from jaxmerge.core.types import Leaves, Merge, Transform
from jaxmerge.errors import screen


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
        raise TypeError(
            f"Expected a Merge such as jm.magmax(0.5), got {_short(method)}. The method comes "
            "first: jm.merge(method, base, models), jm.update(method, state, base, model), "
            "jm.merged(method, state, base)."
        )
    if key is not None and not _is_key(key):
        raise TypeError(f"key must be jax.random.key(seed), got {_short(key)}.")
    if stochastic(method) and key is None:
        raise ValueError(f"{method} draws random numbers: pass key=jax.random.key(seed).")


def _is_key(key: Any) -> bool:
    dtype = getattr(key, "dtype", None)
    if dtype is None:
        return False
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return typed or (dtype == jnp.uint32 and getattr(key, "ndim", 0) > 0)


def _short(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, bool | int | float | str) or value is None:
        return repr(value)[:80]
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def check_base(base: Any, models: Any) -> None:
    """Raise ValueError where the models stand in the place of the base."""
    several = isinstance(base, list | tuple) and all(isinstance(b, Mapping) for b in base)
    if several and isinstance(models, Mapping) and len(base):
        try:
            one = set(names.flatten(models)[0])
            many = [set(names.flatten(b)[0]) for b in base]
        except ValueError:
            return
        if all(m == one for m in many):
            raise ValueError(
                f"The base is a list of {len(base)} models and the models are one: the order is "
                "jm.merge(method, base, models)."
            )


def check_count(method: Merge, count: int, least: bool = True, whole: bool = False) -> None:
    """Raise unless the method takes that many models; `whole`: no more will come."""
    low, high = method.models
    if least and count < low:
        raise ValueError(
            f"{method} needs at least {low} model{'s' * (low > 1)}, got {count or 'none'}."
        )
    if whole and isinstance(high, Listed) and count < high:
        raise ValueError(
            f"{method} has numbers for {high} models, got {count}: give a number for each model, "
            "or one for all."
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


def check_nonfinite(nonfinite: str) -> bool:
    """Whether non-finite entries count as no change (True) or are refused (False)."""
    if nonfinite not in ("raise", "zero"):
        raise ValueError(f'nonfinite must be "raise" or "zero", got {nonfinite!r}.')
    return nonfinite == "zero"


def folds_of(grid: Mapping[str, Pipeline]) -> tuple[str, ...]:
    """The names of the folds, by which a state knows whose it is."""
    factories = (spec_of(p.fold).factory for p in grid.values())
    return tuple(sorted({getattr(f, "__name__", "a fold without a name") for f in factories}))


def check_state(method: Any, grid: Mapping[str, Pipeline], state: Any, base: Leaves) -> None:
    """Raise unless the state was made by this method for this base."""
    folds = folds_of(grid)
    if state.folds and state.folds != folds:
        raise ValueError(
            f"The state was made by another method: its folds are {', '.join(state.folds)}, those "
            f"of {method} are {', '.join(folds)}. Use one method for jm.init, update and merged."
        )
    check_cells(grid, state.cells)


def check_order(state: Any, kind: type, call: str) -> None:
    """Raise TypeError unless the state stands where it belongs."""
    if not isinstance(state, kind):
        raise TypeError(f"Expected the state of jm.init, got {_short(state)}: the order is {call}.")


def check_cells(grid: Mapping[str, Pipeline], cells: Mapping[str, Any]) -> None:
    """Raise unless the state has a cell for every leaf of the base, and no other."""
    wrong = [f"no cell for leaf {n!r}" for n in grid if n not in cells]
    wrong += [f"a cell for {n!r}, which the base lacks" for n in cells if n not in grid]
    if wrong:
        raise ValueError(
            "The state was made for another base:\n  "
            + "\n  ".join(screen(wrong))
            + "\nMake it by "
            "jm.init(method, base) with the base that is passed to update and merged."
        )


LOOPS = ("scan", "fori_loop", "while_body")  # as jax calls what it is tracing for


def refuse_growth(grid: Mapping[str, Pipeline], state: Any, cells: Mapping[str, Any]) -> None:
    """Raise inside a loop, whose state keeps its form, where a cell takes another one.

    Where jax does not say that it traces a loop (a jit of its own inside one), its own error says
    that the structures differ.
    """
    frame = getattr(getattr(state.step, "_trace", None), "frame", None)
    if getattr(getattr(frame, "debug_info", None), "traced_for", None) not in LOOPS:
        return
    form = jax.tree.structure
    grown = {repr(grid[n].fold): n for n, c in cells.items() if form(c) != form(state.cells[n])}
    if grown:
        folds = [f"{fold} keeps more with every model (leaf {n!r})" for fold, n in grown.items()]
        raise ValueError(
            f"{'; '.join(folds)}, and the state of a loop keeps its form: "
            "jm.init(method, base, models=...) makes room for that many before jax.lax.scan."
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
            + "\n  ".join(screen(wrong))
            + "\nName its leaves as the base does; a leaf may be left out."
        )
    return flat
