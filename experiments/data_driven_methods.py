"""The methods of `data_driven.py`: each a function of a `Suite` that gives a merged model.

An entry says what of the data it sees beside the weights: "inputs" and "labels" are of the adapt
split, "tune" means that a factor or threshold was chosen by accuracy on the tune split, "test
inputs" is test-time adaptation as AdaMerging was published: the very inputs that are scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from data_driven_suite import Suite

import jaxmerge as jm
from jaxmerge import solvers, statistics

FACTORS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)


class Outcome(NamedTuple):
    """A merged model.

    Attributes:
        params: its weights.
        note: what was chosen, how a loss fell.
        adapters: one for each task, of representation surgery; or None.
    """

    params: Any
    note: str = ""
    adapters: Any = None


class Method(NamedTuple):
    """What a method sees of the data, and how to run it."""

    sees: str
    run: Callable[[Suite], Outcome]


def tuned(s: Suite, name: str, *, extras=None, tasks=None, models=None, **settings) -> Outcome:
    """The merge with the settings and the factor that score best on the tuning examples.

    A merge is linear in its factor, so each setting is merged once and its task vector scaled.

    Args:
        settings: name -> values to try, all combinations.
    """
    models = s.models if models is None else models
    score, best = s.score(tasks), None
    for values in itertools.product(*settings.values()):
        chosen = dict(zip(settings, values, strict=True))
        one = jm.merge(jm.get(name)(**chosen, factor=1.0), s.base, models, extras=extras)
        build = lambda c, one=one: jm.merge(jm.linear(c), s.base, [one])
        result = solvers.grid(build, score, [FACTORS], at_once=1)
        if best is None or result.score > best[0]:
            best = (result.score, {**chosen, "factor": float(result.coefficients[0])}, build)
    _, chosen, build = best
    return Outcome(build(jnp.float32([chosen["factor"]])), _words(chosen))


def _words(chosen) -> str:
    return ", ".join(f"{n} {np.round(v, 2):g}" for n, v in chosen.items() if np.ndim(v) == 0)


def consensus(s: Suite) -> Outcome:
    """TALL thresholds chosen one for each task, as the paper does, then the factor."""
    thresholds, tall = (0.2, 0.3, 0.4, 0.5, 0.6), []
    for t in range(len(s.models)):
        score = jax.jit(s.score([t]))  # the merge outside: compiled leaf by leaf, once for all
        of = lambda x, t=t: jm.merge(jm.tall_task(t, tall=x), s.base, s.models)
        tall.append(max(thresholds, key=lambda x, of=of, score=score: float(score(of(x)))))
    outcome = tuned(s, "consensus", tall=[jnp.float32(tall)])
    shown = " ".join(f"{x:.1f}" for x in tall)
    return outcome._replace(note=f"thresholds {shown}; {outcome.note}")


def search(s: Suite, kind: str) -> Outcome:
    """A coefficient for each task vector, by accuracy on the tuning examples."""
    build, score, count = (
        lambda c: jm.merge(jm.linear(c), s.base, s.models),
        s.score(),
        len(s.models),
    )
    tries, key = (60 if count < 8 else 30), jax.random.key(s.config.seed)
    if kind == "random":
        low, high = [0.0] * count, [1.0] * count
        result = solvers.random(build, score, low, high, tries=tries, key=key, at_once=1)
    else:
        result = solvers.cma_es(
            build, score, [0.3] * count, generations=tries // 10, population=10, sigma=0.15,
            key=key, at_once=1,
        )  # fmt: skip
    shown = " ".join(f"{x:.2f}" for x in result.coefficients)
    return Outcome(build(jnp.asarray(result.coefficients)), f"{len(result.scores)} tries: {shown}")


def solve(s: Suite, solver, batches) -> Outcome:
    """Run a solver to the end."""
    params, history = solvers.solve(solver, batches)
    return Outcome(params, f"loss {history[0]['loss']:.3f} to {history[-1]['loss']:.3f}")


def fisher(s: Suite, kind: str, unit: bool) -> Outcome:
    """Fisher merging, with or without the model-level normalisation."""
    extras = []
    for t, model in enumerate(s.models):
        inputs, labels = s.examples("adapt", [t], 0, min(48, s.config.adapt))
        key = jax.random.key(t)
        one = statistics.fisher(s.apply, model, [(inputs, labels)], kind=kind, key=key)
        extras.append(statistics.extras(statistics.normalised(one) if unit else one))
    return Outcome(jm.merge(jm.fisher_merging(), s.base, s.models, extras=extras), f"{kind} Fisher")


def inputs_of(s: Suite):
    """For each task, its inputs in one batch."""
    return [[s.examples("adapt", [t])[0][0]] for t in range(len(s.models))]


def regmean(s: Suite, off_diagonal: float = 0.9) -> Outcome:
    """RegMean with the paper's off-diagonal scaling."""
    grams = [
        statistics.extras(statistics.gram(s.learner.features, model, data, keep=s.keep))
        for model, data in zip(s.models, inputs_of(s), strict=True)
    ]
    return Outcome(jm.merge(jm.regmean(off_diagonal), s.base, s.models, extras=grams))


