"""An experiment: every setting that decides its figures, and how the parts are built from them.

A file of ``experiments/`` subclasses `Experiment` with its own settings and its `scenario` and
`learner`, and defines ``get_config()``; ``jaxmerge run FILE`` does the rest.  A whole table of a
paper is one experiment with several *streams*, each a pass over the same tasks::

    merges = {                          # what may be deployed: a registered method, its arguments
        "MagMax": {"method": "magmax", "factor": [0.3, 0.5, 0.7]},      # several: tried, see below
        "TIES": {"method": "ties", "density": 0.2, "factor": 0.55, "always": False},
    }
    streams = {                         # how the tasks are learnt, and what is made of the models
        "sequential": {"start": "last", "deploys": ["last model", "MagMax", "TIES"]},
        "independent": {"start": "base", "deploys": ["MagMax", "TIES"]},
        "LwF": {"methods": {"lwf": {"strength": 0.3}}},
    }
    baselines = ["zero-shot", "joint"]

The keys of a stream (all optional) are those of `Plan`:

==========  ==================================================================  ==============
start       "base", "last" or "running", see `jaxmerge.continual.schedule`      "last"
deploys     labels of `merges`, or "last model"                                 ["last model"]
running     the merge that ``start: running`` reads                             the first merge
methods     what is added to fine-tuning: names of `jaxmerge.continual.methods`  {}
            with their settings, or a list of names
problem     what is learnt, of `jaxmerge.continual.problems`: a name, or         the
            ``{classification: {columns: seen}}``                               experiment's
training    fields of `Training` that differ in this stream; ``optimiser``      {}
            is a name, or ``{sgd: {rate: 0.1}}``
models      folder of fine-tuned models, one a task, that are not trained anew  none
vectors     describe its task vectors (keeps every model of the stream on disk) False
==========  ==================================================================  ==============

A merge is named like in ``jaxmerge methods``, or is a list of stages as in a recipe; ``factor`` may
be a list, whose values are tried on the validation split, or with ``each: True`` each a row of the
table; ``always: False`` merges and evaluates after the last task only; ``beyond: 4`` tries up to
four more factors past an end of the list while the best one stands there.

The settings are plain JSON values, kept in the run folder, so that a run can be resumed, and
refused when they changed.  On the command line: ``--set streams.LwF.methods.lwf.strength=0.5``, and
``--set streams.LwF=null`` takes a stream out.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from jaxmerge import __version__
from jaxmerge.continual.registry import problems
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Leaves
from jaxmerge.data.streams.scenario import Scenario, Task
from jaxmerge.errors import closest, listed, writing
from jaxmerge.evaluation.predict import evaluators_of
from jaxmerge.studies.seed import BASELINES, Plan
from jaxmerge.studies.settings import build_all
from jaxmerge.studies.stream_plans import deploy_of, plan_of
from jaxmerge.training.fit import OWN
from jaxmerge.training.how import OF_ADAMW, Training, beside_optimiser
from jaxmerge.training.model_learner import AnyLearner

Default = TypeVar("Default")
AnyExperiment = TypeVar("AnyExperiment", bound="Experiment")
MAGMAX = ("MagMax", "sequential")  # the model that a run saves


def setting(value: Default) -> Default:
    """A field whose default is a list or a mapping, copied for every experiment.

    Args:
        value: the default.

    >>> @dataclasses.dataclass
    ... class Own:
    ...     sizes: list[int] = setting([1, 2])
    >>> Own().sizes
    [1, 2]
    """
    return dataclasses.field(default_factory=lambda: copy.deepcopy(value))


MERGES = {
    "MagMax": {"method": "magmax", "factor": [0.2, 0.35, 0.5, 0.65, 0.8]},
    "average": {"method": "average", "always": False},
    "RandMix": {"method": "randmix", "factor": [0.35, 0.5, 0.75, 1.0, 1.25], "always": False},
    "TIES": {
        "method": "ties", "density": 0.2, "factor": [0.35, 0.5, 0.65, 0.8, 1.0], "always": False,
    },
    "task arithmetic": {
        "method": "task_arithmetic", "factor": [0.05, 0.1, 0.15, 0.2, 0.3], "always": False,
    },
}  # fmt: skip
STREAMS = {
    "sequential": {"start": "last", "deploys": ["last model", *MERGES], "vectors": True},
    "independent": {"start": "base", "deploys": [*MERGES], "vectors": True},
}


@dataclasses.dataclass(frozen=True)
class Experiment(abc.ABC):
    """Settings shared by all experiments; subclasses add theirs and build the parts.

    Attributes:
        seed, seeds: the first seed and how many; each has its own class order and shuffles.
        order: the seed that draws the order of the tasks in all runs; None: each its own.
        epochs, batch, lr, warmup, weight_decay, clip: of every task, see `Training`; a warmup of
            more than 1 is a number of steps.
        optimiser: see `Training`: a name, or ``{name: {setting: value}}``; lr, warmup, weight_decay
            and clip are then left as they are.  None: AdamW under a cosine, made of those four.
        problem: what is learnt: a name, or ``{name: {setting: value}}``; None: each task's
            cross-entropy over its own columns.
        merges, streams: see the module's docstring.
        baselines: of "zero-shot" (theta_0) and "joint" (all tasks at once).
        evaluation_batch: examples evaluated at once.
        version: of jaxmerge.

    >>> from jaxmerge.data.digits import digits
    >>> from jaxmerge.data.streams.scenario import class_incremental
    >>> @dataclasses.dataclass(frozen=True)
    ... class Digits(Experiment):
    ...     def scenario(self, seed):
    ...         return class_incremental(digits(), 5)
    ...
    ...     def learner(self, scenario):
    ...         raise NotImplementedError
    >>> experiment = Digits(epochs=1)
    >>> experiment.check()
    >>> [plan.name for plan in experiment.plans()]
    ['sequential', 'independent']
    >>> len(experiment.tasks_of(0)), experiment.how().epochs
    (5, 1)
    """

    name: ClassVar[str] = "experiment"
    movable: ClassVar[tuple[str, ...]] = ()  # settings that a resume may change: no finished task
    # would have other figures

    seed: int = 0
    seeds: int = 3
    order: int | None = None
    epochs: int = 3
    batch: int = 32
    lr: float = 3e-4
    warmup: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    optimiser: str | dict[str, Any] | None = None
    problem: str | dict[str, Any] | None = None
    merges: dict[str, Any] = setting(MERGES)
    streams: dict[str, Any] = setting(STREAMS)
    baselines: list[str] = setting(list(BASELINES))
    evaluation_batch: int = 128
    version: str = __version__

    @abc.abstractmethod
    def scenario(self, seed: int) -> Scenario:
        """The stream of tasks of one seed.

        Args:
            seed: draws the order of the tasks.
        """

    @abc.abstractmethod
    def learner(self, scenario: Scenario) -> AnyLearner:
        """The model, under the head of the scenario; the same for all seeds.

        Args:
            scenario: its classes are the columns of the head.
        """

    def tasks_of(self, seed: int) -> Scenario:
        """The scenario of one run: the order is that of `order`, or drawn by the seed.

        Args:
            seed: of the run.
        """
        return self.scenario(seed if self.order is None else self.order)

    def how(self, task: Task | None = None) -> Training:
        """How a task is trained; None stands for all tasks at once (joint training).

        Args:
            task: of the scenario, or None.
        """
        steps = (
            self.warmup > 1 and float(self.warmup).is_integer()
        )  # a number of steps, not a share
        return Training(
            epochs=self.epochs, batch=self.batch, rate=self.lr,
            warmup=int(self.warmup) if steps else self.warmup,
            weight_decay=self.weight_decay, clip=self.clip,
        ).under(self.optimiser)  # fmt: skip

    def problem_spec(self) -> Spec:
        """The problem of the streams that have none of their own, and of joint training.

        >>> class Toy(Experiment):
        ...     scenario = learner = lambda self, x: None
        >>> Toy(problem="classification").problem_spec() == problems.get("classification")()
        True
        """
        return OWN if self.problem is None else problems.from_settings(self.problem)

    def read(self, folder: Path) -> Leaves:
        """A fine-tuned model in a folder of its own; experiments say in which layout.

        Args:
            folder: of one model.
        """
        raise ValueError(f"{folder}: {self.name} reads fine-tuned models from files only.")

    def plans(self) -> tuple[Plan, ...]:
        """The streams, built from the settings.

        Raises:
            ValueError: a stream or a merge that cannot be built, all of them named.
        """
        merges = build_all("merge", self.merges, deploy_of)
        return tuple(build_all("stream", self.streams, partial(plan_of, self, merges)).values())

    def to_save(self, merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Which merged models of the first seed `save` gets, of (label, stream) of all.

        Args:
            merges: (label, stream) of all merged models.
        """
        return [saved(merges)] if merges else []

    def save(
        self, merged: dict[tuple[str, str], Leaves], folder: Path, learner: AnyLearner
    ) -> None:
        """Keep a merged model of the first seed, `saved`.

        ``merged/`` is a folder of the whole model where the learner can write one, as those of
        CLIP and BERT can; ``merged.safetensors`` has the leaves that were merged, by our names.

        Args:
            merged: (label, stream) -> weights, those that `to_save` chose.
            folder: of the run.
            learner: of the first seed.
        """
        from jaxmerge.training import checkpoint, data_parallel

        if not merged:
            return
        params = dict(merged[saved(merged)])
        checkpoint.save(folder / "merged.safetensors", params)
        if learner.write is not None and data_parallel.first():
            with writing(folder / "merged"):
                learner.write(params, folder / "merged")

    def check(self) -> None:
        """Raise ValueError for settings out of range, all of them named."""
        wrong = [
            f"{k} must be at least 1, got {getattr(self, k)}"
            for k in ("seeds", "epochs", "batch", "evaluation_batch")
            if getattr(self, k) < 1
        ]
        if self.seed < 0:
            wrong.append(f"seed must not be negative, got {self.seed}")
        if self.order is not None and (type(self.order) is not int or self.order < 0):
            wrong.append(f"order must be a whole number from 0 on or null, got {self.order!r}")
        if not 0 < self.lr <= 1:
            wrong.append(f"lr must be in (0, 1], got {self.lr}")
        wrong += [
            f"no baseline is named {b!r}: {closest(str(b), BASELINES)}"
            for b in self.baselines
            if b not in BASELINES
        ]
        if not self.streams and not self.baselines:
            wrong.append("there is no stream and no baseline, so nothing to run")
        fields = {f.name: f.default for f in dataclasses.fields(self)}
        beside = [n for n in ("lr", *OF_ADAMW[1:]) if getattr(self, n) != fields[n]]
        if self.optimiser is not None and beside:
            wrong.append(beside_optimiser(self.optimiser, beside))
        streams = self
        try:
            evaluators_of(self.problem_spec().build(), 2)
        except (TypeError, ValueError) as error:
            wrong.append(f"problem: {str(error).rstrip('.')}")
            streams = dataclasses.replace(self, problem=None)  # they would say it again
        if self.optimiser is not None and not wrong and self.how().optimiser is None:
            wrong.append("how() makes no use of optimiser: end it with .under(self.optimiser)")
        for build in (self.how, streams.plans):
            try:
                if build != self.how or not wrong:  # it would say the same again
                    build()
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            raise ValueError(listed(wrong))


def saved(merged: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Which merged model a run keeps: MagMax on sequential fine-tunes, or else the first one."""
    merged = list(merged)
    return MAGMAX if MAGMAX in merged else merged[0]
