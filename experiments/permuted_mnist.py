r"""Permuted MNIST: the shipped methods on ten tasks, each with an order of pixels of its own.

    python experiments/permuted_mnist.py data=FOLDER         # mnist_train.npz, mnist_test.npz
    python experiments/permuted_mnist.py data=FOLDER examples=55000 methods=GPM out=...
    python experiments/permuted_mnist.py data=FOLDER stream=rotated    # by 0, 18, .. 162 degrees

Domain-incremental: ten columns that all tasks share.  One pass over 2,560 images a task
(``examples=``) in batches of 16, the perceptron 784-100-100-10 from random weights, biases too.
Three seeds; settings are chosen on 5,000 validation images of another seed (`continual_table.py`).

These are short streams: published figures come from 54,000 images a task, see docs/reproduction.md.
"""

from __future__ import annotations

import jax
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
    refresh,
    si,
    supsup,
    train_only,
    trgp,
)
from jaxmerge.continual.optimisers import adam, by_name, sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.rotated import rotated, turned
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import permuted, pixels
from jaxmerge.models.mlp.learner import mlp

STREAMS = {"permuted": (permuted, pixels), "rotated": (rotated, turned)}
REASONS = {
    "replay": "it chooses stored examples where a stream is planned (`jaxmerge run`); batches are "
    "drawn here, and ER is its like",
    "PredKD": "it distils the columns of old classes, and all tasks share theirs here",
    "PredKD + FeatKD": "FeatKD has a row by itself; PredKD would have no columns to distil",
    "SLCA": "it keeps one Gaussian a class, and every class returns with other pixels",
}  # fmt: skip
BELOW = "^(?!head/)"  # all leaves but the head's
THRESHOLDS = (0.95, 0.99, 0.99), (0.9, 0.95, 0.95)  # a kernel each, of GPM, TRGP and CUBER


def methods() -> dict[str, list[tuple]]:
    """label -> settings to choose from: optimiser and methods."""
    rates = [sgd(r) for r in (0.03, 0.1, 0.3)]
    steady = sgd(0.1, clip=1.0)
    return {
        "fine-tuning": [(r, ()) for r in rates],
        "head only": [(r, (train_only("^head/"),)) for r in rates],
        "L2": [(steady, (l2(s, first=False),)) for s in (0.001, 0.01, 0.1)],
        "EWC": [(steady, (ewc(s, examples=512),)) for s in (1.0, 10.0, 100.0, 1e3)],
        "EWC (MagMax's)": [
            (steady, (ewc_magmax(s, examples=512),)) for s in (0.01, 0.1, 1.0, 10.0, 100.0)
        ],
        "SI": [(steady, (si(s),)) for s in (0.01, 0.1, 1.0, 10.0)],
        "MAS": [
            (steady, (mas(s, outputs="all", examples=512),)) for s in (0.001, 0.01, 0.1, 1.0)
        ],
        "LwF": [(steady, (lwf(s, heads="joined"),)) for s in (0.1, 0.3, 1.0)],
        "FeatKD": [(steady, (feat_kd(s, first=False),)) for s in (0.01, 0.1, 1.0, 10.0)],
        "ER 500": [(r, (er(500),)) for r in rates],
        "DER 500": [(r, (der(500, a),)) for r in rates[1:] for a in (1.0, 3.0)],
        "DER++ 500": [(r, (derpp(500, a, 1.0),)) for r in rates[1:] for a in (1.0, 3.0)],
        "refresh + DER++ 500": [
            (sgd(0.1), (refresh(s, examples=512), derpp(500, 1.0, 1.0))) for s in (1e-4, 1e-3, 1e-2)
        ],
        "GPM": [(sgd(0.1), (gpm(e),)) for e in THRESHOLDS],
        "OSFT": [(sgd(0.1), (osft(r, BELOW),)) for r in (0.25, 0.5, 0.75)],
        "CoSO": [
            (by_name((("layer_.*kernel", sgd(1.0)), (".*", sgd(0.1)))),
             (coso(15, 50, 50, rate=r, target=BELOW),)) for r in (1e-3, 3e-3)
        ],
        "SupSup": [(adam(r), (supsup(),)) for r in (1e-3, 1e-2, 1e-1)],
        "LoRA a task": [(adam(r), (lora(8, 8.0, use="sum"),)) for r in (1e-4, 1e-3, 3e-3)],
        "O-LoRA": [
            (adam(r), (olora(s, rank=8, alpha=8.0),)) for r in (3e-4, 1e-3) for s in (0.05, 0.5)
        ],
    }  # fmt: skip


def main() -> None:
    chosen = options(
        data="", stream="permuted", methods=[], seeds=3, tasks=10, examples=2560, batch=16,
        tests=2000, out="",
    )  # fmt: skip
    known("stream", [chosen["stream"]], STREAMS)
    data = mnist(chosen["data"])
    tested = tuple(x[: chosen["tests"]] for x in data["test"])
    make_stream, view = STREAMS[chosen["stream"]]

    def stream(seed, validation):
        return make_stream(
            data["train"], data["validation"] if validation else tested, chosen["tasks"],
            batch=chosen["batch"], examples=chosen["examples"], seed=seed,
        )  # fmt: skip

    mixed = lambda seed, validation: joint(stream(seed, validation), jax.random.key(seed))
    problem = classification(columns="all", metrics=("accuracy", "aware"), view=view)
    protocol = (
        f"{chosen['tasks']} tasks, one pass over {chosen['examples']:,} images each, batch "
        f"{chosen['batch']}, 784-100-100-10; {chosen['tests']:,} test images"
    )
    make = lambda label, settings, stream: Cell(
        "domain", label, tuple(Setup(mlp(), problem, *s) for s in settings), stream, "accuracy",
        protocol,
    )  # fmt: skip
    rows = [make(label, settings, stream) for label, settings in methods().items()]
    rows.append(make("joint", [(sgd(r),) for r in (0.03, 0.1, 0.3)], mixed))
    for label, method in (("TRGP", trgp), ("CUBER", cuber)):
        settings = [(sgd(0.1), (method(e),)) for e in THRESHOLDS]
        given = make(f"{label}, task given", settings, stream)
        rows.append(given._replace(metric="aware"))
    merged = make(
        "MagMax", [(sgd(r), (), {"MagMax": jm.magmax(f)}) for r in (0.03, 0.1) for f in (0.5, 1.0)],
        stream,
    )  # fmt: skip
    rows.append(merged._replace(deployed="MagMax"))
    extra = "" if chosen["stream"] == "permuted" else f"stream={chosen['stream']} "
    table(
        "permuted_mnist",
        rows,
        list(range(chosen["seeds"])),
        chosen["out"] or f"experiments/results/{chosen['stream']}_mnist.json",
        f"{extra}tasks={chosen['tasks']} examples={chosen['examples']} batch={chosen['batch']}",
        {"domain": REASONS},
        chosen["methods"],
    )


if __name__ == "__main__":
    main()
