"""The command line: parsing only.  Each command imports what it needs when it is called.

What a user can mend (a wrong path, an unknown method, a broken file) ends with one line on standard
error and exit code 2; `JAXMERGE_TRACEBACK=1` shows where it came from.  Ctrl-C ends with 130.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import typer
from typer import Argument, Option

from jaxmerge.errors import reason
from jaxmerge.io.untrusted import printable

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

AllowPickle = Annotated[
    bool, Option("--allow-pickle", help="Read tensors from .bin and .pt, restricted.")
]
Json = Annotated[bool, Option("--json", help="Print machine-readable JSON and nothing else.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress bars.")]
Refs = Annotated[
    list[str],
    Argument(
        help="Folder, .safetensors or .gguf file, run folder, Orbax checkpoint, org/name@revision."
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from jaxmerge import __version__

        print(f"jaxmerge {__version__}")
        raise typer.Exit


def command(module: str, name: str | None = None) -> Callable[[Callable], Callable]:
    """A command whose options are a function's signature; `run` of a module gets them.

    An option that is not given (None) takes the default of `run`.

    The module is imported when the command is called, without a look for garbage, and none at the
    end: JAX makes a million objects that stay, and to go through them again and again takes a
    quarter of the time of a short command.
    """

    def register(signature: Callable) -> Callable:
        @functools.wraps(signature)
        def call(**options: Any) -> None:
            gc.disable()
            try:
                run = importlib.import_module(f"jaxmerge.cli.{module}").run
            finally:
                gc.enable()
                atexit.register(gc.freeze)
            given = {name: value for name, value in options.items() if value is not None}
            code = run(**given)
            raise typer.Exit(code if isinstance(code, int) else 0)

        return app.command(name)(call)

    return register


@app.callback()
def options(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Merge models, and learn task after task by merging, in JAX."""


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
            help="key=value,value or key=low:high:step; repeatable.  Keys: method, factor, stream, "
            "seed, order, and every setting of the experiment.",
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
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a grid: methods and factors share one training, seeds and settings are runs."""


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


@command("merge")
def merge(
    recipe: Annotated[Path, Argument(help="Recipe: jaxmerge's YAML or .py, or mergekit's YAML.")],
    out: Annotated[Path | None, Argument(help="Folder to write; not needed with --check.")] = None,
    check: Annotated[
        bool, Option("--check", help="Read headers only; print costs and every mismatch.")
    ] = False,
    resume: Annotated[bool, Option("--resume", help="Go on with an interrupted merge.")] = False,
    force: Annotated[bool, Option("--force", help="Replace an existing output.")] = False,
    dtype: Annotated[
        str | None, Option(help="Dtype of the output; overrides the recipe's.")
    ] = None,
    seed: Annotated[int | None, Option(help="Overrides the recipe's seed.")] = None,
    shard_size: Annotated[str, Option(help="Largest output file, e.g. 5GB.")] = "5GB",
    device: Annotated[
        str | None, Option(help="cpu, gpu or tpu.  Default: the best there is.")
    ] = None,
    devices: Annotated[
        int | None, Option(help="How many devices to spread leaves over.", min=1)
    ] = None,
    allow_pickle: AllowPickle = False,
    allow_import: Annotated[
        bool, Option("--allow-import", help="Run the Python files that a YAML recipe imports.")
    ] = False,
    strict: Annotated[
        bool, Option("--strict", help="Refuse keys of mergekit's YAML that nothing reads.")
    ] = False,
    tensor_union: Annotated[
        bool, Option("--tensor-union", help="Merge each leaf among the models that have it.")
    ] = False,
    tensor_intersection: Annotated[
        bool, Option("--tensor-intersection", help="Merge the leaves that all models have.")
    ] = False,
    overflow: Annotated[
        str | None,
        Option(help="Values beyond the output's dtype: raise, clip or allow.  Default: raise."),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Merge checkpoints of any size from files, leaf by leaf."""


@command("inspect")
def inspect(
    ref: Annotated[str, Argument(help="The model.")],
    norms: Annotated[bool, Option("--norms", help="Read the weights too: norms, NaN.")] = False,
    architecture: Annotated[
        bool, Option("--architecture", help="What is taken for what: layers, roles, ties.")
    ] = False,
    allow_pickle: AllowPickle = False,
    stored: Annotated[
        bool,
        Option("--stored", help="Leaves as in the files, packed ones of quantised models too."),
    ] = False,
    json: Json = False,
) -> None:
    """List the leaves of a model: names, shapes, dtypes, sizes."""


