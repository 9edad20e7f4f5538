"""An experiment: every setting that decides its figures, and how the parts are built from them.

A file of ``experiments/`` subclasses `Experiment` with its own settings and its `scenario` and
`learner`, and defines ``get_config()``; `jaxmerge.commands.run` does the rest.  The settings are
plain JSON values, kept in the run folder, so that a run can be resumed, and refused when they
changed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jaxmerge as jm
from jaxmerge.continual.learner import Learner
from jaxmerge.continual.loop import Deploy
from jaxmerge.continual.scenario import Scenario
from jaxmerge.continual.strategies import strategy
from jaxmerge.continual.strategy import Strategy
from jaxmerge.continual.train import Training
from jaxmerge.core import Leaves
from jaxmerge.errors import closest

FACTORS = {
    "MagMax": (0.2, 0.35, 0.5, 0.65, 0.8),
    "RandMix": (0.35, 0.5, 0.75, 1.0, 1.25),
    "TIES": (0.35, 0.5, 0.65, 0.8, 1.0),
    "task arithmetic": (0.05, 0.1, 0.15, 0.2, 0.3),
}
MAGMAX = ("MagMax", "sequential")  # the model that a run saves


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings shared by all experiments; subclasses add theirs and build the parts.

    Attributes:
        seed, seeds: the first seed and how many; each has its own class order and shuffles.
        epochs, batch, lr, warmup, weight_decay, clip: of every task, see `Training`.
        strategy, strategy_settings: see `jaxmerge.continual.strategies`.
        factors: merge factors tried on the validation split, by method; the average has none.
        density: share of entries that TIES keeps.
        evaluation_batch: examples evaluated at once.
        version: of jaxmerge.
    """

    name: ClassVar[str] = "experiment"

    seed: int = 0
    seeds: int = 3
    epochs: int = 3
    batch: int = 32
    lr: float = 3e-4
    warmup: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    strategy: str = "finetune"
    strategy_settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    factors: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=FACTORS.copy)
    density: float = 0.2
    evaluation_batch: int = 128
    version: str = jm.__version__

    def scenario(self, seed: int) -> Scenario:
        """The stream of one seed."""
        raise NotImplementedError(f"{type(self).__name__} must define scenario(seed).")

    def learner(self, scenario: Scenario) -> Learner:
        """The model, under the head of the scenario; the same for all seeds."""
        raise NotImplementedError(f"{type(self).__name__} must define learner(scenario).")

    def how(self) -> Training:
        """How every task is trained."""
        return Training(
            epochs=self.epochs, batch=self.batch, rate=self.lr, warmup=self.warmup,
            weight_decay=self.weight_decay, clip=self.clip,
        )  # fmt: skip

    def adapt(self) -> Strategy:
        """What is added to plain fine-tuning."""
        return strategy(self.strategy, **self.strategy_settings)

    def deploys(self) -> tuple[Deploy, ...]:
        """MagMax after every task, the others at the end of the stream."""
        f = self.factors
        ties = lambda factor: jm.ties(self.density, factor)
        return (
            Deploy("MagMax", jm.magmax, f["MagMax"]),
            Deploy("average", jm.average, (1.0,), always=False),
            Deploy("RandMix", jm.randmix, f["RandMix"], always=False),
            Deploy("TIES", ties, f["TIES"], always=False),
            Deploy("task arithmetic", jm.task_arithmetic, f["task arithmetic"], always=False),
        )

    def save(self, merged: dict[tuple[str, str], Leaves], folder: Path) -> None:
        """Keep a merged model of the first seed: MagMax on sequential fine-tunes, by leaf name."""
        from jaxmerge.continual import checkpoint

        checkpoint.save(folder / "merged.safetensors", dict(merged[MAGMAX]))

    def check(self) -> None:
        """Raise ValueError for settings out of range, all of them named."""
        wrong = [
            f"{k} must be at least 1, got {getattr(self, k)}"
            for k in ("seeds", "epochs", "batch")
            if getattr(self, k) < 1
        ]
        if self.seed < 0:
            wrong.append(f"seed must not be negative, got {self.seed}")
        if not 0 < self.lr <= 1:
            wrong.append(f"lr must be in (0, 1], got {self.lr}")
        if wrong:
            raise ValueError("; ".join(wrong) + ".")


def changed(experiment: Experiment, settings: dict[str, Any]) -> Experiment:
    """The experiment with other settings.

    Raises:
        ValueError: an unknown setting (the closest names are shown) or one of another type.

    >>> changed(Experiment(), {"epochs": 5}).epochs
    5
    >>> changed(Experiment(), {"epoch": 5})
    Traceback (most recent call last):
    ValueError: No setting 'epoch': did you mean epochs?
    """
    known = {f.name for f in dataclasses.fields(experiment)}
    unknown = [k for k in settings if k not in known]
    if unknown:
        hints = [f"No setting {k!r}: {closest(k, known)}" for k in unknown]
        raise ValueError("; ".join(hints))
    typed, wrong = {}, []
    for k, v in settings.items():
        old = getattr(experiment, k)
        if isinstance(old, float) and isinstance(v, int) and not isinstance(v, bool):
            v = float(v)
        if isinstance(old, tuple) and isinstance(v, list):
            v = tuple(v)
        if isinstance(old, dict) and isinstance(v, dict):
            v = {**old, **{n: tuple(x) if isinstance(x, list) else x for n, x in v.items()}}
        if old is not None and type(v) is not type(old):
            wrong.append(f"{k} is a {type(old).__name__}, got {v!r}")
        typed[k] = v
    if wrong:
        raise ValueError("; ".join(wrong) + ".")
    return dataclasses.replace(experiment, **typed)
