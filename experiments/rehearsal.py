"""Rehearsal on digits or clothes: does it help, do its parts help, does merging help on top?

    python experiments/rehearsal.py data=FOLDER               # mnist_train.npz, mnist_test.npz
    python experiments/rehearsal.py data=FOLDER methods=ER,OnPro out=...
    python experiments/rehearsal.py page                      # writes them into docs/rehearsal.md

Online: one pass over 5,000 images (``images=``) in batches of 10, a perceptron 784-100-100-10 from
random weights, three seeds (weights, order, classes of a task, draws).  Two streams: five tasks of
two classes, scored after the last one; i-Blurry (50 % disjoint, 10 % blurry), scored after every
130 images of a task and after its last one, over the classes met so far (A_AUC: the plain mean over
these marks; `Anytime.A_AUC` weighs the last one of a task by its images).  The buffer holds 200
images.

Deployments fold the five models of the tasks: the last one, their mean, EMA (decay 0.5), MagMax
(factor 1) and OPCM.  No setting is chosen on data: the rates are 0.1 for plain SGD and the authors'
for OnPro and PRD; CLIB and PL-FMS have Adam at 1e-3 (theirs 3e-4), SLCA's trunk a tenth of the
head's rate (theirs a hundredth).  So the table compares parts of methods with each other, and
merges on top of one stream; it does not rank methods.

A row that is finished is in the result file, and is not run again.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from continual_table import mnist, options

import jaxmerge as jm
from jaxmerge.continual.anytime import anytime
from jaxmerge.continual.drivers import joint, program
from jaxmerge.continual.methods import clib, derpp, er, onpro, pl_fms, prd, slca, slcapp
from jaxmerge.continual.optimisers import adam, by_name, sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST
from jaxmerge.continual.seeds import alike
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import planned, split
from jaxmerge.data.streams.blurry import i_blurry
from jaxmerge.errors import closest, listed
from jaxmerge.models.mlp.learner import mlp
from jaxmerge.studies.provenance import machine, versions

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "rehearsal.md"
SIZE, TASKS, EVERY = 200, 5, 13  # images of the buffer, tasks, steps between marks
MERGES = {
    "mean": jm.mean(), "EMA": jm.ema(0.5), "MagMax": jm.magmax(1.0), "OPCM": jm.opcm(),
}  # fmt: skip


def shifted(stored, info, task, key):
    """Bytes in [0, 1]; in training every image is moved by up to two pixels in each direction."""
    x = stored.astype(jnp.float32) / 255
    if key is not None:
        by = jax.random.randint(key, (len(x), 2), 0, 5)
        x = jnp.pad(x, ((0, 0), (2, 2), (2, 2)))
        move = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1]), (28, 28))
        x = jax.vmap(move)(x, by)
    return x.reshape(len(x), -1)


def methods(images: int = 5000) -> dict[str, tuple]:
    """label -> optimiser, methods, columns of the objective."""
    plain = sgd(0.1)
    slow = by_name((("head/.*", sgd(0.1)), (".*", sgd(0.01))))
    apart = by_name((("prototypes", sgd(0.01)), (".*", sgd(0.01, momentum=0.9))))
    quick = adam(5e-4, 0.9, 0.99)
    fast = adam(1e-3)
    return {
        "fine-tuning": (plain, (), "all"),
        "ER": (plain, (er(SIZE),), "all"),
        "ER, equal shares": (plain, (er(SIZE, select="balanced"),), "all"),
        "ER, herding": (plain, (er(SIZE, select="herding"),), "all"),
        "ER, features in bytes": (plain, (er(SIZE, store="features"),), "all"),
        "DER++": (plain, (derpp(SIZE, 0.2, 1.0),), "all"),
        "CLIB": (fast, (clib(SIZE, 20),), "all"),
        "CLIB, constant rate": (fast, (clib(SIZE, 20, adaptive=False),), "all"),
        "PL-FMS": (fast, (pl_fms(SIZE, 20, period=1, total=images),), "all"),
        "slow trunk": (slow, (), "own"),
        "SLCA": (plain, (slca(0.1),), "own"),
        "SLCA++": (plain, (slcapp(0.1),), "own"),
        "OnPro": (quick, (onpro(SIZE, projection=50),), "all"),
        "OnPro, no feedback": (quick, (onpro(SIZE, projection=50, base=1.0),), "all"),
        "PRD": (apart, (prd(projection=50),), "own"),
        "PRD, no distillation": (apart, (prd(distill=0.0, projection=50),), "own"),
    }


def row(label: str, data: dict, seeds: list[int]) -> dict:
    """Accuracies of all deployments and A_AUC of a method, a figure a seed."""
    optimiser, chosen, columns = methods(len(data["train"][1]))[label]
    problem = lambda c, m: classification(columns=c, metrics=m, view=shifted)
    network, train, test = mlp(), data["train"], data["test"]
    setup = Setup(network, problem(columns, ("accuracy",)), optimiser, chosen, merges=MERGES)
    blurry = columns != "own" and label != "ER, herding"  # rows of clean tasks alone
    online = Setup(network, problem("seen", ("met",)), optimiser, chosen)
    whole = jax.jit(lambda s, k: program(setup, s, k, score_every=TASKS))
    parts = jax.jit(lambda s, k: program(online, s, k, anytime=s.rows.shape[1] // EVERY))
    began, final, curves = time.process_time(), {k: [] for k in (LAST, *MERGES)}, []
    orders = [np.random.default_rng(s).permutation(10).reshape(TASKS, 2).tolist() for s in seeds]
    tasks = [split(train, test, o, batch=10, seed=s) for o, s in zip(orders, seeds, strict=True)]
    for seed, stream in zip(seeds, alike(tasks), strict=True):
        result = whole(stream, jax.random.key(seed))
        for k, figures in result.R.items():
            final[k].append(float(np.mean(figures["accuracy"][-1])))
    mixed = [planned(i_blurry(train[1], TASKS, 50, 10, s), train, test) for s in seeds]
    for seed, stream in zip(seeds, alike(mixed, EVERY) if blurry else (), strict=False):
        R = parts(stream, jax.random.key(seed)).R[LAST]["met"]
        curves.append(float(np.mean(anytime(stream, R).accuracy)))
    seconds = time.process_time() - began
    described = " + ".join(map(repr, (optimiser, *chosen)))
    return {"method": label, "setting": described, "accuracy": final, "A_AUC": curves,
            "processor_seconds": seconds}  # fmt: skip


def upper(data: dict, seeds: list[int]) -> dict:
    """All classes at once, one pass."""
    setup = Setup(mlp(), classification(metrics=("accuracy",), view=shifted), sgd(0.1))
    figures, began = [], time.process_time()
    one = jax.jit(lambda s, k: program(setup, s, k))
    for seed in seeds:
        key = jax.random.key(seed)
        order = np.arange(10).reshape(TASKS, 2).tolist()
        stream = split(data["train"], data["test"], order, batch=10, seed=seed)
        figures.append(float(np.mean(one(joint(stream, key), key).R[LAST]["accuracy"][-1])))
    return {"method": "joint", "setting": repr(sgd(0.1)), "accuracy": {LAST: figures}, "A_AUC": [],
            "processor_seconds": time.process_time() - began}  # fmt: skip


def cell(values: list[float]) -> str:
    """Mean and standard deviation in percent."""
    if not values or not np.isfinite(values).all():
        return "–"
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f}"


def table(report: dict) -> str:
    """The tables of the page."""
    head = ["Method", "A_AUC, i-Blurry", LAST, *MERGES]
    lines = ["| " + " | ".join(head) + " |", "| :-- |" + " --: |" * (len(head) - 1)]
    for r in report["rows"]:
        cells = [cell(r["accuracy"].get(k, [])) for k in (LAST, *MERGES)]
        lines.append("| " + " | ".join([r["method"], cell(r["A_AUC"]), *cells]) + " |")
    seconds = sum(r["processor_seconds"] for r in report["rows"])
    return (
        f"`{report['command']}`, CPU cores shared with other work, "
        f"{seconds:.0f} processor seconds, {len(report['seeds'])} seeds:\n\n"
        + "\n".join(lines)
        + "\n\n"
        + claims(report)
    )


CLAIMS = {
    "equal shares of classes in the buffer": ("ER, equal shares", "ER"),
    "herding in place of the reservoir": ("ER, herding", "ER"),
    "features in bytes in place of images": ("ER, features in bytes", "ER"),
    "stored logits": ("DER++", "ER"),
    "the rate that follows the loss": ("CLIB", "CLIB, constant rate"),
    "examples of the stream beside the memory": ("PL-FMS", "CLIB"),
    "alignment of the classifier": ("SLCA", "slow trunk"),
    "what SLCA++ changes": ("SLCA++", "SLCA"),
    "prototypical feedback": ("OnPro", "OnPro, no feedback"),
    "distillation of relations": ("PRD", "PRD, no distillation"),
}


def change(one: list[float], other: list[float]) -> str:
    """Mean and spread over seeds of a difference in points, and how often it is positive."""
    apart = 100 * (np.array(one) - np.array(other))
    return f"{apart.mean():+.1f} ± {apart.std():.1f} ({(apart > 0).sum()} of {len(apart)} seeds)"


def claims(report: dict) -> str:
    """What parts of methods, and merges on top of them, change: points of accuracy."""
    rows = {r["method"]: r["accuracy"] for r in report["rows"]}
    lines = [
        f"* {what}: {change(rows[a][LAST], rows[b][LAST])}"
        for what, (a, b) in CLAIMS.items()
        if a in rows and b in rows
    ]
    merged = []
    for label, figures in rows.items():
        tried = {k: v for k, v in figures.items() if k != LAST and np.isfinite(v).all()}
        if tried:
            best = max(tried, key=lambda k, t=tried: np.mean(t[k]))
            merged.append(f"* {label}: {best} {change(tried[best], figures[LAST])}")
    head = "Points of accuracy after the last task that a part of a method changes:"
    more = "The best merge of each stream (chosen on these figures) against its last model:"
    return "\n\n".join([head, "\n".join(lines), more, "\n".join(merged)])


def write_page(report: dict) -> None:
    """The tables, between the page's marks."""
    text = PAGE.read_text(encoding="utf-8")
    block = f"<!-- rehearsal -->\n{table(report)}\n<!-- /rehearsal -->"
    text = re.sub(r"<!-- rehearsal -->.*<!-- /rehearsal -->", lambda _: block, text, flags=re.S)
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    default = str(HERE / "results" / "rehearsal.json")
    if sys.argv[1:2] == ["page"]:
        write_page(json.loads(Path(default).read_text()))
        return
    chosen = options(data="", methods=[], seeds=3, images=5000, out=default)
    path, seeds = Path(chosen["out"]), list(range(chosen["seeds"]))
    report = json.loads(path.read_text()) if path.exists() else {"rows": []}
    asked = {"seeds": seeds, "images": chosen["images"]}
    known = [*methods(), "joint"]
    wrong = [f"no method {m!r}: {closest(m, known)}" for m in chosen["methods"] if m not in known]
    if path.exists():
        wrong += [
            f"{path} has {k}={report.get(k)}, asked for {v}: give another out="
            for k, v in asked.items()
            if report.get(k) != v
        ]
    if wrong:
        raise SystemExit(listed(wrong))
    data = mnist(chosen["data"], chosen["images"])
    data["test"] = tuple(x[:10_000] for x in data["test"])
    done = {r["method"] for r in report["rows"]}
    for label in known:
        if label in done or (chosen["methods"] and label not in chosen["methods"]):
            continue
        new = upper(data, seeds) if label == "joint" else row(label, data, seeds)
        report["rows"].append(new)
        report |= {
            "schema": "jaxmerge.rehearsal/1", **asked,
            "command": f"python experiments/rehearsal.py data=DATA images={chosen['images']}",
            "machine": machine(), "versions": versions(),
        }  # fmt: skip
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(path)
        print(label, cell(new["A_AUC"]), {k: cell(v) for k, v in new["accuracy"].items()},
              f"{new['processor_seconds']:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
