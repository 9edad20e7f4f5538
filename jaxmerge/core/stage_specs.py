"""Merges and transforms with the spec that built them, as pytrees of its numbers.

A merge is an argument of jit, or something to map or differentiate over: flattened, it is its spec;
put together, it is built again.
"""

from __future__ import annotations

from typing import Any

import jax

from jaxmerge.core.specs import Spec
from jaxmerge.core.types import DECLARED, Merge, Transform


def noted(stage: Merge | Transform, spec: Spec) -> Merge | Transform:
    """A stage with the record of how it was built."""
    if isinstance(stage, Merge) and not (stage.before or stage.after or stage.route):
        stage = stage._replace(core=spec)
    return stage._replace(spec=spec)


def spec_of(stage: Merge | Transform) -> Spec:
    """The spec that rebuilds a fold or a transform alone, without its neighbours in a chain."""
    spec = stage.core if isinstance(stage, Merge) else stage.spec
    return spec if spec is not None else Spec(stage, {})


class _Hollow:
    """The functions of a method whose numbers are none yet: jax's placeholders, or stacks."""

    def __call__(self, *_: Any) -> Any:
        raise TypeError("This method has no plain numbers; map over it, or index its leaves.")


def _flatten(stage: Merge | Transform) -> tuple[tuple, Any]:
    if stage.spec is None:
        return (), stage
    declared = DECLARED if isinstance(stage, Merge) else ("stochastic", "models")
    return (stage.spec,), (type(stage), tuple((f, getattr(stage, f)) for f in declared))


def _unflatten(aux: Any, children: tuple) -> Merge | Transform:
    if not children:
        return aux
    (spec,), (kind, declared) = children, aux
    try:
        stage = noted(spec.build(), spec)
    except (AttributeError, TypeError, ValueError):  # placeholders, or numbers of many at once
        stage = kind(*[_Hollow()] * (2 if kind is Merge else 1))
    return stage._replace(spec=spec, **dict(declared))


# A method is a pytree of its numbers: an argument of jit, something to map or differentiate over.
jax.tree_util.register_pytree_node(Merge, _flatten, _unflatten)
jax.tree_util.register_pytree_node(Transform, _flatten, _unflatten)
