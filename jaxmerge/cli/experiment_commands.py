"""Commands that run experiments and show what came out: their options, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from jaxmerge.cli.typer_app import Json, Profile, Quiet, command


@command("quickstart")
def quickstart(
    out: Annotated[
        Path | None, Option(help="Run folder.  Default: runs/<date>-quickstart.")
    ] = None,
    resume: Annotated[
        Path | None, Option(help="Go on with an interrupted run from its last finished task.")
    ] = None,
    seed: Annotated[int | None, Option(help="First seed.  Default: 0.", min=0)] = None,
    seeds: Annotated[
        int | None, Option(help="How many seeds (class orders).  Default: 3.", min=1)
    ] = None,
    epochs: Annotated[int | None, Option(help="Epochs a task.", min=1)] = None,
    lr: Annotated[float | None, Option(help="Peak learning rate.")] = None,
    model: Annotated[
        str | None,
        Option(help="`mini`, or a CLIP folder in Hugging Face's layout, instead of `mini-2k`."),
    ] = None,
    quick: Annotated[bool, Option("--quick", help="A short form: one seed, one epoch.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """MagMax on handwritten digits, from fine-tuning to a report, in two minutes on a laptop."""


@command("run")
def run(
    experiment: Annotated[Path, Argument(help="A Python file with get_config().")],
    set: Annotated[
        list[str] | None, Option("--set", help="key=value, in place of the file's; repeatable.")
    ] = None,
    out: Annotated[Path | None, Option(help="Run folder.  Default: runs/<date>-<name>.")] = None,
    resume: Annotated[
        Path | None, Option(help="Go on with an interrupted run from its last checkpoint.")
    ] = None,
    log: Annotated[
        str | None, Option(help="Curves beside the terminal: tensorboard or wandb.")
    ] = None,
    save_every: Annotated[
        float, Option(help="Seconds between checkpoints within a task.", min=0)
    ] = 60.0,
    store: Annotated[
        Path | None, Option(help="Result store to add the cells to, for `jaxmerge report`.")
    ] = None,
    profile: Profile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run an experiment: fine-tune task after task, merge, evaluate, report.

    EXPERIMENT is a Python file with get_config(), such as those of experiments/. Every setting can
    be given with --set: streams.LwF.methods.lwf.strength=0.5; streams.LwF=null leaves a stream out.
    """


@command("sweep")
def sweep(
    experiment: Annotated[Path, Argument(help="A Python file with get_config().")],
    grid: Annotated[
        list[str],
        Option(
            "--grid",
            help="key=value,value or key=low:high:step; repeatable.  Keys: method, factor and "
            "other settings of merges, stream, seed, order, and every setting of the experiment.",
        ),
    ],
    set: Annotated[
        list[str] | None, Option("--set", help="key=value for all runs; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, Option(help="Result store to make.  Default: sweeps/<date>-<name>.")
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on in a store: only the cells that are missing.")
    ] = False,
    ray: Annotated[bool, Option("--ray", help="Run on a Ray cluster, or on Ray here.")] = False,
    keep_models: Annotated[
        bool,
        Option(help="Keep every task's model in the store: methods added later train nothing."),
    ] = True,
    profile: Profile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a grid: methods and their settings share one training, seeds and others are runs.

    Start it in several terminals, or on several machines with one disk, to fill one store
    together: with --resume --out S each takes what nobody else has.
    """


@command("report")
def report(
    stores: Annotated[
        list[Path], Argument(help="Run folders, sweep folders, results.json or Parquet files.")
    ],
    format: Annotated[
        str | None, Option(help="md, latex or html.  Default: a table for the terminal.")
    ] = None,
    metric: Annotated[
        str | None, Option(help="One figure only; settings that differ become columns.")
    ] = None,
    plot: Annotated[bool, Option("--plot", help="Write the pictures too.")] = False,
    out: Annotated[
        Path | None, Option(help="File for the table; folder with --plot (default: report).")
    ] = None,
    json: Json = False,
) -> None:
    """Tables and pictures from runs and sweeps, mean and spread over seeds and orders."""