def regmean_plus(s: Suite, off_diagonal: float = 0.9) -> Outcome:
    """RegMean++."""
    return Outcome(
        solvers.regmean_plus(
            s.learner.features,
            s.base,
            s.models,
            inputs_of(s),
            off_diagonal=off_diagonal,
            keep=s.keep,
        )
    )


def adamerging(s: Suite, purpose: str = "adapt", labels: bool = False, **how) -> Outcome:
    """AdaMerging: start 0.3, Adam on the entropy of batches of unlabelled inputs.

    Published: 500 steps at 1e-3; with fewer steps the rate rises in proportion.  With `labels` the
    objective is the cross-entropy: not AdaMerging, but what the same coefficients can do.
    """
    every = range(len(s.models))
    steps = s.config.adamerging
    solver = solvers.adamerging(
        (solvers.cross_entropy if labels else solvers.entropy)(s.apply), s.base, s.models,
        optimizer=optax.adam(1e-3 * max(1, 500 / steps)), **how,
    )  # fmt: skip
    pairs = s.batches(purpose, every, steps, s.config.batch)
    batches = pairs if labels else (x for x, _ in pairs)
    params, history = solvers.solve(solver, batches)
    last = np.array(list(history[-1]["coefficients"].values()))
    return Outcome(
        params,
        f"loss {history[0]['loss']:.3f} to {history[-1]['loss']:.3f}, coefficients "
        f"{last.min():.2f} to {last.max():.2f}",
    )


