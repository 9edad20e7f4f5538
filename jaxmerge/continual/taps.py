"""The inputs of all kernels of any model, for methods that project onto or off their span.

A model of this package says them itself, in ``aux["taps"]``. Of any other the trace is read, as
for RegMean (`jaxmerge.statistics.capture`): kernels in a scan over layers and convolutions too. A
wrap whose kernels are made of several leaves (LoRA, masks, scales) asks the model below.

A span of inputs is best held as a basis ``[d, r]`` of few columns: projecting with it costs
``2 d r`` numbers a column where the matrix ``[d, d]`` costs ``d^2``.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxmerge.continual.records import Batch, Model
from jaxmerge.core.types import Array, Leaves
from jaxmerge.statistics.capture import dense_inputs


def taps(model: Model, params: Leaves, inputs: Any, task: Array) -> dict[str, Array]:
    """Name of a kernel -> its inputs ``[N, in]``, every position of every example a row.

    The kernel is ``[in, out]``, or ``[height, width, in, out]`` with the entries of a patch in that
    order; one that a scan cuts into layers, ``[L, in, out]``, has ``[L, N, in]``. Kernels that are
    stored ``[out, in]`` are left out.
    """
    if model.taps is not None:
        return dict(model.taps(params, inputs, task))
    out, captured = dense_inputs(lambda p, x: model.apply(p, x, task), params, inputs, every=True)
    own = out.aux.get("taps", {}) if isinstance(out.aux, dict) else {}
    return {**{n: x.x for n, x in captured.items() if x.axis == 0}, **own}


def layer_inputs(model: Model, params: Leaves, batch: Batch, task: Any) -> dict[str, Array]:
    """`taps` of a batch in the order of the network; rows of examples of weight 0 are 0."""

    def rows(x):
        x = x.reshape(-1, x.shape[-1])
        weight = jnp.repeat(batch.weight, x.shape[0] // batch.weight.shape[0])
        return x * (weight > 0)[:, None].astype(x.dtype)

    return {n: rows(x) for n, x in taps(model, params, batch.inputs, task).items()}
