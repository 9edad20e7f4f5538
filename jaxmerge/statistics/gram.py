"""Input Gram matrices of every dense kernel: what RegMean needs to know about data.

For a kernel that meets rows x in R^in, ``G = (1/N) sum x x^T``, averaged over the N examples (all
positions of an example are summed).  The rows are caught by `jaxmerge.statistics.capture`, so any
JAX function will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.names import is_float
from jaxmerge.core.types import Array, Leaves, Tree, working_dtype
from jaxmerge.statistics.capture import dense_inputs
from jaxmerge.statistics.fisher import refuse_nonfinite
from jaxmerge.statistics.store import Statistic, weights_hash

Keep = Callable[[Tree], Array]  # inputs -> bool [N]


def gram(
    apply: Callable[[Leaves, Tree], Tree],
    params: Leaves,
    batches: Iterable[Tree],
    *,
    keep: Keep | None = None,
    about: dict[str, Any] | None = None,
) -> Statistic:
    """The input Gram matrix of every dense kernel of a model.

    Args:
        apply: ``(params, inputs) -> anything``.
        params: name -> array; kernels are the leaves with two axes that meet data in a product.
        batches: of inputs, or of ``(inputs, labels)`` (labels are not read).
        keep: ``inputs -> bool [N]``, False for rows that are no data, such as padding:
            ``lambda tokens: (tokens != pad).ravel()``.  For kernels with another number of rows it
            does nothing.
        about: further facts that are stored with it, such as the name of the data.

    Returns:
        A `Statistic` of kernel name -> [in, in], symmetric and positive semidefinite, float32
        (float64 where the activations are), summed over batches in float64;
        ``about["axis"]`` says which axis of the kernel is "in".

    Raises:
        ValueError: no data, no dense kernel found, NaN or Inf.

    Memory: one [in, in] matrix a kernel, and the inputs of one batch.

    Source: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models (RegMean),
    ICLR 2023, section 3.

    Example:
        >>> g = gram(lambda p, x: x @ p["w"], {"w": np.ones((2, 3), np.float32)}, [np.eye(2)])
        >>> g.values["w"].tolist(), g.about["axis"]
        ([[0.5, 0.0], [0.0, 0.5]], {'w': 0})
    """
    params = {n: jnp.asarray(x) for n, x in params.items() if is_float(x)}
    axes: dict[str, int] = {}

    @jax.jit
    def products(params, inputs):
        _, captured = dense_inputs(apply, params, inputs)
        axes.update({n: f.axis for n, f in captured.items()})
        mask = None if keep is None else keep(inputs)
        rows = {n: without(f.x.astype(working_dtype(f.x)), mask) for n, f in captured.items()}
        return {n: jnp.matmul(x.T, x, precision="highest") for n, x in rows.items()}

    total, samples, kinds = None, 0, {}
    for batch in batches:
        inputs = batch[0] if isinstance(batch, tuple) else batch
        grams = products(params, inputs)
        kinds = {n: x.dtype for n, x in grams.items()}
        grams = {n: np.asarray(x, np.float64) for n, x in grams.items()}
        total = grams if total is None else {n: total[n] + x for n, x in grams.items()}
        samples += jax.tree.leaves(inputs)[0].shape[0]
    if not samples:
        raise ValueError("Gram matrices need data, got no batch.")
    if not total:
        raise ValueError("No leaf with two axes meets the data in a matrix product.")
    refuse_nonfinite(total, "the Gram matrices")
    values = {n: (x / samples).astype(kinds[n]) for n, x in total.items()}
    weights = weights_hash(params, values)
    return Statistic("gram", values, samples, weights, {"axis": axes, **(about or {})})


def without(rows: Array, mask: Array | None) -> Array:
    """Rows [N, in] with zeros where `mask` [N] is False; as they are if it is of another length."""
    if mask is None or len(mask) != len(rows):
        return rows
    return jnp.where(mask[:, None], rows, 0)
