"""Commands that merge, look at, convert and use models: their options, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from jaxmerge.cli.typer_app import AllowPickle, Json, Profile, Quiet, Refs, command


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
    profile: Profile = None,
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
    names: Annotated[
        str | None,
        Option(help="hf, tunix, maxtext, maxtext-unscanned, easydel: under its names."),
    ] = None,
    like: Annotated[
        Path | None,
        Option(
            help="Folder with the config and tokenizer, where REF has none; to orbax, or an Orbax "
            "checkpoint whose nesting is taken."
        ),
    ] = None,
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
    text: Annotated[
        str | None, Option(help="Column of the texts, in a table.  Default: text.")
    ] = None,
    label: Annotated[
        str | None, Option(help="Column of the labels, in a table.  Default: label.")
    ] = None,
    split: Annotated[
        str | None, Option(help="Column that says train, val or test, in a table.")
    ] = None,
    classes: Annotated[
        Path | None,
        Option(help="YAML or JSON file: folder or label -> name for prompts, or a list of names."),
    ] = None,
    templates: Annotated[
        list[str] | None, Option(help='Prompt, as "a photo of a {}."; repeatable.')
    ] = None,
    truncate: Annotated[
        bool, Option("--truncate", help="Cut names of classes that are too long in prompts.")
    ] = False,
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
    name: Annotated[str | None, Argument(help="One of them: its docstring and arguments.")] = None,
    json: Json = False,
) -> None:
    """List methods, optimisers, problems and models by name, or explain one."""
