"""Updates that stay outside a span: one mechanism behind every optimiser, and its cheap form.

A method names spans, ``Method.spans: memory -> {kernel: M [in, k]}`` with orthonormal columns and
zeros, of the memory that hooks `update` leave.  What they leave of the optimiser's proposal for a
kernel is projected,

    u <- u - M M' u,

so that Adam, momentum, weight decay and other methods leak nothing.  That is ``4 in k out``
operations a step.  A gradient of N rows is ``u = x' d``, and a constant rate or momentum is linear:

    u - M M' u = (x - x M M')' d

is the same update from N rows instead of `out` columns.  It is used where it holds and costs less:
plain SGD with or without momentum that starts anew, kernels that are read as ``x @ W``, fewer rows
than columns, and no hook that adds to the gradient or may read it.

What no projection keeps may stop instead: `Method.stops` names leaves that stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.hook_calls import kind, named
from jaxmerge.continual.operators import Operator, operated
from jaxmerge.continual.optimisers import is_linear
from jaxmerge.continual.parts import Parts
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.wraps.kernels import fan_in
from jaxmerge.core.types import Array, Leaves, Tree
from jaxmerge.errors import listed
from jaxmerge.numerics.precision import full_precision
from jaxmerge.numerics.subspaces import outside


class Span(NamedTuple):
    """What updates of a kernel stay outside of, one of the two or both.

    Attributes:
        vectors: M [in, k], orthonormal columns and zeros.
        projector: M M' [in, in], where one product with it is cheaper than two with M; where both
            are there it is what is used.
    """

    vectors: Array | None = None
    projector: Array | None = None


def rows_outside(span: Span, x: Array) -> Array:
    """x - x M M' of rows [.., in].

    Args:
        span: of the kernel that reads the rows.
        x: rows [.., in].

    >>> rows_outside(Span(jnp.array([[1.0], [0.0]])), jnp.ones((1, 2))).tolist()
    [[0.0, 1.0]]
    """
    if span.projector is not None:
        return x - full_precision(jnp.matmul)(x, span.projector)
    return outside(x, right=span.vectors)


def outside_of(span: Span, u: Array) -> Array:
    """u - M M' u of a kernel's update.

    Args:
        span: of the kernel.
        u: [in, out], or of a convolution [height, width, in, out].

    >>> outside_of(Span(projector=jnp.diag(jnp.array([1.0, 0.0]))), jnp.ones((2, 1))).tolist()
    [[0.0], [1.0]]
    """
    if span.projector is None:
        return outside(u, span.vectors)
    flat = u.reshape(-1, u.shape[-1])
    return u - full_precision(jnp.matmul)(span.projector, flat).reshape(u.shape)


def compact(vectors: Array) -> Span:
    """The span of M [.., in, k], by its projector where one product costs less than two.

    Args:
        vectors: M, orthonormal columns and zeros; of several spans where there are more axes.

    >>> compact(jnp.zeros((8, 3))).projector is None, compact(jnp.zeros((8, 8))).vectors is None
    (True, True)
    """
    if 2 * vectors.shape[-1] <= vectors.shape[-2]:
        return Span(vectors)
    return Span(projector=full_precision(jnp.matmul)(vectors, jnp.swapaxes(vectors, -1, -2)))


class Projection(NamedTuple):
    """How a task's steps are projected.

    Attributes:
        spans: kernel -> `Span`, at the start of the task.
        of_rows: whether gradients are made of projected rows, so that updates need nothing.

    >>> first = jnp.array([[1.0], [0.0]])
    >>> there = Projection({"w": Span(first)}, of_rows=False)
    >>> there.updates({"w": jnp.ones((2, 1))}, there.spans)["w"].tolist()
    [[0.0], [1.0]]
    >>> apply = lambda params, x: x @ params["w"]
    >>> there.learn(apply, {"w": jnp.ones((2, 1))}, jnp.ones((1, 2))).tolist()
    [[2.0]]
    """

    spans: Mapping[str, Span]
    of_rows: bool

    def learn(self, apply: Callable, params: Leaves, *args: Tree) -> Tree:
        """``apply(params, *args)`` whose gradients of kernels are projected, if `of_rows`.

        Args:
            apply: ``(params, *args) -> Outputs``, as a model has it.
            params: of the model.
            args: what else `apply` reads: inputs, task, key.
        """
        if not self.of_rows:
            return apply(params, *args)
        there = {n: _operator(params[n], s) for n, s in self.spans.items()}
        return operated(apply, params, there, *args)

    def updates(self, updates: Tree, spans: Mapping[str, Span]) -> Tree:
        """Updates outside the spans, if they are not already.

        Args:
            updates: what the optimiser proposes, by kernel.
            spans: of kernels, at this step.
        """
        if self.of_rows:
            return updates
        own = lambda n, u: outside_of(spans[n], u) if n in spans else u
        return {n: own(n, u) for n, u in updates.items()}


def projection(setup: Setup, parts: Parts, memory: tuple, trained: Leaves, rows: int) -> Projection:
    """The spans that methods name, for steps that show `rows` examples in all.

    Args:
        setup: its optimiser decides the form.
        parts: what was built of it.
        memory: of each method, in order.
        trained: leaf -> array, those that steps move.
        rows: examples that the steps of a task show in all.

    Raises:
        ValueError: see `spans_of`.

    >>> from jaxmerge.continual import optimisers, problems
    >>> from jaxmerge.continual.parts import build
    >>> from jaxmerge.models.mlp.learner import mlp
    >>> setup = Setup(mlp(4, (3,), 4), problems.classification(), optimisers.sgd(0.1))
    >>> projection(setup, build(setup, 2), (), {}, rows=8)  # no method names a span
    Projection(spans={}, of_rows=False)
    """
    spans = spans_of(parts, memory, trained)
    linear = is_linear(setup.optimiser) and setup.moments == "new"  # kept ones are of other spans
    of_rows = bool(spans) and linear and _unread(parts)
    if of_rows:
        spans = {n: _prepared(s, rows) for n, s in spans.items()}
    return Projection(spans, of_rows)


def spans_of(parts: Parts, memory: Sequence, trained: Leaves) -> dict[str, Span]:
    """The span of each kernel that has one, of all methods.

    Args:
        parts: what was built of a setup.
        memory: of each method, in order.
        trained: leaf -> array, those that steps move.

    Raises:
        ValueError: two methods name a span of one kernel; one of no trained kernel, or of other
            inputs than it has.

    >>> from jaxmerge.continual import optimisers, problems
    >>> from jaxmerge.continual.parts import build
    >>> from jaxmerge.models.mlp.learner import mlp
    >>> setup = Setup(mlp(4, (3,), 4), problems.classification(), optimisers.sgd(0.1))
    >>> spans_of(build(setup, 2), (), {})  # no method names a span
    {}
    """
    spans: dict[str, Span] = {}
    for method, name, own in zip(parts.methods, parts.names, memory, strict=True):
        with named(f"{name}: `spans`"):
            new = method.spans(own) if method.spans is not None else {}
        if not isinstance(new, Mapping):
            raise ValueError(f"{name}: `spans` gives a mapping of kernels; found {kind(new)}.")
        new = {n: s if isinstance(s, Span) else Span(s) for n, s in new.items()}
        if twice := sorted(spans.keys() & new.keys()):
            raise ValueError(f"{name}: another method projects {', '.join(twice)} already.")
        if wrong := [w for n, m in new.items() if (w := _misfit(n, m, trained))]:
            raise ValueError(f"{name}: {listed(wrong)}")
        spans |= new
    return spans


def stopped(parts: Parts, memory: Sequence, updates: Leaves, task: Array) -> Leaves:
    """Updates of which those that a method stops are zero after the first task.

    Args:
        parts: what was built of a setup.
        memory: of each method, in order.
        updates: what the optimiser and all hooks propose, by leaf.
        task: int32.

    >>> from jaxmerge.continual import optimisers, problems
    >>> from jaxmerge.continual.methods import gpm
    >>> from jaxmerge.continual.parts import build
    >>> from jaxmerge.models.mlp.learner import mlp
    >>> setup = Setup(mlp(4, (3,), 4), problems.classification(), optimisers.sgd(0.1), (gpm(),))
    >>> updates = {"head/kernel": jnp.ones(1), "head/bias": jnp.ones(1)}
    >>> new = stopped(build(setup, 2), ({"head/kernel": None},), updates, jnp.int32(1))
    >>> {n: u.tolist() for n, u in new.items()}
    {'head/kernel': [1.0], 'head/bias': [0.0]}
    """
    still = set()
    for method, name, own in zip(parts.methods, parts.names, memory, strict=True):
        if method.stops is not None:
            with named(f"{name}: `stops`"):
                answers = {n: method.stops(parts.model, own, n) for n in updates}
            if odd := [n for n, a in answers.items() if not isinstance(a, bool)]:
                found = kind(answers[odd[0]])
                raise ValueError(f"{name}: `stops` says True or False; found {found} for {odd[0]}.")
            still |= {n for n, answer in answers.items() if answer}
    if not still:
        return updates
    return {n: jnp.where(task == 0, u, 0) if n in still else u for n, u in updates.items()}


def _misfit(name: str, span: Span, trained: Leaves) -> str | None:
    """What is wrong with a span, in words."""
    if name not in trained or jnp.ndim(trained[name]) < 2:
        return f"a span of {name!r}, which is no kernel that trains"
    inputs, (vectors, projector) = fan_in(trained[name]), span
    if vectors is None and projector is None:
        return f"the span of {name!r} is empty, expected vectors or a projector"
    for what, x, width in (("span", vectors, "k"), ("projector", projector, str(inputs))):
        if x is None:
            continue
        real = isinstance(x, jax.Array | np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating)
        if not real or x.ndim != 2 or x.shape[0] != inputs or width not in ("k", str(x.shape[1])):
            found = list(x.shape) if real else kind(x)
            return f"the {what} of {name!r} is {found}, expected real numbers [{inputs}, {width}]"
    return None


def _unread(parts: Parts) -> bool:
    """Whether nothing but the model adds to the gradient, and no hook may read it."""
    hooks = lambda m: (m.loss, m.perturb, m.gradient, m.observe, m.update)
    return not any(h for m in parts.methods for h in hooks(m))


def _prepared(span: Span, rows: int) -> Span:
    """With its projector, where rows (2 in k - in^2), what that saves, exceed in^2 k, its cost."""
    if span.projector is not None:
        return span
    vectors = span.vectors
    assert vectors is not None  # `_misfit` has asked
    inputs, width = vectors.shape
    if rows * (2 * width - inputs) <= inputs * width:
        return span
    return Span(vectors, full_precision(jnp.matmul)(vectors, vectors.T))


def _operator(kernel: Array, span: Span) -> Operator:
    """A kernel whose gradient is projected, by its rows or as an array."""
    return Operator(lambda x, dot: _product(dot, x, kernel, span), lambda: _guarded(kernel, span))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(dot: Callable, x: Array, kernel: Array, span: Span) -> Array:
    return dot(x, kernel)


def _product_forward(dot, x, kernel, span):
    return dot(x, kernel), (x, kernel, span)


def _product_backward(dot, saved, cotangent):
    x, kernel, span = saved
    (to_x,) = jax.vjp(lambda x: dot(x, kernel), x)[1](cotangent)
    projected = rows_outside(span, x)
    (to_kernel,) = jax.vjp(lambda w: dot(projected, w), kernel)[1](cotangent)
    return to_x, to_kernel, jax.tree.map(jnp.zeros_like, span)


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _guarded(kernel: Array, span: Span) -> Array:
    return kernel


_guarded.defvjp(
    lambda kernel, span: (kernel, span),
    lambda span, g: (outside_of(span, g), jax.tree.map(jnp.zeros_like, span)),
)
