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
from jaxmerge.core.registry import spec_of
from jaxmerge.core.types import Leaves, Merge, Transform, concrete, working_dtype
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


def refuse_nonfinite(grid: Mapping[str, Pipeline], base: Leaves, models: Sequence[Leaves]) -> None:
    """Raise one ValueError that names every leaf with NaN or Inf (concrete values only).

    A finite sum proves that every entry is finite, and a sum runs at the speed of memory; entries
    are counted only where it is not.  Every shard is summed on its own device: no device waits for
    another.  Where leaves span several hosts, all of them hear of what each has found.
    """
    finite, parts = {}, {}
    for n in grid:
        leaves = [base[n], *(m[n] for m in models)]
        if not concrete(leaves):
            return
        parts[n] = _by_device(leaves)
        with jax.ensure_compile_time_eval():  # concrete leaves may sit inside the caller's jit
            finite[n] = [_finite([x for _, x in pieces]) for pieces in parts[n].values()]
    counts = np.zeros((len(grid), 1 + len(models)), np.int64)
    finite = jax.device_get(finite)
    for row, n in enumerate(grid):
        for pieces, answers in zip(parts[n].values(), finite[n], strict=True):
            for (t, part), good in zip(pieces, answers, strict=True):
                if not good:
                    counts[row, t] += np.sum(~np.isfinite(_wide(np.asarray(part))))
    if any(_elsewhere(tree[n]) for tree in (base, *models) for n in grid):
        from jax.experimental.multihost_utils import process_allgather

        counts = np.asarray(process_allgather(counts)).sum(axis=0)
    wrong = [
        f"{'the base' if t == 0 else f'model {t - 1}'}, leaf {n!r}: {counts[row, t]} of "
        f"{math.prod(base[n].shape)} entries"
        for row, n in enumerate(grid)
        for t in np.flatnonzero(counts[row])
    ]
    if wrong:
        raise ValueError(
            "NaN or Inf in\n  " + "\n  ".join(screen(wrong)) + "\nMend the checkpoint, or pass "
            'nonfinite="zero" to count such entries as no change.'
        )


def _wide(x: np.ndarray) -> np.ndarray:
    """Values that numpy can ask whether they are finite; both parts of complex ones."""
    return x if x.dtype.kind == "c" else x.astype(np.float64)


def _by_device(leaves: Sequence[Any]) -> dict[Any, list[tuple[int, Any]]]:
    """Device -> the parts of leaves that lie there, with the number of the leaf; copies once."""
    by_device: dict[Any, list[tuple[int, Any]]] = {}
    for t, leaf in enumerate(leaves):
        if not isinstance(leaf, jax.Array):
            by_device.setdefault(None, []).append((t, leaf))
            continue
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                by_device.setdefault(shard.device, []).append((t, shard.data))
    return by_device


def _elsewhere(leaf: Any) -> bool:
    """Whether a part of the leaf lies on another host."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


@jax.jit
def _finite(leaves):
    """Whether the sum of each is finite, in one array: to wait for many takes longer."""
    return jnp.stack([jnp.isfinite(jnp.sum(x, dtype=working_dtype(x))) for x in leaves])
