r"""Split MNIST: the shipped methods in the class-, domain- and task-incremental scenario.

    python experiments/split_mnist.py data=FOLDER            # mnist_train.npz, mnist_test.npz
    python experiments/split_mnist.py data=FOLDER scenarios=class methods=GPM,SI out=...
    python experiments/split_mnist.py data=FASHION images=10000 scenarios=class,task \
        out=experiments/results/split_fashion.json

Five tasks of two digits in their order, one pass over the first 20,000 images (``images=``), the
perceptron 784-100-100-10 from random weights, batch 32.  Three seeds (weights, order of images,
draws); settings are chosen on 5,000 validation images of another seed (`continual_table.py`).

``scenarios=mammoth`` is another protocol: that of DER's authors, see `mammoth`.

The table and its costs are in docs/reproduction.md (``python experiments/reproduction.py``).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from continual_table import Cell, known, mnist, options, table

import jaxmerge as jm
from jaxmerge.continual.drivers import joint
from jaxmerge.continual.methods import (
    coso,
    cuber,
    der,
    derpp,
    er,
    ewc,
    ewc_magmax,
    feat_kd,
    gpm,
    l2,
    lora,
    lwf,
    mas,
    olora,
    osft,
    pred_kd,
    refresh,
    si,
    slca,
    supsup,
    train_only,
    trgp,
)
from jaxmerge.continual.optimisers import adam, by_name, sgd
from jaxmerge.continual.parts import named_key
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Model
from jaxmerge.continual.registry import models
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import pixels, split
from jaxmerge.models.mlp.learner import mlp

ORDER = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
OUT = "experiments/results/split_mnist.json"
SCENARIOS = ("class", "domain", "task")
HEAD = "^(?!head/)"  # all leaves but the head's


REASONS = {
    "replay": "it chooses stored examples where a stream is planned (`jaxmerge run`); batches are "
    "drawn here, and ER is its like",
    "PredKD": "it distils the columns of old classes, and in this scenario all tasks share theirs",
    "TRGP": "its scales need the task",
    "CUBER": "its scales need the task",
    "PredKD + FeatKD": "FeatKD has a row by itself; PredKD would have no columns to distil",
    "SLCA": "it keeps one Gaussian a class, and in this scenario a label returns with other images",
}  # fmt: skip


def methods(scenario: str) -> dict[str, list[tuple]]:
    """label -> settings to choose from: (optimiser, methods, keywords of the problem)."""
    leaves = HEAD if scenario == "task" else ".*"  # heads of other tasks are out of reach anyway
    rates = [sgd(r) for r in (0.03, 0.1, 0.3)]
    steady = sgd(0.1, clip=1.0)
    own = {"columns": "own"}
    outputs = {"outputs": "all"} if scenario == "domain" else {}
    gpm_head = {"project": HEAD, "free": "^head/"} if scenario == "task" else {}
    use = "own" if scenario == "task" else "sum"
    heads = {"heads": "joined"} if scenario == "domain" else {}  # one head that tasks share
    settings = {
        "fine-tuning": [(r, ()) for r in rates],
        "head only": [(r, (train_only("^head/"),)) for r in rates],
        "L2": [(steady, (l2(s, first=False, leaves=leaves),)) for s in (0.001, 0.01, 0.1, 1.0)],
        "EWC": [(steady, (ewc(s, leaves=leaves),)) for s in (10.0, 100.0, 1e3, 1e4, 1e5)],
        "EWC (MagMax's)": [
            (steady, (ewc_magmax(s, leaves=leaves),)) for s in (0.01, 0.1, 1.0, 10.0, 100.0)
        ],
        "SI": [(steady, (si(s, leaves=leaves),)) for s in (1.0, 10.0, 100.0, 1e3, 1e4)],
        "MAS": [(steady, (mas(s, leaves=leaves, **outputs),)) for s in (0.01, 0.1, 1.0, 10.0)],
        "LwF": [(steady, (lwf(s, **heads),)) for s in (0.3, 1.0, 3.0, 10.0, 30.0)],
        "FeatKD": [(steady, (feat_kd(s, first=False),)) for s in (0.01, 0.1, 1.0, 10.0, 100.0)],
        "ER 500": [(r, (er(500),)) for r in rates],
        "DER 500": [(r, (der(500, a),)) for r in rates[1:] for a in (0.2, 1.0, 3.0)],
        "DER++ 500": [(r, (derpp(500, a, 1.0),)) for r in rates[1:] for a in (0.2, 1.0, 3.0)],
        "refresh + DER++ 500": [
            (sgd(0.1), (refresh(s), derpp(500, 1.0, 1.0))) for s in (1e-4, 1e-3, 1e-2)
        ],
        "GPM": [(sgd(0.1), (gpm(e, **gpm_head),)) for e in (0.9, 0.95, 0.99)],
        "OSFT": [(sgd(0.1), (osft(r, HEAD),)) for r in (0.25, 0.5, 0.75)],
        "CoSO": [
            (by_name((("layer_.*kernel", sgd(1.0)), (".*", sgd(0.1)))),
             (coso(15, 50, 50, rate=r, target=HEAD),)) for r in (1e-3, 3e-3)
        ],
        "SupSup": [(adam(r), (supsup(),)) for r in (1e-3, 1e-2, 1e-1)],
        "LoRA a task": [(adam(r), (lora(8, 8.0, use=use),)) for r in (1e-4, 1e-3, 3e-3)],
        "O-LoRA": [
            (adam(r), (olora(s, rank=8, alpha=8.0),)) for r in (3e-4, 1e-3) for s in (0.05, 0.5)
        ],
    }  # fmt: skip
    if scenario == "task":  # these are given the task
        settings["TRGP"] = [(sgd(0.1), (trgp(e, **gpm_head),)) for e in (0.9, 0.95, 0.99)]
        settings["CUBER"] = [
            (sgd(0.1), (cuber(0.95, strength=s, **gpm_head),)) for s in (0.01, 0.1, 1.0)
        ]
    if scenario != "domain":  # these tell old classes from new ones
        settings |= {
            "PredKD": [(sgd(r, clip=1.0), (pred_kd(),)) for r in (0.1, 0.3, 1.0, 3.0)],
            "PredKD + FeatKD": [
                (sgd(r, clip=1.0), (pred_kd(), feat_kd(s, first=False)))
                for r in (0.3, 1.0)
                for s in (0.1, 1.0, 10.0)
            ],
            "SLCA": [(sgd(0.1), (slca(s),), own) for s in (0.01, 0.1, 1.0)],
        }
    return settings


def cells(data: dict, scenario: str, protocol: str) -> list[Cell]:
    """The rows of one scenario."""
    columns = "own" if scenario == "task" else "all"
    metric = "aware" if scenario == "task" else "accuracy"
    network = mlp(classes=2 if scenario == "domain" else 10)
    problem = {"columns": columns, "metrics": (metric,), "view": pixels}
    batch = 32

    def stream(seed, validation):
        return split(
            data["train"], data["validation" if validation else "test"], ORDER,
            scenario=scenario, batch=batch, seed=seed,
        )  # fmt: skip

    def setup(optimiser, chosen, more=None):
        return Setup(network, classification(**(problem | (more or {}))), optimiser, chosen)

    rows = []
    for label, settings in methods(scenario).items():
        setups = tuple(setup(*s) for s in settings)
        rows.append(Cell(scenario, label, setups, stream, metric, protocol))
    mixed = lambda seed, validation: joint(stream(seed, validation), jax.random.key(seed))
    upper = tuple(setup(sgd(r), (), {"columns": "all"}) for r in (0.03, 0.1, 0.3))
    rows.append(Cell(scenario, "joint", upper, mixed, metric, protocol))
    merged = tuple(
        Setup(network, classification(**problem), sgd(r), merges={"MagMax": jm.magmax(f)})
        for r in (0.03, 0.1)
        for f in (0.5, 1.0)
    )
    rows.append(Cell(scenario, "MagMax", merged, stream, metric, protocol, deployed="MagMax"))
    return rows


@models.register
def glorot_mlp() -> Model:
    """784-100-100-10 as mammoth draws it: even in +-sqrt(6 / (in + out)), biases 0."""
    model = mlp().build()

    def init(key):
        params = {}
        for n, p in model.init(key).items():
            bound = (6 / sum(p.shape)) ** 0.5
            draw = jax.random.uniform(named_key(key, n), p.shape, minval=-bound, maxval=bound)
            params[n] = draw if p.ndim == 2 else jnp.zeros_like(p)
        return params

    return model._replace(init=init)


def mammoth(data: dict) -> list[Cell]:
    """ER, DER and DER++ as their authors ran them on split MNIST, buffer 200.

    All 60,000 images, one pass, batch 10, SGD, Glorot's initial weights; rates, alpha, beta and
    replay batches are the authors' best arguments; nothing is chosen here.
    """
    whole = tuple(np.concatenate(x) for x in zip(data["train"], data["validation"], strict=True))
    rows = {
        "ER": (sgd(0.01), er(200, 10)),
        "DER": (sgd(0.03), der(200, 0.2, 10)),
        "DER++": (sgd(0.03), derpp(200, 0.2, 1.0, 128)),
    }
    protocol = "one pass over 60,000 images, batch 10, buffer 200, 784-100-100-10"
    problem = classification(columns="all", metrics=("accuracy",), view=pixels)
    stream = lambda seed, validation: split(whole, data["test"], ORDER, batch=10, seed=seed)
    return [
        Cell(
            "mammoth", label, (Setup(glorot_mlp(), problem, o, (m,)),), stream, "accuracy", protocol
        )
        for label, (o, m) in rows.items()
    ]


def main() -> None:
    chosen = options(
        data="", scenarios=[*SCENARIOS, "mammoth"], methods=[], seeds=3, images=20_000,
        out=OUT,
    )  # fmt: skip
    known("scenario", chosen["scenarios"], (*SCENARIOS, "mammoth"))
    rows = []
    protocol = f"one pass over {chosen['images']:,} images, batch 32, 784-100-100-10"
    for scenario in chosen["scenarios"]:
        if scenario == "mammoth":
            rows += mammoth(mnist(chosen["data"]))
        else:
            data = mnist(chosen["data"], chosen["images"])
            rows += cells(data, scenario, protocol)
    seeds = list(range(chosen["seeds"]))
    without = {
        "class": {k: REASONS[k] for k in ("replay", "TRGP", "CUBER")},
        "domain": REASONS,
        "task": {"replay": REASONS["replay"]},
    }
    more = f"images={chosen['images']}" + f" out={chosen['out']}" * (chosen["out"] != OUT)
    table("split_mnist", rows, seeds, chosen["out"], more, without, chosen["methods"])


if __name__ == "__main__":
    main()
