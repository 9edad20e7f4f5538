"""Matrix products of full precision on every accelerator.

By default XLA multiplies float32 matrices in TF32 on NVIDIA GPUs (11 bits) and in one pass of
bfloat16 on TPUs (8 bits).  A network bears that.  A projection or a Gram matrix does not:
what should be orthogonal is so to 1e-3 only.  What a method computes therefore runs at
"highest", about 1e-7, whatever `jax_default_matmul_precision` says; what a model computes follows
that setting and the model's own dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def full_precision(f: Callable[P, T]) -> Callable[P, T]:
    """The function with every matrix product that is traced inside it at full precision.

    >>> import jax.numpy as jnp
    >>> square = full_precision(lambda x: x @ x)
    >>> "HIGHEST" in str(jax.make_jaxpr(square)(jnp.eye(2)))
    True
    """

    @functools.wraps(f)
    def precise(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision("highest"):
            return f(*args, **kwargs)

    return precise
