"""How a method was built: its name, its signature as a schema, and a recipe to build it again.

`@register` does three things for a factory such as ``def ties(density=0.2, ...) -> Merge``:

* enters it in `REGISTRY`, so that recipes and the command line find it by name and check its
  arguments against its signature;
* records the call on what it returns, so that ``repr(ties(0.1)) == "ties(density=0.1)"``;
* makes that record, a `Spec`, a **pytree**: floats and arrays are leaves, all else is static
  structure.  Compiled code takes specs as arguments and rebuilds the stage inside, so one
  compilation serves every leaf of one shape and every value of a factor, and hyperparameters may
  be traced: ``vmap`` over factors and ``grad`` through a merge just work.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxmerge.core.types import DECLARED, Merge, Transform
from jaxmerge.errors import closest

REGISTRY: dict[str, Callable[..., Merge | Transform]] = {}


class Static:
    """A value that belongs to the structure of a spec, compared by equality."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return repr(self.value)


jax.tree_util.register_pytree_node(Static, lambda s: ((), s), lambda s, _: s)


@jax.tree_util.register_pytree_node_class
class Spec:
    """A factory and its arguments; `build` calls it again."""

    def __init__(self, factory: Callable | Merge | Transform, arguments: Mapping[str, Any]):
        self.factory = factory
        self.arguments = dict(arguments)

    def tree_flatten(self):
        return tuple(self.arguments.values()), (self.factory, tuple(self.arguments))

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(aux[0], dict(zip(aux[1], children, strict=True)))

    def build(self) -> Merge | Transform:
        """Call the factory again, perhaps with traced numbers."""
        if isinstance(self.factory, Merge | Transform):
            return self.factory  # never registered: stands for itself
        return _call(self.factory, {k: _thaw(v) for k, v in self.arguments.items()})

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Spec):
            return NotImplemented
        ours, theirs = jax.tree.flatten(self), jax.tree.flatten(other)
        return ours[1] == theirs[1] and all(map(_same, ours[0], theirs[0]))

    def __hash__(self) -> int:
        numbers = jax.tree.leaves(self)
        if any(isinstance(x, jax.core.Tracer) for x in numbers):
            raise TypeError(
                f"{self} has numbers that are being traced, so it cannot be a static argument: "
                "pass it as an ordinary one."
            )
        plain = tuple(float(x) for x in numbers if np.size(x) == 1)
        return hash((self.factory, tuple(self.arguments), plain))

    def __repr__(self) -> str:
        if isinstance(self.factory, Merge | Transform):
            return f"{type(self.factory).__name__}(...)"
        signature = inspect.signature(self.factory).parameters
        shown = []
        for k, v in self.arguments.items():
            if signature[k].kind is inspect.Parameter.VAR_POSITIONAL:
                shown += [repr(x) for x in v]
            elif _thaw(v) is not signature[k].default:
                shown.append(f"{k}={v!r}")
        return f"{self.factory.__name__}({', '.join(shown)})"


