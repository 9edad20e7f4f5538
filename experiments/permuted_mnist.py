"""Permuted MNIST: the shipped methods on ten tasks, each with an order of pixels of its own.

    python experiments/permuted_mnist.py data=FOLDER         # mnist_train.npz, mnist_test.npz
    python experiments/permuted_mnist.py data=FOLDER examples=55000 methods=GPM out=...

Domain-incremental: ten columns that all tasks share.  One pass over 2,560 images a task
(``examples=``) in batches of 16, the perceptron 784-100-100-10 from random weights, biases too.
Three seeds; settings are chosen on 5,000 validation images of another seed (`continual_table.py`).

These are short streams: published figures come from 54,000 images a task, see docs/reproduction.md.
"""

from __future__ import annotations

import jax
from continual_table import Cell, mnist, options, table

from jaxmerge.continual.drivers import joint
from jaxmerge.continual.methods import (
    der,
    derpp,
    er,
    ewc,
    gpm,
    l2,
    lora,
    lwf,
    mas,
    olora,
    si,
    supsup,
)
from jaxmerge.continual.optimisers import adam, sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Setup
from jaxmerge.continual.streams import permuted, pixels
from jaxmerge.models.mlp.learner import mlp


def methods() -> dict[str, list[tuple]]:
    """label -> settings to choose from: optimiser and methods."""
    rates = [sgd(0.03), sgd(0.1)]
    steady = sgd(0.1, clip=1.0)
    return {
        "fine-tuning": [(r, ()) for r in rates],
        "ER 500": [(r, (er(500),)) for r in rates],
        "DER++ 500": [(r, (derpp(500, 1.0, 1.0),)) for r in rates],
        "DER 500": [(r, (der(500, 1.0),)) for r in rates],
        "GPM": [(sgd(0.1), (gpm(e),)) for e in ((0.95, 0.99, 0.99), 0.9)],
        "SI": [(steady, (si(s),)) for s in (0.1, 1.0, 10.0)],
        "EWC": [(steady, (ewc(s, examples=512),)) for s in (1.0, 10.0, 100.0)],
        "MAS": [(steady, (mas(s, outputs="all", examples=512),)) for s in (0.01, 0.1)],
        "L2": [(steady, (l2(s, first=False),)) for s in (0.01, 0.1)],
        "LwF": [(steady, (lwf(s, heads="joined"),)) for s in (0.3, 1.0)],
        "SupSup": [(adam(r), (supsup(),)) for r in (1e-3, 1e-2)],
        "O-LoRA": [(adam(3e-3), (olora(s, rank=8, alpha=8.0),)) for s in (0.005, 0.05)],
        "LoRA a task": [(adam(r), (lora(8, 8.0, use="sum"),)) for r in (1e-3, 1e-2)],
    }


def main() -> None:
    chosen = options(
        data="", methods=[], seeds=3, tasks=10, examples=2560, batch=16, tests=2000,
        out="experiments/results/permuted_mnist.json",
    )  # fmt: skip
    data = mnist(chosen["data"])
    tested = tuple(x[: chosen["tests"]] for x in data["test"])

    def stream(seed, validation):
        return permuted(
            data["train"], data["validation"] if validation else tested, chosen["tasks"],
            batch=chosen["batch"], examples=chosen["examples"], seed=seed,
        )  # fmt: skip

    mixed = lambda seed, validation: joint(stream(seed, validation), jax.random.key(seed))
    problem = classification(columns="all", metrics=("accuracy",), view=pixels)
    protocol = (
        f"{chosen['tasks']} tasks, one pass over {chosen['examples']:,} images each, batch "
        f"{chosen['batch']}, 784-100-100-10; {chosen['tests']:,} test images"
    )
    make = lambda label, settings, stream: Cell(
        "domain", label, tuple(Setup(mlp(), problem, *s) for s in settings), stream, "accuracy",
        protocol,
    )  # fmt: skip
    rows = [make(label, settings, stream) for label, settings in methods().items()]
    rows.append(make("joint", [(sgd(0.1),)], mixed))
    table(
        "permuted_mnist",
        [r for r in rows if not chosen["methods"] or r.method in chosen["methods"]],
        list(range(chosen["seeds"])),
        chosen["out"],
        f"tasks={chosen['tasks']} examples={chosen['examples']} batch={chosen['batch']}",
    )


if __name__ == "__main__":
    main()
