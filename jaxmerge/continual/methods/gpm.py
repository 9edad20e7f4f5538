"""Gradient projection memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import basis
from jaxmerge.continual.records import Batch, Method, Model
from jaxmerge.continual.registry import Count, Pattern, Share, methods
from jaxmerge.continual.taps import layer_inputs, taps
from jaxmerge.continual.wraps.kernels import fan_in, matching, projected
from jaxmerge.core.types import Array, Leaves


@methods.register
def gpm(
    threshold: Share | tuple[Share, ...] = 0.97,
    growth: float = 0.0,
    examples: Count = 300,
    project: Pattern = ".*",
    free: Pattern | None = None,
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
            of its own the authors leave heads out: ``"^(?!head/)"``. The inputs of each must be
            found (`continual.taps`).
        free: regular expression of other shared leaves that go on learning unprojected, such as
            such heads. All other leaves stop after the first task, biases and norms too: the
            authors' networks have no biases, their norms stop and keep no running statistics.
        capacity: columns of a basis; None: as many as inputs. Once all are used further directions,
            the weakest first, are left out and are unprotected.
        rule: "released": in the first task one vector fewer, as the code has it; "paper": the
            threshold is reached there too.

    Memory: in x capacity numbers a kernel; 784-100-100-10: 7.1 models.

    Raises:
        ValueError: the network has running statistics that `free` does not name: every step
            rewrites them, and old inputs would be answered differently.

    Source: Saha et al., Gradient Projection Memory for Continual Learning, ICLR 2021, algorithm 1;
    sahagobinda/GPM, ``main_pmnist.py``.

    Differs:
        What the optimiser proposes is projected, not the gradient. For plain SGD, with momentum or
        without, that is the same; for Adam or weight decay only this keeps old answers.

    >>> gpm((0.95, 0.99, 0.99))
    gpm(threshold=(0.95, 0.99, 0.99))
    """

    def chosen(model, params, names):
        return thresholds("gpm", model, params, project, names, threshold)

    def init(model, params, batch, stored):
        check_free("gpm", model, params, free)
        return empty_bases(model, params, batch, chosen, capacity)

    def end(model, params, memory, border):
        met = layer_inputs(model, params, border.read(examples), border.index)
        below = (border.index == 0) & (rule == "released")
        grown = {
            n: basis.grow(memory[n], met[n], basis.due(e, growth, border.index), below)
            for n, e in chosen(model, params, met).items()
        }
        return params, grown

    return Method(
        init=init, spans=spans_of, stops=stops_beside(free), end=end,
        claims=lambda model, params: matching(model, params, project),
    )  # fmt: skip


def thresholds(
    who: str, model: Model, params: Leaves, pattern: str, names: Iterable[str],
    threshold: float | tuple[float, ...],
) -> dict[str, float]:  # fmt: skip
    """Kernel -> its threshold, for those that match and whose inputs are known, in their order.

    Args:
        names: of the kernels whose inputs are known, in the order of the network.

    Raises:
        ValueError: none matches, one is a stack or its inputs are not known, or there is another
            number of thresholds.
    """
    chosen = projected(who, model, params, pattern, names)
    given = cast(Any, threshold)  # a number, several, or a traced array of either
    several = isinstance(given, tuple) or getattr(given, "ndim", 0)
    many = cast(tuple, tuple(given) if several else (given,) * len(chosen))
    if len(many) != len(chosen):
        raise ValueError(
            f"{who}: threshold has {len(many)} numbers, for the {len(chosen)} kernels "
            f"{', '.join(chosen)}."
        )
    return dict(zip(chosen, many, strict=True))


def empty_bases(
    model: Model, params: Leaves, batch: Batch, chosen: Callable, capacity: int | None
) -> dict[str, basis.Basis]:
    """Kernel -> a basis without a direction; nothing is computed."""
    order = met_kernels(model, params, batch)
    make = lambda n: basis.empty(fan_in(params[n]), capacity, params[n].dtype)
    return {n: make(n) for n in chosen(model, params, order)}


def met_kernels(model: Model, params: Leaves, batch: Batch) -> list[str]:
    """Names of the kernels whose inputs are known, in the order of the network; a trace only."""
    order: list[str] = []
    jax.eval_shape(lambda: order.extend(taps(model, params, batch.inputs, jnp.int32(0))))
    return order


def check_free(who: str, model: Model, params: Leaves, free: str | None) -> None:
    """Raise ValueError where `free` matches no leaf that changes, or leaves statistics out.

    Steps rewrite running statistics, which nothing stops or projects: they go on, or there are
    none.

    Args:
        free: regular expression of leaves that go on learning; None: there are none.
    """
    chosen = lambda n: free is not None and re.search(free, n) is not None
    changing = [n for n in params if model.trainable(n) or model.statistics(n)]
    if free is not None and not any(map(chosen, changing)):
        shown = ", ".join(changing[:8]) + (", ..." if len(changing) > 8 else "")
        raise ValueError(f"{who}: no leaf that trains matches free={free!r}; there are: {shown}.")
    check_still(who, model, [n for n in changing if not chosen(n)], ", or name them in `free`")


def check_still(who: str, model: Model, names: Iterable[str], way_out: str = "") -> None:
    """Raise ValueError for running statistics among leaves: every step rewrites them."""
    if moving := [n for n in names if model.statistics(n)]:
        raise ValueError(
            f"{who}: every step rewrites the running statistics {', '.join(moving[:2])} and so on "
            f"({len(moving)} leaves), so that old inputs are answered differently: build the "
            f"network with running=False{way_out}."
        )


def spans_of(memory: Mapping[str, basis.Basis]) -> dict[str, Array]:
    """Kernel -> M [in, capacity], as `Method.spans` has it."""
    return {n: m.vectors for n, m in memory.items()}


def stops_beside(free: str | None) -> Callable[[Model, Mapping, str], bool]:
    """`Method.stops`: shared leaves that are no kernel of the memory.

    Args:
        free: regular expression of those that go on learning; None: there are none.
    """

    def stops(model, memory, name):
        goes_on = free is not None and re.search(free, name) is not None
        return not (name in memory or model.slots(name) or goes_on)

    return stops
