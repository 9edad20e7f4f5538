"""RegMean++: RegMean kernel by kernel, with the activations of the model merged so far.

RegMean measures the inputs of every kernel in each single model; but in the merged model the
inputs have been through merged layers already.  Here the kernels are solved in the order in which
data meet them, each from inputs that have passed through the merged kernels before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.names import check_same, is_float
from jaxmerge.core.types import Leaves
from jaxmerge.drivers import memory
from jaxmerge.folds.elementwise import mean
from jaxmerge.folds.weighted import gram_mean
from jaxmerge.statistics.capture import dense_inputs
from jaxmerge.statistics.fisher import refuse_nonfinite
from jaxmerge.statistics.gram import Keep, without


def regmean_plus(
    apply: Callable[[Leaves, Any], Any],
    base: Leaves,
    models: Sequence[Leaves],
    batches: Sequence[Iterable[Any]],
    *,
    off_diagonal: float = 0.9,
    ridge: float = 0.0,
    keep: Keep | None = None,
) -> Leaves:
    """Merge with RegMean++.

    Formula: for kernels k in the order of execution, W_k = (sum_t G_tk)^-1 sum_t G_tk W_tk with
    G_tk the Gram matrix of the inputs of kernel k on the data of task t in the merged model so
    far; kernels that share an input (q, k, v) are solved together; other leaves are averaged.

    Args:
        apply: ``(params, inputs) -> anything``.
        batches: for each model, batches of inputs of its task.
        keep: as in `jaxmerge.statistics.gram`: rows that are data, not padding.
        off_diagonal, ridge: as in `jm.regmean`; MergeBench takes 0.1 for off_diagonal here.

    Memory: T models, the inputs of one batch, the Gram matrices of one group of kernels.

    Source: Nguyen et al., RegMean++, 2025.  Differs: merged activations reach every kernel, also
    inside a transformer block; the paper propagates them from block to block.
    """
    if len(batches) != len(models):
        raise ValueError(f"Found data for {len(batches)} tasks and {len(models)} models; one each.")
    data = [[b[0] if isinstance(b, tuple) else b for b in some] for some in batches]
    size = lambda x: jax.tree.leaves(x)[0].shape[0]
    if empty := [t for t, some in enumerate(data) if not sum(map(size, some))]:
        raise ValueError(f"Tasks {empty} have no data.")
    check_same(base, *models)
    floats = {n: jnp.asarray(x) for n, x in base.items() if is_float(x)}
    rows = [{n: jnp.asarray(m[n]) for n in floats} for m in models]
    merged = dict(memory.merge(mean(), floats, rows))
    axes: dict[str, int] = {}
    groups: list[list[str]] = []

    def grams(params, inputs, some):
        _, found = dense_inputs(apply, params, inputs)
        if not groups:
            inputs_of: dict[int, list[str]] = {}
            for n, f in found.items():
                axes[n] = f.axis
                inputs_of.setdefault(id(f.x), []).append(n)
            groups.extend(inputs_of.values())
        kept = None if keep is None else keep(inputs)
        rows = {n: without(found[n].x, kept) for n in some}
        return {n: jnp.matmul(x.T, x, precision="highest") for n, x in rows.items()}

    jax.eval_shape(lambda p, x: grams(p, x, ()), merged, data[0][0])
    if not groups:
        raise ValueError("No leaf with two axes meets the data in a matrix product.")
    jitted = jax.jit(grams, static_argnums=2)
    for group in groups:
        extras = []
        for some in data:
            total, count = None, 0
            for x in some:
                part = jitted(merged, x, (group[0],))
                total = part if total is None else jax.tree.map(jnp.add, total, part)
                count += size(x)
            assert total is not None  # no batch is empty: checked above
            refuse_nonfinite(total, "the Gram matrices")
            shared = total[group[0]] / np.float32(count)
            extras.append({"gram": dict.fromkeys(group, shared)})
        for n in group:
            method = gram_mean(off_diagonal, ridge, axes[n])
            one = [{"gram": {n: e["gram"][n]}} for e in extras]
            merged |= memory.merge(method, {n: floats[n]}, [{n: r[n]} for r in rows], extras=one)
    return {n: merged.get(n, x) for n, x in base.items()}
