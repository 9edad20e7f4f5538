"""Gradient projection memory."""

from __future__ import annotations

import re
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import basis
from jaxmerge.continual.records import Batch, Method, Model
from jaxmerge.continual.registry import Count, Share, methods
from jaxmerge.core.types import Array, Leaves
from jaxmerge.statistics.capture import dense_inputs


@methods.register
def gpm(
    threshold: Share | tuple[Share, ...] = 0.97,
    growth: float = 0.0,
    examples: Count = 300,
    project: str = ".*",
    free: str | None = None,
    capacity: Count | None = None,
    rule: Literal["released", "paper"] = "released",
) -> Method:
    """Gradient projection memory: a kernel moves only outside what earlier tasks fed into it.

    Formula: dW <- dW - M M' dW for a kernel W [in, out], M an orthonormal basis that grows after
    each task by the leading directions of the kernel's inputs (`memories.basis.grow`). The first
    task is not projected.

    Args:
        threshold: share of the inputs' energy that the basis must span, one number or one for each
            projected kernel in order. Permuted MNIST: (0.95, 0.99, 0.99).
        growth: added to the threshold after every task (CIFAR-100: 0.97 + 0.003 t).
        examples: of a task, whose inputs are looked at.
        project: regular expression of the kernels that are projected; where every task has a head
            of its own the authors leave heads out: ``"^(?!head/)"``.
        free: regular expression of other shared leaves that go on learning unprojected, such as
            such heads. All other leaves stop after the first task, biases and norms too: the
            authors' networks have no biases, their norms stop.
        capacity: columns of a basis; None: as many as inputs.
        rule: "released": in the first task one vector fewer, as the code has it; "paper": the
            threshold is reached there too.

    Memory: in x capacity numbers a kernel; 784-100-100-10: 3.2 models.

    Source: Saha et al., Gradient Projection Memory for Continual Learning, ICLR 2021, algorithm 1;
    sahagobinda/GPM, ``main_pmnist.py``.

    Differs:
        What the optimiser proposes is projected, not the gradient. For plain SGD, with momentum or
        without, that is the same; for Adam or weight decay only this keeps old answers.

    >>> gpm((0.95, 0.99, 0.99))
    gpm(threshold=(0.95, 0.99, 0.99))
    """

    def kernels(names) -> list[str]:
        chosen = [n for n in names if re.search(project, n)]
        if not chosen:
            raise ValueError(f"gpm: no dense kernel matches {project!r}; there are {list(names)}.")
        if isinstance(threshold, tuple) and len(threshold) != len(chosen):
            raise ValueError(
                f"gpm: threshold has {len(threshold)} numbers, for the {len(chosen)} kernels "
                f"{', '.join(chosen)}."
            )
        return chosen

    def init(model, params, batch, stored):
        order = []

        def look():
            met = layer_inputs(model, params, batch, 0)
            order.extend(met)  # a mapping comes back in alphabetical order
            return met

        met = jax.eval_shape(look)
        make = lambda n: basis.empty(met[n].shape[1], capacity, params[n].dtype)
        return {n: make(n) for n in kernels(order)}

    def update(model, step, updates):
        def own(n, u):
            if n in step.memory:
                m = step.memory[n]
                flat = u.reshape(m.vectors.shape[0], -1)
                return basis.outside(m, flat).reshape(u.shape)
            if model.slots(n) or (free is not None and re.search(free, n)):
                return u
            return jnp.where(step.task == 0, u, 0)

        return {n: own(n, u) for n, u in updates.items()}, step.memory

    def end(model, params, memory, border):
        met = layer_inputs(model, params, border.read(examples), border.index)
        names = kernels(met)
        each = threshold if isinstance(threshold, tuple) else (threshold,) * len(names)
        below = (border.index == 0) & (rule == "released")
        grown = {
            n: basis.grow(memory[n], met[n], e + growth * border.index, below)
            for e, n in zip(each, names, strict=True)
        }
        return params, grown

    return Method(init=init, update=update, end=end)


def layer_inputs(model: Model, params: Leaves, batch: Batch, task: Any) -> dict[str, Array]:
    """Kernel -> [rows, in], what meets each kernel; rows of filled-up examples are 0.

    A model that gives ``aux["taps"]`` is asked (convolutions, layers inside a scan); of any other
    the dense kernels are found in its trace.
    """
    out = model.apply(params, batch.inputs, task)
    taps = (out.aux or {}).get("taps")
    if taps is None:
        logits = lambda params, inputs: model.apply(params, inputs, task).logits
        _, met = dense_inputs(logits, params, batch.inputs)
        taps = {n: found.x for n, found in met.items() if found.axis == 0}

    def rows(x):
        x = x.reshape(-1, x.shape[-1])
        weight = jnp.repeat(batch.weight, x.shape[0] // batch.weight.shape[0])
        return x * (weight > 0)[:, None].astype(x.dtype)

    return {n: rows(x) for n, x in taps.items()}
