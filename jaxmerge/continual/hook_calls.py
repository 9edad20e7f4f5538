"""How functions of methods and problems are called: what goes wrong names the method and the hook.

A hook runs inside compiled code, many calls away from the line that chose its method.  So every
call goes through `named`, and what a hook gives is looked at before anybody unpacks it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

UNKNOWN = (  # asked for numbers while there are none
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@contextlib.contextmanager
def named(who: str, *, border: bool = False) -> Iterator[None]:
    """What is raised inside says whose function it was.

    Args:
        who: such as "ewc: `end`".
        border: it is a hook at the border of a task, which may run on the host.

    Raises:
        ValueError: the function wants the numbers of arrays that are being compiled.

    >>> with named("mine: `loss`"):
    ...     jax.eval_shape(lambda x: float(x), 1.0)
    Traceback (most recent call last):
    ValueError: mine: `loss` reads the numbers of an array, which are not there while it is \
compiled: write it with jax.numpy.
    """
    try:
        yield
    except UNKNOWN as error:
        host = ", or say `Method(host=True)` and use `run`" if border else ""
        raise ValueError(
            f"{who} reads the numbers of an array, which are not there while it is compiled: "
            f"write it with jax.numpy{host}."
        ) from error
    except Exception as error:
        note = f"in {who}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def pair(given: Any, who: str, first: str) -> tuple[Any, Any]:
    """``(first, memory)`` as a hook gives it.

    Raises:
        ValueError: it gives something else; a mapping with two names would unpack in silence.

    >>> pair({"w": 0.0}, "mine: `end`", "params")
    Traceback (most recent call last):
    ValueError: mine: `end` gives (params, memory); found a dict.
    """
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(f"{who} gives ({first}, memory); found {kind(given)}.")
    return given[0], given[1]


def shaped(given: Any, shape: tuple[int, ...], who: str, what: str) -> Any:
    """What a function gives, if it is one array of this shape.

    Raises:
        ValueError: it is not; `what` says what was expected.

    >>> shaped(jnp.zeros(3), (), "mine: `loss`", "a scalar")
    Traceback (most recent call last):
    ValueError: mine: `loss` gives a scalar; found float32[3].
    """
    if not hasattr(given, "shape") and not isinstance(given, int | float):
        raise ValueError(f"{who} gives {what}; found {kind(given)}.")
    if jnp.shape(given) != tuple(shape):
        found = f"{jnp.result_type(given)}{list(jnp.shape(given))}"
        raise ValueError(f"{who} gives {what}; found {found}.")
    return given


def kind(given: Any) -> str:
    """What something is, in a few words.

    >>> kind(None), kind((1, 2, 3)), kind({}), kind(jnp.zeros(2))
    ('nothing', 'a tuple of 3', 'a dict', 'float32[2]')
    """
    if given is None:
        return "nothing"
    if hasattr(given, "dtype") and hasattr(given, "shape"):
        return f"{given.dtype}{list(given.shape)}"
    if type(given) is tuple:
        return f"a tuple of {len(given)}"
    if isinstance(given, str):
        return repr(given[:60])
    name = type(given).__name__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
