"""Rehearsal on digits, clothes, signs, intents: does it help, do its parts, does merging on top?

    python experiments/rehearsal.py data=DATA/mnist           # mnist_train.npz, mnist_test.npz
    python experiments/rehearsal.py stream=fashion data=DATA/fashion_mnist
    python experiments/rehearsal.py stream=gtsrb data=DATA/gtsrb
    python experiments/rehearsal.py stream=caltech101 data=DATA/caltech101
    python experiments/rehearsal.py stream=clinc150 data=DATA/clinc150
    python experiments/rehearsal.py stream=cifar10 data=DATA/cifar10
    python experiments/rehearsal.py data=FOLDER methods=ER,OnPro out=...
    python experiments/rehearsal.py page                      # writes them into docs/rehearsal.md

Online: one pass in batches of 10, three seeds (weights, order, classes of a task, draws).  Two
streams: clean tasks, scored after the last one; i-Blurry (50 % disjoint, 10 % blurry), scored after
every so many images of a task and after its last one, over the classes met so far (A_AUC: the plain
mean over these marks; `Anytime.A_AUC` weighs the last one of a task by its images).  Where classes
have groups there is a third: labels of groups first, then those of classes (HLE, single).

* ``mnist``, ``fashion``: 5,000 images (``images=``), a perceptron 784-100-100-10 from random
  weights, five tasks of two classes, 200 images in the buffer.
* ``gtsrb``: 6,000 traffic signs of 16 x 16, a perceptron 768-400-400-43 from random weights, five
  tasks of nine or eight signs, 430 images in the buffer, the five groups of shape and colour.
* ``caltech101``: 5,206 photographs of 16 x 16, the same perceptron to 101 classes, five tasks of
  twenty or twenty-one, 1,010 images in the buffer, fourteen groups by what a picture shows.
* ``clinc150``: 6,000 sentences as vectors of a frozen MiniLM, a perceptron 384-384-150 from one
  common start, the classifier of the intents' names; ten tasks of 15 intents, 600 sentences in the
  buffer, the ten domains as groups.
  Two rows train the head alone there, with sentences in the buffer or what the head reads of them
  in bytes; two distil, from the last model (LwF, over all columns so far) and from it and the
  start at once (`two_teachers`), each with the strength of 0.3, 1, 3, 10 that is best on the
  validation sentences of another seed.
* ``cifar10``: ResNet-18 of width 20 from random weights, five tasks of two classes, 200 images.

Deployments fold the models of the tasks: the last one, their mean, EMA, MagMax and OPCM.  What the
mean and MagMax are multiplied by and the decay of EMA (`MERGES`) are chosen for every method, by
the accuracy after the last clean task on the validation examples of another seed; where labels grow
finer they are the same.  No setting is chosen on test data: beside these and the two strengths
above, the rates are 0.1 for plain SGD (of ``gtsrb``, ``caltech101`` and ``clinc150`` chosen with ER
on validation examples of another seed) and the authors' for OnPro and PRD; CLIB and PL-FMS have
Adam at 1e-3 (theirs 3e-4), SLCA's trunk a tenth of the head's rate (theirs a hundredth).  So the
tables compare parts of methods with each other, and merges on top of one stream; they do not rank
methods.

A row that is finished is in the result file, and is not run again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from continual_table import TUNING_SEED, options
from continual_table import alike as filled
from rehearsal_page import RESULTS, cell, page
from rehearsal_streams import ONLY, STREAMS, Case

import jaxmerge as jm
from jaxmerge.continual.anytime import anytime
from jaxmerge.continual.drivers import joint, program
from jaxmerge.continual.methods import (
    clib,
    der,
    derpp,
    er,
    lingocl,
    lwf,
    onpro,
    pl_fms,
    prd,
    slca,
    slcapp,
    train_only,
    two_teachers,
)
from jaxmerge.continual.optimisers import adam, by_name, sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST
from jaxmerge.continual.seeds import alike
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import planned, split
from jaxmerge.core.composition import chain
from jaxmerge.data.streams.blurry import i_blurry
from jaxmerge.data.streams.hierarchy import expansion
from jaxmerge.data.streams.trees import Hierarchy
from jaxmerge.errors import closest, listed
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training import checkpoint
from jaxmerge.transforms.scaling import scale

BATCH = 10
MERGES: dict[str, tuple[Callable[..., jm.Merge], tuple[float, ...]]] = {
    "mean": (lambda factor: chain(jm.mean(), scale(factor)), (0.7, 1.0, 1.4, 2.0, 2.8, 4.0)),
    "EMA": (jm.ema, (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)),
    "MagMax": (jm.magmax, (0.5, 0.7, 1.0, 1.4, 2.0)),
    "OPCM": (lambda _: jm.opcm(), (1.0,)),
}
LANGUAGE = ("ER + LingoCL", "ER + LingoCL, random rows")
FROZEN = {"ER, frozen trunk": "inputs", "ER, frozen trunk, bytes": "features"}
TEACHERS = {"LwF": partial(lwf, heads="seen"), "two teachers": two_teachers}
STRENGTHS = (0.3, 1.0, 3.0, 10.0)
NEEDS = "a common start (start, frozen trunks, LwF, two teachers) or images (LingoCL)"
ROWS = (
    "fine-tuning", "ER", "ER, equal shares", "ER, herding", "ER, features in bytes", *FROZEN,
    "DER", "DER++", "CLIB", "CLIB, constant rate", "PL-FMS", "slow trunk", "SLCA", "SLCA++", "PRD",
    "PRD, no distillation", *TEACHERS, "OnPro", "OnPro, no feedback", *LANGUAGE, "joint", "start",
)  # fmt: skip


def methods(case: Case, rate: float = 0.1) -> dict[str, tuple]:
    """label -> optimiser, methods, columns of the objective."""
    size, images = case.size, len(case.data["train"][1])
    plain, tenth = sgd(rate), round(rate / 10, 9)
    slow = by_name((("head/.*", plain), (".*", sgd(tenth))))
    apart = by_name((("prototypes", sgd(0.01)), (".*", sgd(0.01, momentum=0.9))))
    quick = adam(5e-4, 0.9, 0.99)
    fast = adam(1e-3)
    kept = {"size": size, "replay": 2 * BATCH, "period": case.period}
    proto = partial(onpro, size, projection=50, rotations=case.images)
    return {
        "fine-tuning": (plain, (), "all"),
        "ER": (plain, (er(size),), "all"),
        "ER, equal shares": (plain, (er(size, select="balanced"),), "all"),
        "ER, herding": (plain, (er(size, select="herding"),), "all"),
        "ER, features in bytes": (plain, (er(size, store="features"),), "all"),
        "DER": (plain, (der(size, 0.2),), "all"),
        "DER++": (plain, (derpp(size, 0.2, 1.0),), "all"),
        "CLIB": (fast, (clib(**kept),), "all"),
        "CLIB, constant rate": (fast, (clib(**kept, adaptive=False),), "all"),
        "PL-FMS": (fast, (pl_fms(**kept, total=images),), "all"),
        "slow trunk": (slow, (), "own"),
        "SLCA": (plain, (slca(0.1),), "own"),
        "SLCA++": (plain, (slcapp(0.1),), "own"),
        "OnPro": (quick, (proto(),), "all"),
        "OnPro, no feedback": (quick, (proto(base=1.0),), "all"),
        "PRD": (apart, (prd(projection=50),), "own"),
        "PRD, no distillation": (apart, (prd(distill=0.0, projection=50),), "own"),
    }


def language(case: Case, label: str, rate: float) -> tuple:
    """Optimiser, methods, columns of ER under a frozen head: of names, or as wide and random."""
    rows = case.language()
    if label != LANGUAGE[0]:
        rows = np.random.default_rng(0).normal(size=rows.shape)
    return sgd(rate), (er(case.size), lingocl(rows.astype(np.float32))), "all"


def made(case: Case, label: str, rate: float) -> tuple[tuple, str]:
    """Optimiser, methods and columns of a row, and the first two in words."""
    if label in LANGUAGE:
        how = language(case, label, rate)
        rows = "embeddings" if label == LANGUAGE[0] else "random rows"
        return how, f"{how[0]!r} + {how[1][0]!r} + lingocl({rows})"
    if label in TEACHERS:
        scores = held_out(case, lambda x: (sgd(rate), TEACHERS[label](x)), STRENGTHS)
        strength = max(scores, key=lambda x: scores[x])
        how = sgd(rate), (TEACHERS[label](strength),), "all"
        tried = ", ".join(f"{x:g}: {100 * a:.1f}" for x, a in scores.items())
        return how, f"{how[0]!r} + {how[1][0]!r}; on validation examples, by strength, {tried}"
    if label in FROZEN:
        stored = er(case.size, store=FROZEN[label])
        how = sgd(rate), (train_only("^head/"), stored), "all"
    else:
        how = methods(case, rate)[label]
    optimiser, chosen, _ = how
    return how, " + ".join(map(repr, (optimiser, *chosen)))


def dealt(case: Case, seed: int, part: str = "test"):
    """The clean tasks of a seed."""
    order = tasks_of(case, np.random.default_rng(seed).permutation(len(case.classes)))
    return split(case.data["train"], case.data[part], order, batch=BATCH, seed=seed)


def tasks_of(case: Case, order: np.ndarray) -> list[list[int]]:
    """Classes in an order, dealt out over the tasks."""
    return [part.tolist() for part in np.array_split(order, case.tasks)]


def row(label: str, case: Case, seeds: list[int], rate: float) -> dict:
    """Accuracies of all deployments and A_AUC of a method, a figure a seed."""
    (optimiser, chosen, columns), described = made(case, label, rate)
    problem = lambda c, m: classification(columns=c, metrics=m, view=case.view)
    network, train, test = case.network(case.classes), case.data["train"], case.data["test"]
    clean = columns == "own" or label in ("ER, herding", *TEACHERS)  # rows of clean tasks alone
    blurry = not clean
    online = Setup(network, problem("seen", ("met",)), optimiser, chosen)
    parts = jax.jit(lambda s, k: program(online, s, k, anytime=s.rows.shape[1] // case.every))
    began, curves = time.process_time(), []
    final, best, scores = merged(
        Setup(network, problem(columns, ("accuracy",)), optimiser, chosen), case, seeds
    )
    mixed = [planned(i_blurry(train[1], case.tasks, 50, 10, s), train, test) for s in seeds]
    for seed, stream in zip(seeds, alike(mixed, case.every) if blurry else (), strict=False):
        R = parts(stream, jax.random.key(seed)).R[LAST]["met"]
        curves.append(float(np.mean(anytime(stream, R).accuracy)))
    more = {}
    if blurry and case.groups is not None and label not in LANGUAGE:  # whose rows are classes
        setup = Setup(
            case.network(case.groups.names), problem("level", ("level",)), optimiser, chosen,
            merges={k: MERGES[k][0](v) for k, v in best.items()},
        )  # fmt: skip
        more["expansion"] = expanded(setup, case, case.groups, seeds)
    seconds = time.process_time() - began
    return {"method": label, "setting": described, "accuracy": final, "A_AUC": curves, **more,
            "merges": best, "validation": scores, "processor_seconds": seconds}  # fmt: skip


def merged(setup: Setup, case: Case, seeds: list[int]) -> tuple[dict, dict, dict]:
    """After the clean tasks: deployment -> test accuracies, merge -> its setting, and merge ->
    setting -> accuracy on the validation examples of another seed, by which it was chosen."""
    every = {f"{k} {v:g}": make(v) for k, (make, values) in MERGES.items() for v in values}
    setup = dataclasses.replace(setup, merges=every)
    whole = jax.jit(lambda s, k: program(setup, s, k, score_every=case.tasks))
    tuning, first = dealt(case, TUNING_SEED, "validation"), dealt(case, seeds[0])
    tasks = [filled(tuning, first), *(filled(dealt(case, s), tuning) for s in seeds)]
    figures = []
    for seed, stream in zip((TUNING_SEED, *seeds), alike(tasks), strict=True):
        found = whole(stream, jax.random.key(seed)).R
        figures.append({k: float(np.mean(f["accuracy"][-1])) for k, f in found.items()})
    validation, *figures = figures
    scores = {k: {v: validation[f"{k} {v:g}"] for v in values} for k, (_, values) in MERGES.items()}
    best = {k: max(s, key=lambda v, s=s: (np.nan_to_num(s[v]), v == 1)) for k, s in scores.items()}
    deployed = {LAST: LAST} | {k: f"{k} {v:g}" for k, v in best.items()}
    final = {k: [f[name] for f in figures] for k, name in deployed.items()}
    return final, best, scores


def expanded(
    setup: Setup, case: Case, groups: Hierarchy, seeds: list[int]
) -> dict[str, dict[str, list[float]]]:
    """ "groups", "classes" -> deployment -> accuracies among labels of their level, at the end."""
    train, test = case.data["train"], case.data["test"]
    coarse = len(groups.names) - len(case.classes)
    whole = jax.jit(lambda s, k: program(setup, s, k, score_every=s.tasks))
    plans = [expansion(train[1], groups, "single", case.expansion, s) for s in seeds]
    found = {k: {d: [] for d in (LAST, *MERGES)} for k in ("groups", "classes")}
    for seed, stream in zip(seeds, alike([planned(p, train, test) for p in plans]), strict=True):
        for k, figures in whole(stream, jax.random.key(seed)).R.items():
            last = figures["level"][-1]
            found["groups"][k].append(float(np.mean(last[:coarse])))
            found["classes"][k].append(float(np.mean(last[coarse:])))
    return found


def upper(case: Case, seeds: list[int], rate: float) -> dict:
    """All classes at once, one pass."""
    network = case.network(case.classes)
    setup = Setup(network, classification(metrics=("accuracy",), view=case.view), sgd(rate))
    figures, began = [], time.process_time()
    one = jax.jit(lambda s, k: program(setup, s, k))
    for seed in seeds:
        key = jax.random.key(seed)
        order = tasks_of(case, np.arange(len(case.classes)))
        stream = split(case.data["train"], case.data["test"], order, batch=BATCH, seed=seed)
        figures.append(float(np.mean(one(joint(stream, key), key).R[LAST]["accuracy"][-1])))
    return {"method": "joint", "setting": repr(sgd(rate)), "accuracy": {LAST: figures}, "A_AUC": [],
            "processor_seconds": time.process_time() - began}  # fmt: skip


def start(case: Case, seeds: list[int], rate: float) -> dict:
    """The common start before any training."""
    began, (x, y) = time.process_time(), case.data["test"]
    model = case.network(case.classes).build()
    answer = np.argmax(model.apply(model.init(jax.random.key(0)), x, 0).logits, -1)
    figure = float(np.mean(answer == y))
    return {"method": "start", "setting": "", "accuracy": {LAST: [figure] * len(seeds)},
            "A_AUC": [], "processor_seconds": time.process_time() - began}  # fmt: skip


def held_out(case: Case, way: Callable[[float], tuple], values: Sequence[float]) -> dict:
    """Value -> accuracy on the validation data, of a seed of its own, of ``way(value)``: an
    optimiser and a method."""
    problem = classification(metrics=("accuracy",), view=case.view)
    stream, key = dealt(case, TUNING_SEED, "validation"), jax.random.key(TUNING_SEED)
    one = jax.jit(lambda u, s, k: program(u, s, k, score_every=case.tasks))

    def score(value):
        optimiser, method = way(value)
        setup = Setup(case.network(case.classes), problem, optimiser, (method,))
        return float(np.mean(one(setup, stream, key).R[LAST]["accuracy"][-1]))

    return {value: score(value) for value in values}


UNMERGED = {"joint": upper, "start": start}  # rows of one model


def main() -> None:
    if sys.argv[1:2] == ["page"]:
        return page()
    chosen = options(stream="mnist", data="", methods=[], seeds=3, images=0, out="")
    name = chosen["stream"]
    if name not in STREAMS:
        raise SystemExit(f"stream={name}: {closest(name, STREAMS)}")
    make, file, many = STREAMS[name]
    path = Path(chosen["out"] or RESULTS / f"{file}.json")
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    asked = {"seeds": list(range(chosen["seeds"])), "images": chosen["images"] or many}
    known = [m for m in ROWS if name not in ONLY or m in ONLY[name]]
    wrong = [f"no method {m!r}: {closest(m, known)}" for m in chosen["methods"] if m not in known]
    if path.exists():
        wrong += [
            f"{path} has {k}={report.get(k, 'mnist')}, asked for {v}: give another out="
            for k, v in {"stream": name, **asked}.items()
            if report.get(k, "mnist") != v
        ]
    if wrong:
        raise SystemExit(listed(wrong))
    try:
        case = make(chosen["data"], asked["images"], path.with_suffix(".vectors.npz"))
    except ValueError as error:  # so few that a class has none
        raise SystemExit(f"images={asked['images']}: {error}") from None
    rates = report.get("tried") or {repr(case.rates[0]): float("nan")}
    if len(case.rates) > 1 and "tried" not in report:
        scores = held_out(case, lambda r: (sgd(r), er(case.size)), case.rates)
        rates = {repr(r): accuracy for r, accuracy in scores.items()}
        print("rate of plain SGD, accuracy on validation data:", rates, flush=True)
    rate = float(max(rates, key=lambda r: rates[r]))
    known = [m for m in known if m not in ("start", *FROZEN, *TEACHERS) or case.pretrained]
    known = [m for m in known if m not in LANGUAGE or case.language is not None]
    if idle := [m for m in chosen["methods"] if m not in known]:
        raise SystemExit(f"stream={name} has no rows of {', '.join(idle)}: they need {NEEDS}.")
    done = {r["method"] for r in report["rows"]}
    left = [m for m in known if m not in done and m in (chosen["methods"] or known)]
    try:
        if left:
            dealt(case, 0)
    except ValueError as error:
        raise SystemExit(f"images={asked['images']}: {error}") from None
    ran = {"machine": machine(), "versions": versions()}
    common = {k: report.get(k, v) for k, v in ran.items()}  # of the rows that are there
    for label in left:
        if label in UNMERGED:
            new = UNMERGED[label](case, asked["seeds"], rate)
        else:
            new = row(label, case, asked["seeds"], rate)
        new |= {k: v for k, v in ran.items() if v != common[k]}
        others = [r for r in report["rows"] if r["method"] != label]
        report["rows"] = sorted([*others, new], key=lambda r: ROWS.index(r["method"]))
        stream = "" if name == "mnist" else f"stream={name} "
        report |= {
            "schema": "jaxmerge.rehearsal/1", **asked, **({"stream": name} if stream else {}),
            **({"tried": rates} if len(rates) > 1 else {}),
            "command": f"python experiments/rehearsal.py {stream}data=DATA"
            + f" images={asked['images']}",
            **common,
        }  # fmt: skip
        checkpoint.replace(path, json.dumps(report, indent=1) + "\n")
        print(label, cell(new["A_AUC"]), {k: cell(v) for k, v in new["accuracy"].items()},
              f"{new['processor_seconds']:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
