"""How something was built: a factory and its arguments, printed, compared, and built again.

A `Spec` is a **pytree**: floats and arrays are leaves, all else is static structure.  Compiled code
takes specs as arguments and builds inside, so one compilation serves every value of a factor or a
strength, and numbers may be traced: ``vmap`` over factors and ``grad`` through a merge just work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxmerge.core.types import Merge, Transform


class Static:
    """A value that belongs to the structure of a spec, compared by equality."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        named = inspect.isroutine(self.value)
        return self.value.__name__ if named else repr(self.value)


jax.tree_util.register_pytree_node(Static, lambda s: ((), s), lambda s, _: s)


@jax.tree_util.register_pytree_node_class
class Spec:
    """A factory and its arguments; `build` calls it again.

    What no factory is known for is its own factory, without arguments.
    """

    def __init__(self, factory: Any, arguments: Mapping[str, Any]):
        self.factory = factory
        self.arguments = dict(arguments)

    def tree_flatten(self):
        return tuple(self.arguments.values()), (self.factory, tuple(self.arguments))

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(aux[0], dict(zip(aux[1], children, strict=True)))

    def build(self) -> Any:
        """Call the factory again, perhaps with traced numbers."""
        if not callable(self.factory):
            return self.factory
        return _call(self.factory, {k: thawed(v) for k, v in self.arguments.items()})

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Spec):
            return NotImplemented
        ours, theirs = jax.tree.flatten(self), jax.tree.flatten(other)
        return ours[1] == theirs[1] and all(map(_same, ours[0], theirs[0]))

    def __hash__(self) -> int:
        numbers = jax.tree.leaves(self)
        if any(isinstance(x, Tracer) for x in numbers):
            raise TypeError(
                f"{self} has numbers that are being traced, so it cannot be a static argument: "
                "pass it as an ordinary one."
            )
        plain = tuple(float(x) for x in numbers if np.size(x) == 1)
        return hash((self.factory, tuple(self.arguments), plain))

    def __repr__(self) -> str:
        if not callable(self.factory):
            return f"{type(self.factory).__name__}(...)"
        signature = inspect.signature(self.factory).parameters
        shown = []
        for k, v in self.arguments.items():
            if signature[k].kind is inspect.Parameter.VAR_POSITIONAL:
                shown += [repr(x) for x in v]
            elif thawed(v) is not signature[k].default:
                shown.append(f"{k}={v!r}")
        return f"{self.factory.__name__}({', '.join(shown)})"


def _same(one: Any, other: Any) -> bool:
    """Whether two leaves of specs are equal; traced ones are where they are one."""
    if one is other:
        return True
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return False
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and np.array_equal(one, other)


def _call(factory: Callable, arguments: dict[str, Any]) -> Any:
    args, kwargs = [], {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in arguments:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += arguments[name]
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            args.append(arguments[name])
        else:
            kwargs[name] = arguments[name]
    return factory(*args, **kwargs)


def frozen(value: Any, static: bool = False) -> Any:
    """An argument as a pytree: floats and arrays are leaves, stages are specs, the rest static."""
    if isinstance(value, Spec | Static):
        return value
    if isinstance(value, Merge | Transform):
        return value.spec or getattr(value, "core", None) or Spec(value, {})
    if isinstance(value, tuple | list):
        return tuple(frozen(v, static) for v in value)
    if isinstance(value, Mapping):
        return {k: frozen(v, static) for k, v in value.items()}
    if hasattr(value, "dtype") or (isinstance(value, float) and not static):
        return value
    return Static(value)


def thawed(value: Any) -> Any:
    """The argument that was frozen, stages built."""
    if isinstance(value, Static):
        return value.value
    if isinstance(value, Spec):
        return value.build()
    if type(value) is tuple:
        return tuple(thawed(v) for v in value)
    if isinstance(value, Mapping):
        return {k: thawed(v) for k, v in value.items()}
    return value
