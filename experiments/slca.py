"""Does aligning the classifier close the gap to joint training, from pre-trained towers?

    python experiments/slca.py data=DATA               # CLINC150, some twenty minutes of a core
    python experiments/slca.py stream=digits out=FILE  # without data, six
    python experiments/slca.py page                    # writes CLINC150's into docs/rehearsal.md

* ``clinc150``: five tasks of thirty of the 150 intents, all-MiniLM-L6-v2; ten sentences an intent
  for training, five of the test split.
* ``digits``: scikit-learn's digits, five tasks of two, the image tower of `mini`, which knows
  digits already.

The head is linear and trains, from the columns of the class names (`with_trained_head`).  Rates are
the authors' and nothing is chosen on data: SGD at 0.01 for the head and a hundredth of that for the
tower (a tenth in SLCA++), momentum 0.9, weight decay 5e-4; alignment as the methods have it by
default.  Batches, epochs and data are ours, and far smaller than theirs.

Accuracy is over all classes after the last task, no task given.  "Not aligned" is the same run as
the row above it, with the head as training left it: its difference is what alignment does.  Joint
training sees all classes at once, as often, with the same rates.

Three seeds (class order, shuffles, draws).  A seed that is finished is in the result file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from continual_table import data_set, fill, known, options
from spread import deviation, percent

from jaxmerge.cli.quickstart import weights_folder
from jaxmerge.continual.deploys import Deploy
from jaxmerge.continual.methods import slca, slcapp
from jaxmerge.continual.optimisers import by_name, sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST
from jaxmerge.data.digits import digits
from jaxmerge.data.sources import Source
from jaxmerge.data.splits import few
from jaxmerge.data.streams.scenario import Scenario, class_incremental, class_order
from jaxmerge.data.text import clinc150
from jaxmerge.models import bert, clip
from jaxmerge.studies.loop import Stream
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training import checkpoint
from jaxmerge.training.encoder import with_trained_head
from jaxmerge.training.how import Training
from jaxmerge.training.learner import from_bert, from_clip

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "rehearsal.md"
RESULT = HERE / "results" / "slca.json"
TASKS, RATE, SLOW = 5, 0.01, 0.01
PLAIN = sgd(RATE, momentum=0.9, weight_decay=5e-4)
# Joint training has no method to slow its tower, so its optimiser does.
SLOWED = by_name((("head/.*", PLAIN), (".*", sgd(SLOW * RATE, momentum=0.9, weight_decay=5e-4))))
ROWS = (
    "class names", "slow tower, not aligned", "SLCA", "SLCA++, not aligned", "SLCA++", "joint",
)  # fmt: skip
ALIGNED = (("slow tower, not aligned", "SLCA"), ("SLCA++, not aligned", "SLCA++"))


class Of(NamedTuple):
    """A stream: its data, passes over a task, examples of a batch, all that in words."""

    source: Source
    epochs: int
    batch: int
    protocol: str

    def learner(self, scenario: Scenario):
        """A tower under a head that trains."""
        if self.source.name == "digits":
            return with_trained_head(from_clip(clip.load(weights_folder("mini")), scenario))
        encoder = bert.load("sentence-transformers/all-MiniLM-L6-v2")
        return with_trained_head(from_bert(encoder, scenario))


def of(stream: str, data: str) -> Of:
    """The stream of this name."""
    if stream == "digits":
        words = (
            "digits, 5 tasks of two, image tower of `mini`, 10 epochs, batch 32; 360 test images"
        )
        return Of(digits(), 10, 32, words)
    source = few(data_set(clinc150, Path(data) / "clinc150"), {"train": 10, "val": 1, "test": 5})
    words = (
        "CLINC150, 5 tasks of thirty intents, MiniLM, 10 sentences an intent, 2 epochs, batch 30; "
        "750 test sentences"
    )
    return Of(source, 2, 30, words)


def mean(R: list | np.ndarray) -> float:
    """Of the tasks, which have equally many test examples."""
    return float(np.mean(np.array(R, float)))


def learnt(task: Of, scenario: Scenario, seed: int, optimiser, *methods, columns: str) -> Stream:
    """A pass over all tasks, scored after the last."""
    how = Training(epochs=task.epochs, batch=task.batch, optimiser=optimiser)
    return Stream(
        scenario, task.learner(scenario), methods=methods, problem=classification(columns),
        training=how, deploys=(Deploy(LAST, always=False),), seed=seed,
    ).run()  # fmt: skip


def figures(task: Of, seed: int) -> Iterator[tuple[dict[str, float], float]]:
    """Accuracies of one seed by row, and processor seconds of the training behind them."""
    classes = len(task.source.classes)
    order = class_order(classes, seed)
    scenario = class_incremental(task.source, TASKS, order)
    for (before, label), method in zip(ALIGNED, (slca(SLOW), slcapp()), strict=True):
        began = time.process_time()
        stream = learnt(task, scenario, seed, PLAIN, method, columns="own")
        unaligned = {**stream.last, **stream.memory[0].head}
        found = {
            before: mean(stream.measure(unaligned, stream.test)[0]),
            label: mean(stream.outcomes[LAST].matrix[-1]),
        }
        if label == "SLCA":
            found["class names"] = mean(stream.measure(stream.base, stream.test)[0])
        yield found, time.process_time() - began
    began = time.process_time()
    whole = class_incremental(task.source, 1, order)
    stream = learnt(task, whole, seed, SLOWED, columns="all")
    yield {"joint": mean(stream.outcomes[LAST].matrix[-1])}, time.process_time() - began


Row = dict[str, float]  # seed -> accuracy


def points(one: Row, other: Row) -> np.ndarray:
    """What the first has more than the other, of the seeds that both have."""
    return 100 * np.array([one[s] - other[s] for s in sorted(set(one) & set(other))])


def recovered(rows: dict[str, Row], before: str, after: str) -> str:
    """What alignment changes, and how far joint training is."""
    apart, gap = points(rows[after], rows[before]), points(rows["joint"], rows[before])
    return (
        f"* {after}: alignment changes {apart.mean():+.1f} ± {deviation(apart):.1f} points "
        f"({(apart > 0).sum()} of {len(apart)} seeds); without it, joint training is "
        f"{gap.mean():+.1f} away (seeds: {len(gap)})"
    )


def table(report: dict) -> str:
    """Rows and what alignment changes."""
    rows = {k: report["accuracy"].get(k, {}) for k in ROWS}
    lines = ["| Method | Accuracy % | Seeds |", "| :-- | --: | --: |"]
    for k, v in rows.items():
        lines.append(f"| {k} | {percent(list(v.values()))} | {len(v)} |")
    claims = [recovered(rows, before, after) for before, after in ALIGNED]
    head = (
        f"`{report['command']}`: {report['protocol']}; {report['processor_seconds']:.0f} processor "
        "seconds of cores shared with other work:"
    )
    return "\n\n".join([head, "\n".join(lines), "\n".join(claims)])


def write_page() -> None:
    """The table of the page."""
    fill(PAGE, {"slca": table(json.loads(RESULT.read_text()))})


def main() -> None:
    if sys.argv[1:2] == ["page"]:
        return write_page()
    chosen = options(stream="clinc150", data=".", seeds=3, out=str(RESULT))
    known("stream", [chosen["stream"]], ("digits", "clinc150"))
    task, out = of(chosen["stream"], chosen["data"]), Path(chosen["out"])
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if report.get("protocol", task.protocol) != task.protocol:
        raise SystemExit(f"{out} is of {report['protocol']}: give another out.")
    report |= {
        "schema": "jaxmerge.slca/1", "command": "python experiments/slca.py data=DATA",
        "protocol": task.protocol, "versions": versions(), "machine": machine(),
        "settings": {"slow tower, not aligned": repr(PLAIN), "SLCA": repr(slca(SLOW)),
                     "SLCA++": repr(slcapp()), "joint": repr(SLOWED)},
    }  # fmt: skip
    rows: dict[str, dict[str, float]] = report.setdefault("accuracy", {})
    for seed in range(chosen["seeds"]):
        if all(str(seed) in rows.get(k, {}) for k in ROWS):
            continue
        for found, seconds in figures(task, seed):
            for k, accuracy in found.items():
                rows.setdefault(k, {})[str(seed)] = accuracy
            report["processor_seconds"] = report.get("processor_seconds", 0.0) + seconds
            checkpoint.replace(out, json.dumps(report, indent=1) + "\n")
            print(seed, {k: round(100 * a, 1) for k, a in found.items()}, f"{seconds:.0f} s",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
