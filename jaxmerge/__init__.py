"""jaxmerge: model merging and continual learning by merging, in JAX.

>>> import numpy as np
>>> import jaxmerge as jm
>>> base = {"w": np.zeros(2, np.float32)}
>>> models = [{"w": np.float32([1, -2])}, {"w": np.float32([-3, 1])}]
>>> jm.merge(jm.magmax(factor=0.5), base, models)["w"]
array([-1.5, -1. ], dtype=float32)

All public names are listed by noun in `jaxmerge.api`; they are loaded at first use, so that
``jaxmerge --help`` need not wait for jax.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmerge.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "__all__":  # from jaxmerge import *
        return import_module("jaxmerge.api").__all__
    if name.startswith("_"):
        raise AttributeError(f"module 'jaxmerge' has no attribute {name!r}")
    if find_spec(f"{__name__}.{name}"):  # a module of the package: loading it must not need all
        return import_module(f"{__name__}.{name}")
    api = import_module("jaxmerge.api")
    try:
        value = getattr(api, name)
    except AttributeError:
        from jaxmerge.errors import closest

        hint = closest(name, api.__all__)
        raise AttributeError(f"module 'jaxmerge' has no attribute {name!r}: {hint}") from None
    if name in vars(api):  # an old name warns at every use
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    api = import_module("jaxmerge.api")

    return sorted({*globals(), *api.__all__})
