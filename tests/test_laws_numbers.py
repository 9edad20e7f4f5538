"""For every method and every float: value and gradient are finite, or refused in our words.

The model has a frozen leaf (no task vector there), for which no direction and no angle exists.  A
number at the ends of its range is where roots, logarithms and divisions go wrong.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import jaxmerge as jm

AT = (0.0, 0.37, 1.0)
FEW = ("della", "dare", "ema", "iso_c", "low_rank", "magmax", "opcm", "sce", "slerp", "ties", "dop")
KERNELS = {
    "add_projected", "balance_projections", "isotropic", "least_interference", "low_rank",
    "share_ranks", "split_subspaces",
}  # fmt: skip


NUMBERS = {"float", "Number", "Numbers", "Numbers | None"}


def floats() -> list[tuple[str, str | None]]:
    """Every factory with each of its arguments that may be a float, or with None."""
    out: list[tuple[str, str | None]] = []
    for name, factory in sorted(jm.REGISTRY.items()):
        parameters = inspect.signature(factory).parameters.items()
        names = [k for k, p in parameters if str(p.annotation) in NUMBERS]
        out += [(name, k) for k in names or [None]]
    return out


def case(name: str) -> tuple[dict, list, list | None]:
    rng = np.random.default_rng(1)
    draw = lambda *s: rng.normal(size=s).astype(np.float32)
    base = {"fc/kernel": draw(6, 4), "frozen/kernel": draw(6, 4), "norm/scale": draw(4)}
    method = build(name, {})
    low, high = method.models
    count = max(low, min(3, high or 3))
    change = lambda n, x: x if n.startswith("frozen") else x + 0.1 * draw(*x.shape)
    models = [{n: change(n, x) for n, x in base.items()} for _ in range(count)]
    sides = laws.sides(method, laws.model(0), count) if method.needs else None
    if sides:
        fits = {"fisher": lambda x: np.abs(draw(*x.shape)), "mask": lambda x: draw(*x.shape) > 0}
        gram = lambda x: np.eye(len(x), dtype=np.float32) if x.ndim == 2 else None
        entries = {k: fits.get(k, gram) for k in method.needs}
        sides = [
            {
                k: {n: v for n, x in base.items() if (v := f(x)) is not None}
                for k, f in entries.items()
            }
            for _ in range(count)
        ]
    return base, models, sides


def build(name: str, given: dict) -> jm.Merge:
    example = laws.EXAMPLES.get(name, [{}])[0]
    if callable(example) and not given and name not in KERNELS:
        stage = example()
        return jm.chain(stage, jm.add()) if isinstance(stage, jm.Transform) else stage
    required = {"clip": {"limit": 0.05}, "tsv_c": {"tasks": 2}, "low_rank": {"share": 0.5}}
    arguments = {**(example if isinstance(example, dict) else required.get(name, {})), **given}
    stage = jm.get(name)(**arguments)
    if isinstance(stage, jm.Transform):
        stage = jm.chain(stage, jm.add())
    return laws._kernels(stage) if name in KERNELS else stage


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        pytest.param(n, k, marks=() if n in FEW and k != "weights" else pytest.mark.slow)
        for n, k in floats()
        if jm.REGISTRY[n].__module__.startswith("jaxmerge.")  # tests register more
    ],
)
def test_value_and_gradient_are_finite_or_refused(name, argument):
    base, models, sides = case(name)

    def loss(value, models):
        method = build(name, arguments(name, argument, value))
        out = jm.merge(method, base, models, key=jax.random.key(0), extras=sides)
        return sum(jnp.vdot(x, x) for x in out.values())

    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    for at in AT:
        if refusal(lambda at=at: build(name, arguments(name, argument, at))):
            continue  # a number outside of its range is refused where it is known
        message = refusal(lambda at=at: run(jnp.float32(at), models))
        if message:
            assert f"{argument} decides a shape" in message
            value, grads = jax.value_and_grad(functools.partial(loss, at))(models)
        else:
            value, grads = run(jnp.float32(at), models)
        bad = [k for k, g in jax.tree.leaves_with_path(grads) if not np.isfinite(g).all()]
        assert np.isfinite(value), at
        assert not bad, (at, bad)


def arguments(name: str, argument: str | None, value: Any) -> dict:
    """The argument with that value, as often as its default has values."""
    if argument is None:
        return {}
    default = inspect.signature(jm.get(name)).parameters[argument].default
    return {argument: (value,) * len(default) if isinstance(default, tuple) else value}


def refusal(call) -> str:
    """What was said when the call was refused; "" where it was not."""
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return ""
