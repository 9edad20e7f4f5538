"""RegMean++: RegMean kernel by kernel, with the activations of the model merged so far.

RegMean measures the inputs of every kernel in each single model; but in the merged model the
inputs have been through merged layers already.  Here the kernels are solved in the order in which
data meet them, each from inputs that have passed through the merged kernels before it; or, as
published, block by block, each from what its own model makes of the merged blocks before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.hyperparameters import check_choice
from jaxmerge.core.names import check_same, is_float
from jaxmerge.core.patterns import compile_pattern
from jaxmerge.core.types import Leaves, Tree
from jaxmerge.drivers.batch_merge import merge
from jaxmerge.folds.elementwise import mean
from jaxmerge.methods.data import regmean
from jaxmerge.statistics.capture import dense_inputs
from jaxmerge.statistics.fisher import refuse_nonfinite
from jaxmerge.statistics.gram import Keep, without


def regmean_plus(
    apply: Callable[[Leaves, Tree], Tree],
    base: Leaves,
    models: Sequence[Leaves],
    batches: Sequence[Iterable[Tree]],
    *,
    off_diagonal: float = 0.9,
    ridge: float = 0.0,
    keep: Keep | None = None,
    blocks: str | None = None,
    leave: str | None = None,
    per: Literal["example", "token"] = "example",
) -> Leaves:
    """Merge with RegMean++.

    Formula: for kernels k in the order of execution, W_k = (sum_t G_tk)^-1 sum_t G_tk W_tk with
    G_tk the Gram matrix of the inputs of kernel k on the data of task t in the merged model so
    far; kernels that share an input (q, k, v) are solved together; other leaves are averaged.

    Args:
        apply: ``(params, inputs) -> anything``.
        base: theta_0, name -> array.
        models: with the leaves of the base.
        batches: for each model, batches of inputs of its task.
        keep: as in `jaxmerge.statistics.gram`: rows that are data, not padding.
        off_diagonal, ridge: as in `jm.regmean`; MergeBench takes 0.1 for off_diagonal here.
        blocks: a regex, such as ``r"layers[./]\\d+"``: leaves in which it finds the same text are
            one block, whose kernels are solved together, from inputs that have passed through the
            merged blocks before it and, inside, through the model's own leaves.
        leave: a regex; leaves in which it finds something stay the base's.
        per: what a Gram matrix is divided by, the number of examples or that of tokens (rows that
            are data): it weighs the tasks where these differ.

    Memory: T models, the inputs of one batch, the Gram matrices of one group of kernels.

    Source: Nguyen et al., RegMean++, 2025; its released form is ``blocks=..., per="token"`` with
    ``leave="embed"``.  Differs: by default merged activations reach every kernel, also inside a
    block.

    Example:
        >>> apply = lambda params, x: x @ params["w"]
        >>> base, models = {"w": np.zeros((2, 2))}, [{"w": np.eye(2)}, {"w": 3 * np.eye(2)}]
        >>> out = regmean_plus(apply, base, models, [[np.eye(2)], [np.eye(2)]])
        >>> np.asarray(out["w"]).round(3)
        array([[2., 0.],
               [0., 2.]], dtype=float32)
    """
    check_choice("per", per, ("example", "token"))
    in_block, stays = (None if x is None else compile_pattern(x) for x in (blocks, leave))
    if len(batches) != len(models):
        raise ValueError(f"Found data for {len(batches)} tasks and {len(models)} models; one each.")
    data = [[b[0] if isinstance(b, tuple) else b for b in task_batches] for task_batches in batches]
    size = lambda x: jax.tree.leaves(x)[0].shape[0]
    if empty := [t for t, task_batches in enumerate(data) if not sum(map(size, task_batches))]:
        raise ValueError(f"Tasks {empty} have no data.")
    check_same(base, *models)
    floats = {
        n: jnp.asarray(x)
        for n, x in base.items()
        if is_float(x) and not (stays and stays.search(n))
    }
    fixed = {n: jnp.asarray(x) for n, x in base.items() if is_float(x) and n not in floats}
    rows = [{n: jnp.asarray(m[n]) for n in floats} for m in models]
    merged = fixed | dict(merge(mean(), floats, rows))
    axes: dict[str, int] = {}
    groups: dict[Any, list[str]] = {}

    def block_of(name: str) -> str | None:
        match = in_block.search(name) if in_block else None
        return match.group() if match else None

    def grams(params, inputs, names):
        _, captured = dense_inputs(apply, params, inputs)
        if not groups:
            for n, f in captured.items():
                if n in floats:
                    axes[n] = f.axis
                    groups.setdefault(block_of(n) or id(f.x), []).append(n)
        mask = None if keep is None else keep(inputs)
        data = {n: without(captured[n].x, mask) for n in names}
        counts = {n: size(inputs) if per == "example" else tokens(x, mask) for n, x in data.items()}
        return {n: jnp.matmul(x.T, x, precision="highest") for n, x in data.items()}, counts

    def tokens(x, mask):
        return len(x) if mask is None or len(mask) != len(x) else jnp.sum(mask)

    jax.eval_shape(lambda p, x: grams(p, x, ())[0], merged, data[0][0])
    if not groups:
        raise ValueError("No leaf with two axes meets the data in a matrix product.")
    jitted = jax.jit(grams, static_argnums=2)
    for where, group in groups.items():
        block = isinstance(where, str)
        measured = tuple(group if block else group[:1])  # the others have the same input
        extras = []
        for own, batches_of in zip(rows, data, strict=True):
            inside = {n: own[n] for n in floats if block and block_of(n) == where}
            total: dict[str, Any] = dict.fromkeys(measured, 0.0)
            count = dict.fromkeys(measured, 0)
            for x in batches_of:
                part, seen = jitted(merged | inside, x, measured)
                total = {n: total[n] + np.asarray(part[n], np.float64) for n in measured}
                count = {n: count[n] + int(seen[n]) for n in measured}
            refuse_nonfinite(total, "the Gram matrices")
            shared = {n: (total[n] / count[n]).astype(floats[n].dtype) for n in measured}
            extras.append({n: shared.get(n, shared[measured[0]]) for n in group})
        for n in group:
            method = regmean(off_diagonal, ridge, axes[n])
            sides = [{"gram": {n: e[n]}} for e in extras]
            merged |= merge(method, {n: floats[n]}, [{n: r[n]} for r in rows], extras=sides)
    return {n: merged.get(n, x) for n, x in base.items()}
