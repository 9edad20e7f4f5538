"""`jaxmerge quickstart`: MagMax on handwritten digits, from fine-tuning to a report.

Five tasks of two digits each arrive in turn; the image tower of the embedded CLIP `mini` is
fine-tuned on one after another (and, for comparison, on each alone); the task vectors are merged
after every task.  Three seeds, each with its own class order.

A run folder holds ``config.json`` (what was asked for), ``results.json``, ``report.html``,
``plots/*.png``, ``merged.safetensors`` (MagMax on sequential fine-tunes, first seed) and the same
model as a folder ``merged/`` that `jaxmerge.models.clip.load` and transformers read.  While it
works, ``state/`` holds checkpoints; ``--resume`` goes on after the last finished task.
"""

from __future__ import annotations

import dataclasses
import json as jsonlib
import shutil
import time
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jaxmerge as jm
from jaxmerge.commands.progress import Bars
from jaxmerge.continual import checkpoint, results
from jaxmerge.continual.learner import Learner, from_clip
from jaxmerge.continual.loop import Deploy
from jaxmerge.continual.machine import machine, peak_memory, versions
from jaxmerge.continual.results import Results, SeedRun, summarize
from jaxmerge.continual.scenario import Scenario, class_incremental, class_order
from jaxmerge.continual.study import run_seed, steps_of
from jaxmerge.continual.train import Training
from jaxmerge.data.digits import digits
from jaxmerge.data.sources import Source
from jaxmerge.errors import UserError

