"""Things by name: merges, and all that continual learning is made of.

A `Registry` enters factories such as ``def ties(density=0.2, ...) -> Merge`` under their names, so
that recipes, settings and the command line find them, and checks arguments against the signature:
annotations say the range (see `jaxmerge.core.ranges`), and what does not fit is refused with all
offenders and the closest names.  Every call is recorded as a `Spec`, so that
``repr(ties(0.1)) == "ties(density=0.1)"``.  A registry of `jaxmerge.continual.registry` hands out
that spec; the one of merges, here, what was built, with the spec on it:

    @register
    def median() -> Merge: ...

    get("median")()                                    # as a recipe does
    methods.from_settings({"method": "ewc", "strength": 3})    # as settings do
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jax.core import Tracer

from jaxmerge.core import old_names
from jaxmerge.core.old_names import Now
from jaxmerge.core.ranges import checked
from jaxmerge.core.specs import Spec, frozen, thawed
from jaxmerge.core.stage_specs import noted
from jaxmerge.errors import closest, listed, not_known

MISSING = object()  # no default was given


class ArgumentError(TypeError, ValueError):
    """Arguments that a factory does not take: unknown, missing or out of range."""


class UnknownNameError(KeyError, ValueError):
    """A name under which nothing is registered."""

    __str__ = Exception.__str__  # KeyError's quotes the message


class Registry(Mapping[str, Callable]):
    """Factories of one kind by name.

    Args:
        kind: in messages and settings, such as "method".
        wrap: ``(what a factory built, its spec) -> what a call returns``; the spec by default.
        old: old names that still work, see `jaxmerge.core.old_names`.
        arguments: name -> old argument -> what it is today, said where the argument is refused.
        homes: modules whose import enters the factories of the package; they are imported one by
            one until a name is there, or all where all names are asked for.
    """

    def __init__(
        self,
        kind: str,
        wrap: Callable[[Any, Spec], Any] = lambda built, spec: spec,
        old: Mapping[str, Now] | None = None,
        arguments: Mapping[str, Mapping[str, str]] | None = None,
        homes: Iterable[str] = (),
    ):
        self.kind = kind
        self.wrap = wrap
        self.old = old or {}
        self.arguments = arguments or {}
        self.homes = tuple(homes)
        self._factories: dict[str, Callable] = {}

    def _all(self) -> dict[str, Callable]:
        """All factories, those of the package too: what is imported already costs a look."""
        for home in self.homes:
            importlib.import_module(home)
        return self._factories

    def __getitem__(self, name: str) -> Callable:
        for home in self.homes:
            if name in self._factories:
                break
            importlib.import_module(home)
        return self._factories[name]

    def __delitem__(self, name: str) -> None:
        del self._factories[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def register(self, factory: Callable | None = None, **kinds: Iterable[str]) -> Callable:
        """Enter a factory under its name and `record` its calls.

        Args:
            factory: returns a merge or a transform (here what the registry holds); its name is the
                name, its annotations say the ranges.  None with `kinds` alone, as a decorator.
            kinds: ``static`` and ``shapes``, see `record`.

        Raises:
            ValueError: the name is taken by a factory of another module, which is not of the same
                file: a file may be imported under two names.

        Example:
            >>> from jaxmerge.core.ranges import Share
            >>> shops = Registry("shop")
            >>> @shops.register
            ... def bakery(share: Share = 0.5) -> str:
            ...     return f"bakes {share}"
            >>> shops.get("bakery")(1), shops.get("bakery")(1).build()
            (bakery(share=1.0), 'bakes 1.0')
        """
        if factory is None:
            return functools.partial(self.register, **kinds)
        name = factory.__name__
        known = self._factories.get(name)
        if known is not None and not _same_place(inspect.unwrap(known), factory):
            raise ValueError(
                f"A {self.kind} named {name!r} is registered already; choose another name."
            )
        self._factories[name] = self.record(factory, **kinds)
        return self._factories[name]

    def record(
        self,
        factory: Callable | None = None,
        *,
        static: Iterable[str] = (),
        shapes: Iterable[str] = (),
    ) -> Callable:
        """A factory whose calls check their arguments and leave a spec; it has no name for users.

        So are parts of one method, which compiled code must be able to build.

        Args:
            static: names of numeric arguments that stay Python numbers inside compiled code (a
                density that decides a count exactly) unless the caller traces them; other floats
                are traced.
            shapes: names of those that decide a shape: a caller cannot trace them.
        """
        if factory is None:
            return functools.partial(self.record, static=static, shapes=shapes)
        name, shapes = factory.__name__, frozenset(shapes)
        static = frozenset(static) | shapes
        signature = inspect.signature(factory)
        hints = typing.get_type_hints(factory, include_extras=True)

        @functools.wraps(factory)
        def build(*args, **kwargs):
            bound = _bound(name, signature, hints, args, kwargs, self.arguments.get(name))
            for k in static & set(bound.arguments):
                bound.arguments[k] = _plain(name, k, bound.arguments[k], k in shapes)
            spec = Spec(factory, {k: frozen(v, k in static) for k, v in bound.arguments.items()})
            bound.arguments.update({k: thawed(v) for k, v in bound.arguments.items()})
            return self.wrap(factory(*bound.args, **bound.kwargs), spec)

        return build

    def get(self, name: str, default: Any = MISSING) -> Any:
        """The registered factory of that name, or `default`, where one is given.

        Args:
            name: of the factory; an old name warns.
            default: what is returned where no factory has the name; without it that is an error.

        Raises:
            UnknownNameError: there is none (a KeyError and a ValueError); the closest are given.

        >>> import jaxmerge
        >>> REGISTRY.get("magmx")
        Traceback (most recent call last):
        jaxmerge.core.registry.UnknownNameError: No method is named 'magmx': did you mean magmax?
        """
        if isinstance(name, str) and name in self.old and name not in self:
            return self._renamed(name)
        if not isinstance(name, str) or name not in self:
            if default is not MISSING:
                return default
            raise UnknownNameError(f"No {self.kind} is named {name!r}: {closest(str(name), self)}")
        return self[name]

    def _renamed(self, name: str) -> Callable:
        """The factory that an old name stands for, with the old arguments; warns."""
        now = self.old[name]
        factory = self[now.name]
        parameters = inspect.signature(factory).parameters
        takes = [
            parameters[k].replace(default=now.given.get(k, parameters[k].default))
            for k in (parameters if now.takes is None else now.takes)
        ]
        signature = inspect.Signature(takes)
        given = "".join(f", {k}={v!r}" for k, v in now.given.items()).removeprefix(", ")
        warnings.warn(
            f"{name} is now {now.name}{given and f'({given})'}; the old name goes with the next "
            "release.",
            FutureWarning,
            stacklevel=3,
        )

        @functools.wraps(factory)
        def build(*args, **kwargs):
            bound = _bound(name, signature, {}, args, kwargs)
            return factory(**{**now.given, **bound.arguments})

        build.__name__, build.__dict__["__signature__"] = name, signature
        return build

    def from_settings(self, what: Any, settings: Mapping[str, Any] | None = None) -> Any:
        """What a factory makes of plain values.

        Args:
            what: a name, or a mapping with the name under the registry's kind
                (``{"method": "ewc", "strength": 3}``) or of the name to its settings
                (``{"ewc": {"strength": 3}}``), or a spec, returned as it is.

        Raises:
            ValueError: an unknown name, unknown settings, values out of range.
        """
        if isinstance(what, Spec):
            return what
        if isinstance(what, Mapping) and self.kind not in what and len(what) == 1:
            ((name, own),) = what.items()
            if own is not None and not isinstance(own, Mapping):
                self.get(name)  # an unknown name is said first
                raise ArgumentError(f"the settings of {name} are key: value pairs, got {own!r}.")
            what = {self.kind: name, **(own or {})}
        if isinstance(what, Mapping) and self.kind not in what:
            names = " and ".join(map(str, what)) or "none"
            raise ArgumentError(f"one {self.kind} is a name with its settings, got {names}.")
        if isinstance(what, Mapping):
            settings = {**what, **(settings or {})}
            what = settings.pop(self.kind, None)
        return self.get(what)(**(settings or {}))


def _bound(name, signature, hints, args, kwargs, gone=None) -> inspect.BoundArguments:
    """The arguments under their names, checked; ArgumentError says all that is wrong."""
    known, gone = list(signature.parameters), gone or {}
    unknown = [k for k in kwargs if k not in known]
    wrong = [f"{name} has no setting {k!r}: {gone[k]}" for k in unknown if k in gone]
    if others := [k for k in unknown if k not in gone]:
        wrong.append(not_known(others, known, f"{name} has no setting "))
    if wrong:
        raise ArgumentError(listed(wrong))
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(f"{name}(): {error} (it takes {known})") from None
    bound.apply_defaults()
    for k, v in bound.arguments.items():
        expected, bound.arguments[k] = checked(v, hints.get(k))
        if expected:
            wrong.append(f"{name}: {k} must be {expected}, got {v!r}")
    if wrong:
        raise ArgumentError(listed(wrong))
    return bound


def _plain(name: str, argument: str, value: Any, shape: bool) -> Any:
    """A static argument in Python numbers; raise TypeError where one that must be is traced."""
    if isinstance(value, Tracer):
        if shape:
            raise TypeError(
                f"{name}(): {argument} decides a shape, so it must be a number, and here it is "
                "traced by jit, vmap or grad. Build the method outside of the transformation, "
                f"once for every {argument}."
            )
        return value
    return value.tolist() if hasattr(value, "ndim") else value


REGISTRY = Registry(
    "method", noted, old_names.MERGES,
    homes=("jaxmerge.folds", "jaxmerge.transforms", "jaxmerge.methods"),
)  # fmt: skip
register, record, get = REGISTRY.register, REGISTRY.record, REGISTRY.get


def _same_place(known: Callable, new: Callable) -> bool:
    """Whether two factories of one name are of one module or one file, of which one is the newer
    form of the other."""
    if known.__module__ == new.__module__:
        return True
    files = [getattr(getattr(f, "__code__", None), "co_filename", "") for f in (known, new)]
    return os.path.isfile(files[0]) and os.path.realpath(files[0]) == os.path.realpath(files[1])
