"""Search for merging coefficients with any objective: grid, random, CMA-ES.

`build(coefficients) -> params` is a merge with traced coefficients (any method will do), `score`
is what to maximise, for example accuracy on a validation split; it need not be differentiable.
Candidates are evaluated `at_once` in one call: together by `vmap`, on a CPU one after another,
which takes less time there.

    build = lambda c: jm.merge(jm.linear(c), base, models)
    best = grid(build, score, [[0.1, 0.3, 0.5]] * len(models))
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr

from jaxmerge.core.types import Array, Leaves

Build = Callable[[Array], Leaves]  # coefficients [d] -> params
Score = Callable[[Leaves], Array]  # params -> scalar, larger is better


class SearchResult(NamedTuple):
    """The outcome of a search.

    Attributes:
        coefficients: [d], the best candidate (the first of equals).
        score: its score.
        candidates: [N, d], all that were tried, in order.
        scores: [N].
    """

    coefficients: np.ndarray
    score: float
    candidates: np.ndarray
    scores: np.ndarray


def grid(
    build: Build, score: Score, values: Sequence[Sequence[float]], *, at_once: int = 8
) -> SearchResult:
    """Try every combination of the values of each coefficient.

    Args:
        build: ``coefficients [d] -> params``, a merge.
        score: ``params -> scalar``, larger is better; it need not be differentiable.
        values: for each coefficient those to be tried; their product is.
        at_once: candidates that are evaluated in one call, 1 or more.

    Example:
        >>> best = grid(lambda c: {"w": c}, lambda p: -((p["w"] - 0.4) ** 2).sum(), [[0, 0.5, 1]])
        >>> best.coefficients.tolist(), len(best.scores)
        ([0.5], 3)
    """
    return _best(_scorer(build, score, at_once), list(itertools.product(*values)))


def random(
    build: Build,
    score: Score,
    low: float | Sequence[float] | Array,
    high: float | Sequence[float] | Array,
    *,
    tries: int,
    key: jax.Array,
    at_once: int = 8,
) -> SearchResult:
    """Try coefficients drawn uniformly from a box, [low, high) in each dimension.

    Args:
        build: ``coefficients [d] -> params``, a merge.
        score: ``params -> scalar``, larger is better; it need not be differentiable.
        low, high: [d], or one number for d = 1; low < high.
        tries: how many candidates, 1 or more.
        key: PRNG key.
        at_once: candidates that are evaluated in one call, 1 or more.

    Example:
        >>> score = lambda p: -((p["w"] - 0.4) ** 2).sum()
        >>> best = random(lambda c: {"w": c}, score, [0.0], [1.0], tries=9, key=jax.random.key(0))
        >>> best.candidates.shape, bool(abs(best.coefficients[0] - 0.4) < 0.5)
        ((9, 1), True)
    """
    low, high = jnp.atleast_1d(jnp.asarray(low, float)), jnp.atleast_1d(jnp.asarray(high, float))
    if low.shape != high.shape or not (low < high).all():
        raise ValueError(f"The box needs low < high in each dimension, got {low} and {high}.")
    candidates = jax.random.uniform(key, (tries, low.size), minval=low, maxval=high)
    return _best(_scorer(build, score, at_once), np.asarray(candidates))


def cma_es(
    build: Build,
    score: Score,
    start: Sequence[float],
    *,
    generations: int = 20,
    population: int = 8,
    sigma: float = 0.1,
    key: jax.Array,
    at_once: int = 8,
) -> SearchResult:
    """Covariance matrix adaptation from `start`, with evosax (``pip install "jaxmerge[search]"``).

    Args:
        sigma: the first step's standard deviation.
        population: candidates a generation.
        build: ``coefficients [d] -> params``, a merge.
        score: ``params -> scalar``, larger is better; it need not be differentiable.
        start: [d], the first mean.
        generations: how many, 1 or more.
        key: PRNG key.
        at_once: candidates that are evaluated in one call, 1 or more.

    Example:
        >>> score = lambda p: -((p["w"] - 0.4) ** 2).sum()
        >>> best = cma_es(
        ...     lambda c: {"w": c}, score, [0.0, 0.0], generations=2, key=jax.random.key(0)
        ... )  # doctest: +SKIP
    """
    try:
        from evosax.algorithms import CMA_ES
    except ImportError:
        raise ImportError('CMA-ES needs evosax: pip install "jaxmerge[search]".') from None
    if generations < 1 or population < 2:
        raise ValueError(
            "CMA-ES needs at least 1 generation and a population of 2, got "
            f"{generations} and {population}."
        )
    mean = jnp.asarray(start, jnp.float32)
    strategy = CMA_ES(population_size=population, solution=mean)
    params = strategy.default_params.replace(std_init=sigma)
    state = strategy.init(key, mean, params)
    run, tried, scores = _scorer(build, score, at_once), [], []
    for i in range(generations):
        ask, tell = jax.random.split(jax.random.fold_in(key, i))
        candidates, state = strategy.ask(ask, state, params)
        values = run(candidates)
        state, _ = strategy.tell(tell, candidates, -jnp.asarray(values), state, params)
        tried.append(np.asarray(candidates))
        scores.append(values)
    return _pick(np.concatenate(tried), np.concatenate(scores))


def _scorer(build: Build, score: Score, at_once: int) -> Callable[[Any], np.ndarray]:
    """Scores of any number of candidates, `at_once` of them in one call of one program.

    The models that `build` and `score` hold are handed to the program: left inside it, they would
    be constants, which XLA copies and computes with while it compiles.
    """
    if at_once < 1:
        raise ValueError(f"at_once must be at least 1, got {at_once}.")

    here = jax.default_backend() == "cpu"

    @functools.cache
    def program(count):
        like = jax.ShapeDtypeStruct((at_once, count), jnp.float32)
        one = lambda c: score(build(c))
        every = functools.partial(jax.lax.map, one) if here else jax.vmap(one)
        closed = jax.make_jaxpr(every)(like)
        return jax.jit(functools.partial(eval_jaxpr, closed.jaxpr)), closed.consts

    def run(candidates):
        candidates = np.asarray(candidates, np.float32)
        if not len(candidates):
            raise ValueError("The search has no candidate to try.")
        together, constants = program(candidates.shape[1])
        parts = []
        for i in range(0, len(candidates), at_once):
            part = candidates[i : i + at_once]
            padded = np.concatenate([part, np.repeat(part[:1], at_once - len(part), 0)])
            parts.append(np.asarray(together(constants, padded)[0])[: len(part)])
        return np.concatenate(parts)

    return run


def _best(run: Callable, candidates: Any) -> SearchResult:
    return _pick(np.asarray(candidates, np.float32), run(candidates))


def _pick(candidates: np.ndarray, scores: np.ndarray) -> SearchResult:
    if not np.isfinite(scores).any():
        raise ValueError("No candidate has a finite score; check the objective.")
    best = int(np.nanargmax(scores))
    return SearchResult(candidates[best], float(scores[best]), candidates, scores)