MAGMAX = ("MagMax", "sequential")  # the model that a run saves


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the figures of a quickstart; kept in the run's config.json.

    Attributes:
        seed, seeds: the first seed and how many; each has its own class order and shuffles.
        tasks: how many tasks the ten digits are split into.
        epochs, batch, lr, warmup, weight_decay, clip: of every task, see `Training`.
        factors: merge factors tried on the validation split, by method; the average has none.
        density: share of entries that TIES keeps.
        model: "mini" or a folder in Hugging Face's layout, and the digest of its weights.
        version: of jaxmerge.
    """

    seed: int = 0
    seeds: int = 3
    tasks: int = 5
    epochs: int = 3
    batch: int = 32
    lr: float = 3e-4
    warmup: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    factors: dict[str, tuple[float, ...]] = dataclasses.field(
        default_factory=lambda: {
            "MagMax": (0.2, 0.35, 0.5, 0.65, 0.8),
            "RandMix": (0.35, 0.5, 0.75, 1.0, 1.25),
            "TIES": (0.35, 0.5, 0.65, 0.8, 1.0),
            "task arithmetic": (0.05, 0.1, 0.15, 0.2, 0.3),
        }
    )
    density: float = 0.2
    model: str = "mini"
    weights: str = ""
    version: str = jm.__version__

    def training(self) -> Training:
        """How every task is trained."""
        return Training(
            epochs=self.epochs, batch=self.batch, rate=self.lr, warmup=self.warmup,
            weight_decay=self.weight_decay, clip=self.clip,
        )  # fmt: skip

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


QUICK = {"seeds": 1, "epochs": 1}


def run(
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    seed: int | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    quick: bool = False,
    quiet: bool = False,
    json: bool = False,
    model: str | None = None,
) -> Results:
    """Run, or go on with, a quickstart, and print its table.

    Args:
        out: run folder to make; by default runs/<date>-quickstart.
        resume: run folder to go on with; options that contradict its config.json are refused.
        seed, seeds, epochs, lr: see `Config`; None is its default.
        quick: one seed and one epoch unless asked otherwise, for a check that all works.
        quiet: no progress bars.
        json: print results.json instead of the table.
        model: a CLIP folder in Hugging Face's layout instead of `mini`.

    Raises:
        UserError: wrong options, a folder that is in use or is not a run.
    """
    asked: dict[str, Any] = {"seed": seed, "seeds": seeds, "epochs": epochs, "lr": lr}
    asked = {k: v for k, v in asked.items() if v is not None}
    if resume is not None and out is not None:
        raise UserError("Give --out for a new run or --resume for an old one, not both.")
    if quick:
        asked = {**QUICK, **asked}
    if model is not None:
        asked["model"] = str(model)
    check_options(asked)
    folder = open_run(resume, asked) if resume is not None else new_run(out, asked)
    config = read_config(folder)
    if not (folder / "results.json").exists():
        try:
            execute(config, folder, quiet or json)
        except KeyboardInterrupt:
            tell(f"Stopped. To go on:  jaxmerge quickstart --resume {folder}")
            raise
    found = Results.from_json(folder / "results.json")
    show(found, folder, json)
    return found


def check_options(asked: dict[str, Any]) -> None:
    """Raise one UserError that names every option out of range."""
    wrong = [f"--{k} must be at least 1, got {asked[k]}" for k in ("seeds", "epochs")
             if asked.get(k, 1) < 1]  # fmt: skip
    if asked.get("seed", 0) < 0:
        wrong.append(f"--seed must not be negative, got {asked['seed']}")
    if not 0 < asked.get("lr", 1e-4) <= 1:
        wrong.append(f"--lr must be in (0, 1], got {asked['lr']}")
    if wrong:
        raise UserError("; ".join(wrong) + ".")


# ------------------------------------------------------------ the run folder


def new_run(out: str | Path | None, asked: dict[str, Any]) -> Path:
    """Make the folder and its config.json."""
    if out is None:
        stem = Path("runs") / f"{datetime.now():%Y-%m-%d}-quickstart"
        names = (stem if i == 1 else stem.with_name(f"{stem.name}-{i}") for i in range(1, 10_000))
        folder = next(f for f in names if not f.exists())
    else:
        folder = Path(out)
        if (folder / "config.json").exists():
            raise UserError(
                f"{folder} holds a run already: go on with --resume {folder}, or give another "
                "--out."
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is in use: give an empty or new folder as --out.")
    config = Config(**asked)
    config = dataclasses.replace(config, weights=digest(weights_folder(config.model)))
    load_model(config)  # so that a broken model leaves no run behind
    folder.mkdir(parents=True, exist_ok=True)
    text = jsonlib.dumps(results.to_plain(config), indent=1) + "\n"
    checkpoint.replace(folder / "config.json", text)
    return folder


def open_run(resume: str | Path, asked: dict[str, Any]) -> Path:
    """Check that the folder is a run of this code and of these options."""
    folder = Path(resume)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is not a run: it has no config.json. Start one with "
            f"jaxmerge quickstart --out {folder}."
        )
    if (folder / "results.json").exists():
        return folder
    old = read_config(folder)
    now = dataclasses.replace(
        old, **asked, version=jm.__version__, weights=digest(weights_folder(old.model))
    )
    changed = [
        f"{f.name}: {getattr(old, f.name)!r} in the run, {getattr(now, f.name)!r} now"
        for f in dataclasses.fields(Config)
        if getattr(old, f.name) != getattr(now, f.name)
    ]
    if changed:
        raise UserError(
            f"{folder} cannot go on with another configuration ({'; '.join(changed)}). "
            "Leave these options out, or start a new run."
        )
    return folder


def read_config(folder: Path) -> Config:
    """The configuration of a run folder."""
    try:
        data = jsonlib.loads((folder / "config.json").read_text())
        data["factors"] = {k: tuple(v) for k, v in data["factors"].items()}
        return Config(**data)
    except (jsonlib.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}/config.json is not of a quickstart run ({error}).") from None


def weights_folder(model: str) -> Path:
    """Where a model lies."""
    folder = (
        Path(str(resources.files("jaxmerge"))) / "assets" / "mini" if model == "mini" else model
    )
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"No model at {folder}: expected config.json and model.safetensors there.")
    return Path(folder)


def digest(folder: Path) -> str:
    """A short digest of the weights file."""
    import hashlib

    try:
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        raise UserError(f"{folder} has no model.safetensors.") from None


def load_model(config: Config) -> Any:
    """The pretrained CLIP of a configuration."""
    from jaxmerge.models import clip

    return clip.load(weights_folder(config.model))


# ------------------------------------------------------------ the work


def execute(config: Config, folder: Path, quiet: bool) -> None:
    """Run all seeds that are left, then write everything."""
    began = time.perf_counter()
    spent = folder / "state" / "seconds.json"  # wall time of earlier attempts
    before = jsonlib.loads(spent.read_text()) if spent.exists() else 0.0
    source, model = digits(), load_model(config)
    training = config.training()
    runs: list[SeedRun] = []
    with Bars(quiet) as bars:
        seeds = range(config.seed, config.seed + config.seeds)
        streams = [stream_of(config, source, seed) for seed in seeds]
        steps = [steps_of(s, training) for s in streams]
        bars.total(sum(steps))
        learner = from_clip(model, streams[0])  # the head does not depend on the class order
        for k, seed in enumerate(seeds):
            bars.seed(k + 1, config.seeds)
            keep = model if k == 0 else None
            runs.append(one_seed(config, seed, streams[k], learner, folder, bars, keep))
            bars.reach(sum(steps[: k + 1]))  # also where tasks were done before
            checkpoint.replace(spent, jsonlib.dumps(before + time.perf_counter() - began))
        bars.note("writing the report")
        seconds = total_seconds(runs)
        found = Results(
            experiment="quickstart",
            scenario=streams[0].name,
            classes=list(streams[0].classes),
            recipe=results.to_plain(config),
            seeds=runs,
            summary=summarize(runs),
            versions=versions(),
            machine=machine(),
            seconds={**seconds, "total": before + time.perf_counter() - began},
            peak_memory=peak_memory(),
        )
        write(found, folder)
    shutil.rmtree(folder / "state", ignore_errors=True)


def stream_of(config: Config, source: Source, seed: int) -> Scenario:
    """The tasks of one seed."""
    return class_incremental(source, config.tasks, class_order(len(source.classes), seed))


def one_seed(
    config: Config, seed: int, scenario: Scenario, learner: Learner, folder: Path, bars: Bars, keep
) -> SeedRun:
    """One seed, or its figures if it is finished already."""
    done = folder / "state" / f"seed_{seed}.json"
    if done.exists():
        return results.from_plain(SeedRun, jsonlib.loads(done.read_text()), str(done))
    store = folder / "state" / f"seed_{seed}"
    run, merged = run_seed(
        scenario, learner, config.deploys(), seed=seed, training=config.training(),
        store=store, batch=90, watch=bars.step,
    )  # fmt: skip
    if keep is not None:
        save_merged(keep, merged[MAGMAX], folder)
    checkpoint.replace(done, jsonlib.dumps(results.to_plain(run)))
    shutil.rmtree(store, ignore_errors=True)
    return run


def save_merged(model: Any, merged: Any, folder: Path) -> None:
    """The merged model as merged/ (config, tokenizer, weights) and as merged.safetensors."""
    from jaxmerge.models import clip

    params = {**model.params, **merged}
    clip.save(dataclasses.replace(model, params=params), folder / "merged")
    shutil.copyfile(folder / "merged" / "model.safetensors", folder / "merged.safetensors")


def total_seconds(runs: list[SeedRun]) -> dict[str, float]:
    """Seconds of every phase over all seeds."""
    names = dict.fromkeys(n for r in runs for n in r.seconds)
    return {n: sum(r.seconds.get(n, 0.0) for r in runs) for n in names}


def write(found: Results, folder: Path) -> None:
    """Plots, report and, last of all, results.json: a run with results is finished."""
    from jaxmerge.report import html, plots

    plots.write_png(found, folder / "plots")
    html.write(found, folder / "report.html")
    found.to_json(folder / "results.json")


def show(found: Results, folder: Path, json: bool) -> None:
    """The table on standard output, or the results as JSON."""
    if json:
        print(found.to_json(), end="")
        return
    from rich.console import Console

    from jaxmerge.report import tables, words

    console = Console()
    console.print(tables.rich_table(found))
    console.print(words.headline(found))
    memory = f", {found.peak_memory / 1e9:.2f} GB" if found.peak_memory else ""
    console.print(f"{found.seconds['total']:.0f} s{memory}.  Report: {folder / 'report.html'}")


def tell(text: str) -> None:
    """A line on standard error."""
    import sys

    print(text, file=sys.stderr)