def register(
    factory: Callable | None = None, *, static: Iterable[str] = (), shapes: Iterable[str] = ()
) -> Callable:
    """Register a factory of a `Merge` or a `Transform`; see the module's docstring.

    Args:
        static: names of numeric arguments that stay Python numbers inside compiled code (a density
            that decides a count exactly) unless the caller traces them; other floats are traced.
        shapes: names of those that decide a shape: a caller cannot trace them.

    Raises:
        ValueError: the name is taken by another factory.
    """
    if factory is None:
        return functools.partial(register, static=static, shapes=shapes)
    name, shapes = factory.__name__, frozenset(shapes)
    static = frozenset(static) | shapes
    signature = inspect.signature(factory)
    if name in REGISTRY and inspect.unwrap(REGISTRY[name]).__module__ != factory.__module__:
        raise ValueError(f"A method named {name!r} is registered already; choose another name.")

    @functools.wraps(factory)
    def build(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            known = list(signature.parameters)
            wrong = [k for k in kwargs if k not in known]
            hint = "; ".join(f"{k!r}: {closest(k, known)}" for k in wrong) or f"it takes {known}"
            raise TypeError(f"{name}(): {error} ({hint})") from None
        bound.apply_defaults()
        for k in static & set(bound.arguments):
            bound.arguments[k] = _plain(name, k, bound.arguments[k], k in shapes)
        made = factory(*bound.args, **bound.kwargs)
        arguments = {k: frozen(v, k in static) for k, v in bound.arguments.items()}
        return _noted(made, Spec(factory, arguments))

    REGISTRY[name] = build
    return build


def _noted(made: Merge | Transform, spec: Spec) -> Merge | Transform:
    """A stage with the record of how it was built."""
    if isinstance(made, Merge) and not (made.before or made.after or made.route):
        made = made._replace(core=spec)
    return made._replace(spec=spec)


def _plain(name: str, argument: str, value: Any, shape: bool) -> Any:
    """A static argument as a Python number; raise TypeError where one that must be is traced."""
    if isinstance(value, jax.core.Tracer):
        if shape:
            raise TypeError(
                f"{name}(): {argument} decides a shape, so it must be a number, and here it is "
                "traced by jit, vmap or grad. Build the method outside of the transformation, "
                f"once for every {argument}."
            )
        return value
    return value.item() if getattr(value, "ndim", None) == 0 else value


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
        made = _noted(spec.build(), spec)
    except (AttributeError, TypeError, ValueError):  # placeholders, or numbers of many at once
        made = kind(*[_Hollow()] * (2 if kind is Merge else 1))
    return made._replace(spec=spec, **dict(declared))


# A method is a pytree of its numbers: an argument of jit, something to map or differentiate over.
jax.tree_util.register_pytree_node(Merge, _flatten, _unflatten)
jax.tree_util.register_pytree_node(Transform, _flatten, _unflatten)


def get(name: str) -> Callable[..., Merge | Transform]:
    """The registered factory of that name.

    >>> import jaxmerge
    >>> get("magmx")
    Traceback (most recent call last):
    KeyError: "No method is named 'magmx': did you mean magmax?"
    """
    try:
        return REGISTRY[name]
    except KeyError:
        raise KeyError(f"No method is named {name!r}: {closest(name, REGISTRY)}") from None


def spec_of(stage: Merge | Transform) -> Spec:
    """The spec that rebuilds a fold or a transform alone, without its neighbours in a chain."""
    spec = stage.core if isinstance(stage, Merge) else stage.spec
    return spec if spec is not None else Spec(stage, {})


def _same(one: Any, other: Any) -> bool:
    """Whether two leaves of specs are equal; traced ones are where they are one."""
    if one is other:
        return True
    if isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return False
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and np.array_equal(one, other)


def _call(factory: Callable, arguments: dict[str, Any]) -> Merge | Transform:
    args, kwargs = [], {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in arguments:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += arguments[name]
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            args.append(arguments[name])
        elif args:
            kwargs[name] = arguments[name]
        else:
            kwargs[name] = arguments[name]
    return factory(*args, **kwargs)


def frozen(value: Any, static: bool = False) -> Any:
    """An argument as a pytree: floats and arrays are leaves, stages are specs, the rest static."""
    if isinstance(value, Spec | Static):
        return value
    if isinstance(value, Merge | Transform):
        if isinstance(value, Merge) and value.spec is not None:
            return value.spec
        return spec_of(value)
    if isinstance(value, tuple | list):
        return tuple(frozen(v, static) for v in value)
    if isinstance(value, Mapping):
        return {k: frozen(v, static) for k, v in value.items()}
    if hasattr(value, "dtype") or (isinstance(value, float) and not static):
        return value
    return Static(value)


def _thaw(value: Any) -> Any:
    if isinstance(value, Static):
        return value.value
    if isinstance(value, Spec):
        return value.build()
    if isinstance(value, tuple):
        return tuple(_thaw(v) for v in value)
    if isinstance(value, Mapping):
        return {k: _thaw(v) for k, v in value.items()}
    return value
