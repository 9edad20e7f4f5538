"""SCoLe on digits: 60 short tasks of two random classes each; does knowledge add up?

    jaxmerge run experiments/scole.py
    jaxmerge run ... --set tasks=500 --set classes=2

Every task draws `classes` of the ten digits and trains one pass over their examples, the loss
masked to them ("group masking").  Classes come back, so that a model that forgets a little each
time may still learn in the long run.  Accuracy after task t over *all* tasks, seen or not, is the
curve of the paper: ``R[t].mean()`` of ``results.json``.

    python experiments/scole.py experiments/results/scole.json        # the curve as a table

Expected: the paper's claim, accuracy over all classes rises with the number of tasks (MNIST from
random weights, 500 tasks, Adam, group masking).  So here the image tower starts from random
weights, too, under `mini`'s frozen text head; ``scratch=false`` starts from `mini`.

Obtained (one seed, ``experiments/results/scole.json``; accuracy over all tasks in %):

    ==========  ====  ====  ====  ====  ====  ====
    after task     1     6    10    19    33    60
    ==========  ====  ====  ====  ====  ====  ====
    last model   8.7   6.7   8.3   8.3  16.6  24.1
    MagMax       6.7   6.7   8.3   8.3  14.8  17.7
    EMA          8.7   6.7   8.3   8.3  15.9  22.6
    ==========  ====  ====  ====  ====  ====  ====

It rises, as the paper says, and has not levelled off: chance is 10 %, joint training was not run.
The merges lag behind the last model.

Time and hardware: 7 minutes on two CPU cores that had other work to do.

Source: Lesort et al., Challenging Common Assumptions about Catastrophic Forgetting (SCoLe), CoLLAs
2023.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, ClassVar

import jax
import numpy as np

from jaxmerge.cli.quickstart import weights_folder
from jaxmerge.data.digits import digits
from jaxmerge.data.streams.builders import recurring
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.studies.results import Results
from jaxmerge.training.learner import Learner, from_clip

MERGES = {
    "MagMax": {"method": "magmax", "factor": 0.5},
    "EMA": {"method": "ema", "decay": 0.9},
}


@dataclasses.dataclass(frozen=True)
class Scole(Experiment):
    """Settings beside those of every experiment.

    Attributes:
        tasks: how many.
        classes: of each task.
        model: "mini" or a CLIP folder; gives the architecture and the head.
        scratch: start from random weights instead of the model's.
    """

    name: ClassVar[str] = "scole"

    seeds: int = 1
    epochs: int = 1
    lr: float = 1e-3
    merges: dict[str, Any] = setting(MERGES)
    streams: dict[str, Any] = setting(
        {"sequential": {"start": "last", "deploys": ["last model", *MERGES]}}
    )
    baselines: list[str] = setting(["zero-shot"])
    tasks: int = 60
    classes: int = 2
    model: str = "mini"
    scratch: bool = True

    def scenario(self, seed: int) -> Scenario:
        return recurring(digits(), self.tasks, self.classes, seed)

    def learner(self, scenario: Scenario) -> Learner:
        from jaxmerge.models import clip

        model = clip.load(weights_folder(self.model))
        clip_learner = from_clip(model, scenario)
        if not self.scratch:
            return clip_learner
        fresh = clip.init(model.config, jax.random.key(self.seed))
        return clip_learner._replace(params={n: fresh[n] for n in clip_learner.params})


def get_config() -> Experiment:
    """The experiment."""
    return Scole()


def curve(results: Results, points: int = 8) -> str:
    """Accuracy over all tasks after some of them, in %, mean over the seeds, in Markdown."""
    rows = [e for e in results.seeds[0].entries if e.finetunes == "sequential"]
    tasks = len(results.seeds[0].tasks)
    at = np.unique(np.geomspace(1, tasks, points).round().astype(int))
    lines = ["| after task | " + " | ".join(map(str, at)) + " |", "|:--|" + "--:|" * len(at)]
    for row in rows:
        matrices = [
            np.array(next(e for e in s.entries if e.label == row.label).matrix, float)
            for s in results.seeds
        ]
        means = 100 * np.mean([m[at - 1].mean(1) for m in matrices], axis=0)
        lines.append(f"| {row.label} | " + " | ".join(f"{x:.1f}" for x in means) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(curve(Results.from_json(sys.argv[1])))