def learned_masks(s: Suite, density: float = 0.1) -> Outcome:
    """Localize-and-Stitch with learned masks."""
    loss, masks, moved = solvers.cross_entropy(s.apply), [], []
    for t, model in enumerate(s.models):
        solver = solvers.localize(
            loss, s.base, model, density=density, penalty=0.1, optimizer=optax.adam(0.2)
        )
        state = solver.init()
        start = solvers.mask(state, density)
        for batch in s.batches("adapt", [t], s.config.localize, s.config.adapt // 4):
            state, _ = solver.step(state, batch)
        masks.append({"mask": solvers.mask(state, density)})
        unchanged = sum(int((start[n] & m).sum()) for n, m in masks[-1]["mask"].items())
        moved.append(1 - unchanged / sum(int(m.sum()) for m in start.values()))
    outcome = tuned(s, "stitch", extras=masks)
    return outcome._replace(note=f"{100 * np.mean(moved):.0f} % of a mask is new; {outcome.note}")


def arithmetic(s: Suite, factor: float = 0.3, models=None):
    """Task arithmetic, where FW-Merging's release starts."""
    return jm.merge(jm.task_arithmetic(factor), s.base, s.models if models is None else models)


def frank_wolfe(
    s: Suite, *, soft: bool = False, tasks=None, models=None, proxy=None, **how
) -> Outcome:
    """FW-Merging on labelled examples of `tasks`, from a pool of `models`."""
    tasks = range(len(s.models)) if tasks is None else tasks
    pool = s.models if models is None else models
    make = solvers.soft_frank_wolfe if soft else solvers.frank_wolfe
    if soft:
        how = {"vertices": min(3, len(pool)), "inner_steps": s.config.inner, **how}
    solver = make(solvers.cross_entropy(s.apply), pool, **how)
    steps, proxy = s.config.frank_wolfe, proxy or s.config.proxy
    return solve(s, solver, s.batches("adapt", tasks, steps, proxy))


def surgery(s: Suite, start: Callable[[Suite], Outcome]) -> Outcome:
    """Representation surgery behind another merge: an adapter for each task."""
    outcome = start(s)
    features = jax.jit(s.learner.features)
    adapters, before, after = [], [], []
    for t, model in enumerate(s.models):
        merged, single = (lambda x, p=p: features(p, x) for p in (outcome.params, model))
        width = s.learner.head.shape[0]
        solver = solvers.surgery(merged, single, width, key=jax.random.key(t))
        data = [x for (x, _), _ in s.batches("adapt", [t], s.config.adapt // 16, 16)]
        rounds = itertools.islice(itertools.cycle(data), s.config.surgery)
        adapter, _ = solvers.solve(solver, rounds)
        mended = lambda x, m=merged, a=adapter: solvers.operate(a, m(x))
        adapters.append(adapter)
        before.append(solvers.bias(merged, single, data))
        after.append(solvers.bias(mended, single, data))
    note = f"bias {np.mean(before):.3f} to {np.mean(after):.3f}; {outcome.note}"
    return Outcome(outcome.params, note, adapters)


DEAR = (  # on text these cost more than they show
    "task arithmetic, random search",
    "AdaMerging++, layer-wise",
    "AdaMerging, layer-wise, test-time",
    "layer-wise coefficients, labels",
    "FW-Merging, hard, TIES",
    "FW-Merging, soft, layer-wise",
)


def methods(text: bool) -> dict[str, Method]:
    """All methods of a suite, in the order of the table."""
    return {n: m for n, m in every_method(text).items() if not (text and n in DEAR)}


def every_method(text: bool) -> dict[str, Method]:
    """Methods by name."""
    fw = "labels"
    kind = "sampled" if text else "true"
    return {
        "average": Method("nothing", lambda s: Outcome(jm.merge(jm.mean(), s.base, s.models))),
        "task arithmetic": Method("tune", lambda s: tuned(s, "task_arithmetic")),
        "task arithmetic, random search": Method("tune", lambda s: search(s, "random")),
        "task arithmetic, CMA-ES": Method("tune", lambda s: search(s, "cma_es")),
        "MagMax": Method("tune", lambda s: tuned(s, "magmax")),
        "TIES": Method("tune", lambda s: tuned(s, "ties", density=(0.1, 0.2, 0.4))),
        "Consensus": Method("tune", consensus),
        "Localize-and-Stitch, dataless": Method(
            "tune", lambda s: tuned(s, "localize_and_stitch", density=(0.05, 0.1, 0.2))
        ),
        "Localize-and-Stitch, learned": Method("labels, tune", learned_masks),
        "Fisher": Method("inputs", lambda s: fisher(s, kind, False)),
        "Fisher, normalised": Method("inputs", lambda s: fisher(s, kind, True)),
        "RegMean": Method("inputs", regmean),
        "RegMean++": Method("inputs", regmean_plus),
        "AdaMerging, task-wise": Method("inputs", lambda s: adamerging(s, granularity="task")),
        "AdaMerging, layer-wise": Method("inputs", lambda s: adamerging(s)),
        "AdaMerging++, layer-wise": Method("inputs", lambda s: adamerging(s, disentangle=0.2)),
        "AdaMerging, layer-wise, test-time": Method(
            "test inputs", lambda s: adamerging(s, purpose="test")
        ),
        "layer-wise coefficients, labels": Method("labels", lambda s: adamerging(s, labels=True)),
        "FW-Merging, hard": Method(fw, lambda s: frank_wolfe(s)),
        "FW-Merging, hard, as released": Method(
            fw,
            lambda s: frank_wolfe(
                s, start=arithmetic(s), oracle="cosine", step_size=0.1, factor=0.3
            ),
        ),
        "FW-Merging, hard, TIES": Method(
            fw, lambda s: frank_wolfe(s, start=arithmetic(s), density=0.2, step_size=0.5)
        ),
        "FW-Merging, soft": Method(fw, lambda s: frank_wolfe(s, soft=True)),
        "FW-Merging, soft, layer-wise": Method(
            fw, lambda s: frank_wolfe(s, soft=True, granularity="layer")
        ),
        "task arithmetic + surgery": Method(
            "inputs, tune", lambda s: surgery(s, lambda s: tuned(s, "task_arithmetic"))
        ),
    }
