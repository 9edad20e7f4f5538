"""The laws every registered method obeys, and example arguments for those that need some.

`cases()` makes one case or more of every factory in the registry; `test_laws.py` runs every law on
every case.  A method added later is checked by being registered.  **To add a method**: if it cannot
be called with its defaults, give it arguments in `EXAMPLES`; if one model merged alone comes back,
name it in `FIXED_POINT`; if the order of models matters, in `ORDERED`, with why.  Both claim of the
whole registry: what is not named is tested to behave otherwise.

The toy model has what real ones have: two kernels of one shape, a convolution, a vector, a scalar
and an integer leaf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmerge as jm
from jaxmerge.core.composition import stochastic
from jaxmerge.core.validation import grid_of

SHAPES = {
    "block_0/query/kernel": (6, 4),
    "block_1/query/kernel": (6, 4),
    "patch/kernel": (2, 2, 3, 4),
    "norm/scale": (4,),
    "logit_scale": (),
}
EMPTY = {"empty/kernel": np.zeros((0, 4), np.float32)}  # real files have such leaves too

# Arguments of factories that have no defaults, or of which more than the defaults is worth a case.
EXAMPLES: dict[str, list[dict[str, Any] | Callable[[], Any]]] = {
    "add_projected": [
        lambda: jm.partition({"matrix": jm.add_projected(), "rest": jm.add()}, jm.by_ndim)
    ],
    "arc": [{"t": 0.3}],
    "balance_projections": [lambda: _kernels(jm.balance_projections())],
    "by_leaf": [lambda: jm.by_leaf(_deep_half)],
    "chain": [lambda: jm.chain(jm.scale(0.5), jm.max_magnitude(), jm.scale(1.5))],
    "clip": [{"limit": 0.05}],
    "drop_by_rank": [{"density": 0.5}],
    "drop_outliers": [{"density": 0.5, "gamma": 0.1}],
    "drop_random": [{"density": 0.5}],
    "isotropic": [lambda: _kernels(jm.chain(jm.add(), jm.isotropic()))],
    "keep_mean_norm": [lambda: jm.keep_mean_norm(jm.add())],
    "least_interference": [lambda: _kernels(jm.least_interference())],
    "linear": [{"weights": (0.2, 0.3, 0.5)}, {"weights": (1.0, 2.0, 1.0), "normalize": True}],
    "low_rank": [lambda: _kernels(jm.chain(jm.add(), jm.low_rank(0.5)))],
    "model_stock": [{}, {"per": "model"}, {"average": "angle", "per": "column"}],
    "nearswap": [{"t": 0.01}],
    "partition": [
        lambda: jm.partition({"matrix": jm.ties(0.4), "rest": jm.mean()}, jm.by_ndim),
        lambda: jm.partition(
            {"attention": jm.max_magnitude(), "frozen": jm.keep_base()},
            [("query", "attention"), (".*", "frozen")],
        ),
    ],
    "scale": [{"factor": 0.3}],
    "sce": [{}, {"density": 0.5}],
    "share_ranks": [lambda: _kernels(jm.share_ranks())],
    "split_subspaces": [lambda: _kernels(jm.split_subspaces())],
    "ties": [{}, {"density": 0.4, "scope": "leaf"}, {"merge": "sum"}, {"merge": "max"}],
    "trim": [{"density": 0.4}, {"density": 0.4, "scope": "leaf"}],
    "tsv_c": [{"tasks": 2}],
}

# One model merged alone comes back; of all other cases it does not (one that takes two or more
# models, or has numbers for several, or draws at random, is not asked).
FIXED_POINT = {
    # a sum, a mean or a weighted mean of one
    *("add", "average", "fisher_merging", "mean", "regmean"),
    # a mean direction with the mean length, both its own
    *("karcher", "multislerp"),
    # every entry is its own largest, of the elected sign, kept by its mask, moved by it alone
    *("disjoint_mean", "emr", "emr_task", "max_magnitude", "overlap_mean", "ram", "ram_plus"),
    *("sce", "tall_task"),
    # nothing came before that it were projected off or averaged with
    *("add_projected", "balance_projections", "dop", "ema", "keep_mean_norm", "opcm"),
    *("three_way_ema",),
    # all ranks are its own, no other task interferes
    *("least_interference", "share_ranks", "tsv_m", "wudi"),
}

# The order of the models matters, and why; in all other cases it does not (but for rounding),
# random draws apart.
ORDERED = {
    "add_projected": "each new kernel is projected off the sum so far",
    "analogy": "A, B and C have roles",
    "arc": "t runs from the first model to the second",
    "balance_projections": "each new kernel meets the merged one",
    "continual_ties": "a merged vector meets each new one",
    "dop": "each new kernel meets the merged one",
    "ema": "later models weigh more",
    "emr_task": "the task is given by its position",
    "linear": "weights are given by position",
    "opcm": "each new kernel is projected off the sum so far",
    "tall_task": "the task is given by its position",
    "three_way_ema": "later models weigh more",
}

# What becomes of a leaf depends on the names of the others, and why.
NEIGHBOURS = {"lines": "the depth of a layer is counted among all layers"}

# Side information by its name: what a model could give about one of its leaves.
SIDES: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray | None]] = {
    "fisher": lambda rng, x: rng.random(x.shape, np.float32) + 0.1,
    "gram": lambda rng, x: _gram(rng, x.shape[0]) if x.ndim == 2 else None,
    "mask": lambda rng, x: (rng.random(x.shape) < 0.5).astype(np.float32),
}


def _deep_half(name: str, like: Any) -> jm.Merge:
    return jm.task_arithmetic(0.8) if "block_1" in name else jm.task_arithmetic(0.2)


def _kernels(merge: jm.Merge) -> jm.Merge:
    return jm.partition({"matrix": merge, "rest": jm.add()}, jm.by_ndim)


def _gram(rng: np.random.Generator, n: int) -> np.ndarray:
    inputs = rng.standard_normal((3 * n, n), np.float32)
    return inputs.T @ inputs


def model(seed: int, base: dict | None = None, size: float = 0.1, dtype: Any = np.float32) -> dict:
    """A toy model: random weights, or `base` plus a random task vector."""
    rng = np.random.default_rng(seed)
    draw = {n: np.asarray(rng.standard_normal(s), np.float32) for n, s in SHAPES.items()}
    if base is not None:
        draw = {n: base[n] + np.float32(size) * x for n, x in draw.items()}
    out = {n: np.asarray(x, dtype) for n, x in draw.items()}
    return out | {"position_ids": np.arange(3, dtype=np.int32) + (0 if base is None else 7)}


class Case(NamedTuple):
    """One method, a base, and as many models as it takes (three where it may)."""

    name: str
    method: jm.Merge
    base: dict
    models: list
    extras: list | None
    key: Any

    def merge(self, base=None, models=None, **options) -> dict:
        """`jm.merge` with what this case has, or with something else of the kind."""
        given = {"key": self.key, "extras": self.extras} | options
        return jm.merge(self.method, base or self.base, models or self.models, **given)

    def few(self) -> Case:
        """The same with two kernels of one shape and a vector: what is derived compiles less."""
        names = ("block_0/query/kernel", "block_1/query/kernel", "norm/scale")
        pick = lambda tree: {n: tree[n] for n in names if n in tree}
        sides = self.extras and [{k: pick(tree) for k, tree in one.items()} for one in self.extras]
        return self._replace(
            base=pick(self.base), models=[pick(m) for m in self.models], extras=sides
        )

    def side(self, t: int) -> dict:
        return self.extras[t] if self.extras else {}

    @property
    def factory(self) -> str:
        return self.name.split("(")[0].split("-")[0]

    @property
    def stochastic(self) -> bool:
        return stochastic(self.method)

    @property
    def grid(self) -> dict:
        return grid_of(self.method, self.base)

    @property
    def local(self) -> bool:
        """Whether every leaf is merged without a look at the others."""
        measures = [m for p in self.grid.values() for m in p.measures]
        alone = all(m is None or m.scope == "leaf" for m in measures)
        return alone and self.factory not in NEIGHBOURS


def stages() -> list[tuple[str, Callable[[], Any]]]:
    """An identifier and a builder for every example of every registered factory."""
    out = []
    for name, factory in sorted(jm.REGISTRY.items()):
        for i, example in enumerate(EXAMPLES.get(name, [{}])):
            build = example if callable(example) else functools.partial(factory, **example)
            out.append((name if i == 0 else f"{name}-{i}", build))
    return out


@functools.cache
def case_of(name: str) -> Case:
    """The case of that identifier; a `Transform` acts on every task vector before a mean."""
    try:
        stage = dict(stages())[name]()
    except TypeError as error:
        raise AssertionError(
            f"{name} cannot be called with its defaults; give it an entry in tests/laws.py, "
            f"EXAMPLES: {error}"
        ) from None
    method = jm.chain(stage, jm.mean()) if isinstance(stage, jm.Transform) else stage
    low, high = method.models
    count = max(low, min(3, high or 3))
    base = model(0)
    models = [model(1 + t, base) for t in range(count)]
    return Case(name, method, base, models, sides(method, base, count), jax.random.key(7))


def sides(method: jm.Merge, base: dict, count: int) -> list | None:
    """Side information about `count` models, as the method asks for it."""
    asked = method.needs
    unknown = [k for k in asked if k not in SIDES]
    assert not unknown, f"{method} reads {unknown}; say in tests/laws.py, SIDES, how to make it"
    if not asked:
        return None
    rng = np.random.default_rng(99)
    trees = [{k: {n: SIDES[k](rng, base[n]) for n in SHAPES} for k in asked} for _ in range(count)]
    return [
        {k: {n: x for n, x in tree.items() if x is not None} for k, tree in one.items()}
        for one in trees
    ]


def stream(case: Case, models: list | None = None) -> tuple[Any, dict]:
    """The same merge as a stream: the last state, and the merged model."""
    state = jm.init(case.method, case.base, key=case.key)
    for t, row in enumerate(models or case.models):
        state = jm.update(case.method, state, case.base, row, **case.side(t))
    return state, jm.merged(case.method, state, case.base)


def same(a: dict, b: dict) -> None:
    """Equal bit for bit, and the leaf named where not."""
    assert list(a) == list(b)
    for n in a:
        np.testing.assert_array_equal(np.asarray(a[n]), np.asarray(b[n]), err_msg=n)


def close(a: dict, b: dict, atol: float = 1e-6) -> None:
    """Equal but for rounding."""
    assert set(a) == set(b)
    for n in a:
        x, y = np.asarray(a[n], np.float64), np.asarray(b[n], np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=n)


def on_device(tree: Any) -> Any:
    """numpy leaves as jax arrays, the order of names kept."""
    if isinstance(tree, dict):
        return {k: on_device(v) for k, v in tree.items()}
    return [on_device(v) for v in tree] if isinstance(tree, list) else jnp.asarray(tree)
