"""Made-up results of a run to test reports with: the figures mean nothing, the shapes are right."""

from __future__ import annotations

import numpy as np

from jaxmerge.studies.results import Entry, Results, SeedRun, Sweep, Task, Vectors, summarize

FULL = ("last model", "MagMax")
MERGES = ("MagMax", "average", "RandMix", "TIES", "task arithmetic")


def results(seeds: int = 3, tasks: int = 5, seed: int = 0, label: str = "MagMax") -> Results:
    """Results with every method of the quickstart; `label` replaces the name MagMax."""
    rng = np.random.default_rng(seed)
    runs = [_run(rng, s, tasks, label) for s in range(seeds)]
    return Results(
        experiment="quickstart",
        scenario=f"class-incremental, {tasks} tasks of 2 classes, made up",
        classes=[f"class {i}" for i in range(2 * tasks)],
        recipe={"seed": 0, "epochs": 4, "merge": {"method": "magmax", "factors": [0.5, 1.0]}},
        seeds=runs,
        summary=summarize(runs),
        versions={"jaxmerge": "0.1.0", "jax": "0.10.2"},
        machine={"platform": "made up", "cpus": 2},
        seconds={"fine-tune": 40.25, "merge": 2.5, "total": 61.0},
        peak_memory=1_234_567_890,
    )


def _run(rng: np.random.Generator, seed: int, n: int, label: str) -> SeedRun:
    order = [int(c) for c in rng.permutation(2 * n)]
    tasks = [
        Task(f"task {t + 1}", [f"class {c}" for c in order[2 * t : 2 * t + 2]], 200, 60, 72)
        for t in range(n)
    ]
    entries = [_entry(rng, "zero-shot", "none", n, 0.62, 0.0, 0.0)]
    for finetunes, shift in (("sequential", 0.04), ("independent", 0.0)):
        if finetunes == "sequential":
            entries.append(_entry(rng, "last model", finetunes, n, 0.6, 0.35, 0.14))
        for k, method in enumerate(MERGES):
            entry = _entry(rng, method, finetunes, n, 0.68 - 0.02 * k + shift, 0.22, 0.05)
            entry.method = f"{method.lower()}(factor=0.5)"
            entry.sweep = _sweep(rng, 0.5 - 0.05 * k, 0.8 - 0.02 * k)
            if method == "MagMax":
                entry.label = label
                entry.factors = [entry.sweep.chosen] * n
            else:
                _end_only(entry)
            entries.append(entry)
    entries.append(_entry(rng, "joint", "joint", n, 0.97, 0.0, 0.0))
    vectors = [_vectors(rng, "sequential", n, 0.8), _vectors(rng, "independent", n, 0.15)]
    return SeedRun(seed, order, tasks, entries, vectors, {"fine-tune": 13.4, "merge": 0.8})


def _entry(rng, label, finetunes, n, level, gain, decay) -> Entry:
    matrix = np.full((n, n), level)
    for t in range(n):
        for i in range(t + 1):
            matrix[t, i] += gain - decay * (t - i)
    constant = gain == 0.0
    noise = rng.normal(0, 0.02, (1, n) if constant else (n, n))
    matrix = np.clip(matrix + noise, 0, 1).round(4)
    over = [float(matrix[t, : t + 1].mean()) for t in range(n)]
    diagonal = np.diag(matrix)
    metrics = {
        "accuracy": float(matrix[-1].mean()),
        "aware": float(np.clip(matrix[-1] + 0.1, 0, 1).mean()),
        "over_time": float(np.mean(over)),
        "bwt": float((matrix[-1, :-1] - diagonal[:-1]).mean()) if n > 1 else None,
        "fwt": 0.0 if n > 1 else None,
        "forgetting": float((matrix.max(0)[:-1] - matrix[-1, :-1]).mean()) if n > 1 else None,
    }
    aware = np.clip(matrix + 0.1, 0, 1)
    return Entry(label, finetunes, "", matrix.tolist(), aware.tolist(), over, metrics)


def _end_only(entry: Entry) -> None:
    n = len(entry.matrix)
    for m in (entry.matrix, entry.aware):
        m[:-1] = [[None] * n for _ in range(n - 1)]
    entry.over_time[:-1] = [None] * (n - 1)
    for name in ("over_time", "bwt", "fwt", "forgetting"):
        entry.metrics[name] = None


def _sweep(rng, best: float, top: float) -> Sweep:
    factors = [round(0.1 * k, 2) for k in range(1, 11)]
    accuracy = [float(top - 0.5 * (f - best) ** 2 + rng.normal(0, 0.01)) for f in factors]
    return Sweep(factors, accuracy, factors[int(np.argmax(accuracy))])


def _vectors(rng, finetunes: str, n: int, base: float) -> Vectors:
    near = np.array([[base ** abs(a - b) for b in range(n)] for a in range(n)])
    sign = 0.5 + 0.5 * near**1.3
    edges = np.linspace(-8, -1, 36)
    counts = [rng.normal(-4 + 0.2 * t, 0.7, 20_000) for t in range(n)]
    share = rng.dirichlet(np.linspace(2, 8, n) * 5)
    norm = np.linspace(0.8, 2.0, n)
    return Vectors(
        finetunes,
        norm.tolist(),
        (norm / 40).tolist(),
        near.tolist(),
        sign.tolist(),
        edges.tolist(),
        [np.histogram(c, edges)[0].tolist() for c in counts],
        share.tolist(),
    )