@command("compare")
def compare(
    models: Refs,
    base: Annotated[str | None, Option(help="theta_0; default: the first model.")] = None,
    out: Annotated[Path | None, Option(help="Folder for heat maps and JSON.")] = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Compare task vectors: cosines, sign conflicts, overlap, norms, effective rank."""


@command("diff")
def diff(
    a: Annotated[str, Argument(help="One model.")],
    b: Annotated[str, Argument(help="The other.")],
    top: Annotated[int, Option(help="How many leaves to show.", min=1)] = 20,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """What differs between two models: leaves, shapes, dtypes, largest differences.

    Exit code 0 if they are equal bit for bit, 1 if not."""


@command("lora", name="extract-lora")
def extract_lora(
    base: Annotated[str, Argument(help="theta_0.")],
    model: Annotated[str, Argument(help="The fine-tuned model.")],
    out: Annotated[Path, Argument(help="Folder for the adapter.")],
    rank: Annotated[int, Option(help="Greatest rank.", min=1)] = 16,
    modules: Annotated[
        str | None, Option(help="Regex of the leaves.  Default: all but embeddings and heads.")
    ] = None,
    energy: Annotated[
        float | None, Option(help="Keep no more ranks than hold this share of the change.")
    ] = None,
    save_rest: Annotated[
        bool,
        Option(
            "--save-rest/--no-save-rest",
            help="Save whole what changed besides: norms, biases, embeddings, heads.",
        ),
    ] = True,
    force: Annotated[bool, Option("--force", help="Replace an existing output.")] = False,
    allow_pickle: AllowPickle = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write the change of a fine-tuned model as a low-rank PEFT adapter."""


@command("convert")
def convert(
    ref: Annotated[str, Argument(help="The model.")],
    out: Annotated[Path, Argument(help="Folder to write, or a file that ends in .gguf.")],
    to: Annotated[str, Option(help="safetensors, orbax or gguf.")] = "safetensors",
    dtype: Annotated[
        str | None, Option(help="Dtype of floating leaves; of GGUF f32, f16, bf16 or q8_0.")
    ] = None,
    shard_size: Annotated[str, Option(help="Largest output file, e.g. 5GB.")] = "5GB",
    allow_pickle: AllowPickle = False,
    resume: Annotated[bool, Option("--resume", help="Go on with an interrupted one.")] = False,
    force: Annotated[bool, Option("--force", help="Replace an existing output.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a model in another form: shards, a dtype, with its adapter applied, Orbax, GGUF."""


@command("generate")
def generate(
    ref: Annotated[str, Argument(help="A decoder: folder, .gguf file, org/name.")],
    prompts: Annotated[
        list[str] | None, Argument(help="Texts to go on behind, or turns of a conversation.")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="Hold a conversation.")] = False,
    system: Annotated[str | None, Option(help="What the conversation begins with.")] = None,
    most: Annotated[int, Option(help="Tokens to write.")] = 256,
    temperature: Annotated[float, Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int, Option(help="Only so many most likely tokens; 0 for all.")] = 0,
    top_p: Annotated[float, Option(help="Only tokens that together have this probability.")] = 1.0,
    repetition_penalty: Annotated[float, Option(help="Above 1 against repetition.")] = 1.0,
    stop: Annotated[
        list[str] | None, Option("--stop", help="Text before which to end; repeatable.")
    ] = None,
    seed: Annotated[int, Option(help="Of the draws.")] = 0,
    dtype: Annotated[str, Option(help="float32 or bfloat16.")] = "float32",
    json: Json = False,
) -> None:
    """Let a language model write: behind a prompt, or in a conversation."""


@command("evaluate")
def evaluate(
    ref: Annotated[str, Argument(help="A decoder: folder, .gguf file, org/name.")],
    tasks: Annotated[
        str, Option(help="Tasks of lm-evaluation-harness, or YAML files of such; by commas.")
    ],
    limit: Annotated[int | None, Option(help="Examples of each task.", min=1)] = None,
    fewshot: Annotated[int | None, Option(help="Solved examples in front.", min=0)] = None,
    batch: Annotated[int, Option(help="Rows at once.", min=1)] = 16,
    chat: Annotated[bool, Option("--chat", help="Ask through the chat template.")] = False,
    dtype: Annotated[str, Option(help="float32 or bfloat16.")] = "float32",
    out: Annotated[Path | None, Option(help="JSON file for the figures.")] = None,
    json: Json = False,
) -> None:
    """Score a language model on tasks of lm-evaluation-harness (pip install jaxmerge\\[eval])."""


@command("stats")
def stats(
    ref: Annotated[str, Argument(help="A CLIP, or a BERT for sentences.")],
    data: Annotated[
        str,
        Option(
            help='"digits"; a folder of class folders; a .csv, .tsv or .jsonl of texts; '
            "DIR/NAME for DIR/NAME_train.npz and DIR/NAME_test.npz; the folder of CLINC150 or "
            "Banking77; DIR/NAME of TREC, SST-2, CR, MPQA or Subj."
        ),
    ],
    kind: Annotated[str, Option(help="fisher or gram.")],
    base: Annotated[
        str | None, Option(help="The full CLIP, when REF is an image tower alone.")
    ] = None,
    out: Annotated[Path | None, Option(help="File to write.  Default: beside the model.")] = None,
    text: Annotated[str, Option(help="Column of the texts, in a table.")] = "text",
    label: Annotated[str, Option(help="Column of the labels, in a table.")] = "label",
    samples: Annotated[int, Option(help="Training examples to measure on.")] = 256,
    batch: Annotated[int, Option(help="Examples at once.")] = 32,
    variant: Annotated[
        str, Option(help="Of Fisher: true (a gradient a class), sampled, empirical.")
    ] = "true",
    seed: Annotated[int, Option(help="Of the choice of examples.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Measure a model on data (Fisher, Gram matrices), so that merging needs no data."""


@command("methods")
def methods(
    name: Annotated[str | None, Argument(help="One method: its docstring and arguments.")] = None,
    json: Json = False,
) -> None:
    """List the registered methods, or explain one."""


def main() -> None:
    """Entry point of the `jaxmerge` command."""
    warnings.formatwarning = lambda text, *where, **line: f"warning: {printable(text)}\n"
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


@runtime_checkable
class _Usage(Protocol):
    """A usage error of the parser, whichever package of typer's it comes from."""

    exit_code: int

    def show(self) -> None: ...


def _explain(error: Exception) -> int:
    if isinstance(error, _Usage):
        error.show()
        return error.exit_code
    if os.environ.get("JAXMERGE_TRACEBACK") or not isinstance(
        error, ValueError | TypeError | KeyError | OSError | ImportError | MemoryError
    ):
        raise error
    if isinstance(error, MemoryError):
        print("error: there is not enough memory; --check says how much it takes.", file=sys.stderr)
        return 2
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and error.strerror:
        text = reason(error)
    print(f"error: {printable(text)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
