"""A model whose layers are stacked for a scan, with a leaf for every layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, overload

import jax
import jax.numpy as jnp

from jaxmerge.continual.records import Model
from jaxmerge.continual.wraps.kernels import is_kernel, reading
from jaxmerge.core.ranges import Pattern, unfit
from jaxmerge.core.specs import Spec, Static
from jaxmerge.core.types import Leaves


@overload
def layers_apart(model: Model, stacks: str) -> Model: ...
@overload
def layers_apart(model: Spec, stacks: str) -> Spec: ...
def layers_apart(model: Model | Spec, stacks: str) -> Model | Spec:
    """The model with leaves ``<name>/0``, ``<name>/1``, .. for each stack ``<name>`` [layers, ...].

    Methods that hold a subspace or a decomposition a kernel (`gpm`, `osft`, ..) then have one a
    layer, and merges fold the layers' leaves. Inside, the model reads its stacks as before.

    Args:
        model: reads leaves [layers, ...], in a scan or one by one. A registered one, as a setup
            has it (``decoder(.., scan=True)``), gives such a one.
        stacks: regular expression, found anywhere in the names of the leaves that are taken apart:
            the biases and norms of the layers too, or the kernels alone.

    Memory: a copy of the stacks a step, since they are put together for it.

    Raises:
        ValueError: no regular expression; no leaf matches; one that does has no axis or is one
            kernel; or they have different numbers of layers.

    >>> start = lambda key: {"w": jnp.ones((3, 2, 2)), "head/kernel": jnp.ones((2, 4))}
    >>> def apply(params, x, task):
    ...     x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, params["w"])
    ...     return x @ params["head/kernel"]
    >>> apart = layers_apart(Model(start, apply), "w")
    >>> params = apart.init(jax.random.key(0))
    >>> {n: p.shape for n, p in params.items()}
    {'w/0': (2, 2), 'w/1': (2, 2), 'w/2': (2, 2), 'head/kernel': (2, 4)}
    >>> apart.apply(params, jnp.ones((1, 2)), 0).tolist()
    [[16.0, 16.0, 16.0, 16.0]]
    """
    if wrong := unfit(Pattern, stacks=stacks):
        raise ValueError(f"layers_apart: {wrong[0]}.")
    if isinstance(model, Spec):
        layers_apart(model.build(), stacks)  # what is wrong is said here, not in a stream
        return Spec(layers_apart, {"model": model, "stacks": Static(stacks)})
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    sizes = {n: p.shape[0] if p.ndim else 0 for n, p in shapes.items() if re.search(stacks, n)}
    if found := _no_stacks(shapes, sizes):
        raise ValueError(
            f"layers_apart: {stacks!r} is of stacks [layers, ...] of as many layers each; "
            f"found {found}."
        )
    layers = {n: [f"{n}/{i}" for i in range(size)] for n, size in sizes.items()}
    stack_of = {layer: n for n, own in layers.items() for layer in own}

    def apart(leaves: Leaves) -> Leaves:
        out: Leaves = {}
        for n, p in leaves.items():
            out |= dict(zip(layers[n], p, strict=True)) if n in layers else {n: p}
        return out

    def together(params: Leaves) -> Leaves:
        rest = {n: p for n, p in params.items() if n not in stack_of}
        return {n: jnp.stack([params[x] for x in own]) for n, own in layers.items()} | rest

    below = lambda says: lambda name: says(stack_of.get(name, name))
    return reading(
        model, lambda params, task: together(params), init=lambda key: apart(model.init(key)),
        trainable=below(model.trainable), slots=below(model.slots),
        statistics=below(model.statistics),
        weights=lambda params, task: apart(model.weights(together(params), task)),
        put=lambda params, merged: apart(model.put(together(params), together(merged))),
        taps=None,  # found in the trace, which goes through the stacks
    )  # fmt: skip


def _no_stacks(shapes: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    """What is wrong with leaves as stacks of so many layers, in words.

    A leaf of two axes is a stack of vectors, or one kernel: where nothing of more axes is beside
    it, its name decides.
    """
    if not sizes:
        return f"none of {list(shapes)[:8]}"
    if flat := [n for n, size in sizes.items() if not size]:
        return f"{', '.join(flat)} without layers"
    listing = ", ".join(f"{n} {list(shapes[n].shape)}" for n in sizes)
    if len(set(sizes.values())) > 1:
        return f"{listing}, of different numbers"
    if all(shapes[n].ndim < 3 for n in sizes) and any(is_kernel(n, shapes[n]) for n in sizes):
        return f"{listing}, no stack of kernels"
    return None
