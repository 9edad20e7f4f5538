"""mergekit's YAML through both programs: how many recipes give equal weights, and what differs.

    python -m venv ME && ME/bin/pip install torch mergekit        # an environment of its own
    python experiments/mergekit_parity.py --mergekit ME/bin/python [--only NAME] [--keep FOLDER]

Recipes of our own in the shapes of the published ones (mergekit's examples, model cards, its
documentation) on small random checkpoints of six families.  Both programs merge from the same files
into float32; leaves are compared by name and value, and so are layer counts and vocabulary sizes of
config.json.  Methods that draw random numbers cannot agree in their values: there the share of
entries that changed and the projection on the expected change must, within four deviations.

Writes `experiments/results/mergekit_parity.json` and the generated parts of docs/mergekit.md and of
the README.  Takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "experiments" / "results" / "mergekit_parity.json"
TOLERANCE = 1e-6  # of entries of order 0.1

WORKER = """
import json, sys, traceback, yaml, transformers
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
transformers.logging.set_verbosity_error()
for line in sys.stdin:
    task = json.loads(line)
    try:
        text = open(task["recipe"]).read()
        if task["kind"] == "multi":
            from mergekit.scripts.multimerge import main
            args = [task["recipe"], "--out-path", task["out"], "-I", task["out"] + ".there"]
            args += ["--no-write-model-card"]
            result = CliRunner().invoke(main, args, catch_exceptions=False)
            if result.exit_code: raise RuntimeError(result.output[-300:])
        elif task["kind"] == "raw":
            from mergekit.scripts.merge_raw_pytorch import main
            args = [task["recipe"], task["out"], *task["options"]]
            result = CliRunner().invoke(main, args, catch_exceptions=False)
            if result.exit_code: raise RuntimeError(result.output[-300:])
        else:
            config = MergeConfiguration.model_validate(yaml.safe_load(text))
            options = MergeOptions(random_seed=0, quiet=True, write_model_card=False)
            run_merge(config, task["out"], options)
        said = ""
    except BaseException as error:
        said = f"{type(error).__name__}: {str(error).strip()}"[:300]
    print("RESULT " + json.dumps([task["name"], said]), flush=True)
"""


class Case(NamedTuple):
    """One recipe.

    Attributes:
        documents: mergekit's YAML as data, one or more documents.
        kind: "yaml", "multi" (several documents) or "raw" (`mergekit-pytorch`).
        random: draws random numbers.
        why: what differs on purpose, where something does.
        options: of the command line, the same for both programs.
    """

    documents: list[dict]
    kind: str = "yaml"
    random: bool = False
    why: str = ""
    options: tuple[str, ...] = ()


# ------------------------------------------------------------ checkpoints


def families() -> dict[str, Any]:
    """Family -> its config, small."""
    import transformers as t

    wide = dict(hidden_size=16, intermediate_size=40, vocab_size=64, num_hidden_layers=4)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    return {
        "llama": t.LlamaConfig(**wide, **heads, tie_word_embeddings=False),
        "mistral": t.MistralConfig(**wide, **heads, tie_word_embeddings=False),
        "qwen2": t.Qwen2Config(**wide, **heads, tie_word_embeddings=True),
        "gpt2": t.GPT2Config(n_embd=16, n_layer=4, n_head=4, vocab_size=64, n_positions=64),
        "pythia": t.GPTNeoXConfig(**wide, num_attention_heads=4, max_position_embeddings=64),
        "t5": t.T5Config(
            d_model=16,
            d_kv=4,
            d_ff=32,
            num_layers=4,
            num_heads=4,
            vocab_size=64,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        ),
    }


def checkpoints(folder: Path) -> None:
    """A base and three fine-tunes of every family; `chat` models with tokens of their own."""
    import torch
    import transformers as t

    for name, config in families().items():
        if (folder / name).exists():
            continue
        torch.manual_seed(0)
        kind = t.T5ForConditionalGeneration if name == "t5" else t.AutoModelForCausalLM
        model = kind(config) if name == "t5" else kind.from_config(config)
        base = {n: p.detach().clone() for n, p in model.state_dict().items()}
        for i, who in enumerate(("base", "a", "b", "c")):
            if i:
                gen = torch.Generator().manual_seed(i)
                noise = lambda p, gen=gen: 0.02 * torch.randn(p.shape, generator=gen)
                model.load_state_dict({n: p + noise(p) for n, p in base.items()})
                model.tie_weights()
            model.save_pretrained(folder / name / who)
            tokenizer(folder / name / who, ["<pad>"])
    if (folder / "llama" / "chat1").exists():
        return
    for who, extra in (("chat1", ["<|im_start|>", "<|im_end|>"]), ("chat2", ["<|user|>"])):
        grown = t.AutoModelForCausalLM.from_pretrained(folder / "llama" / "a")
        grown.resize_token_embeddings(64 + len(extra), mean_resizing=False)
        with torch.no_grad():
            grown.get_input_embeddings().weight[64:] = 0.1 * torch.randn(len(extra), 16)
        grown.save_pretrained(folder / "llama" / who)
        tokenizer(folder / "llama" / who, ["<pad>", *extra])
    ties = {n: x.astype(np.float32) for n, x in _leaves(folder / "llama" / "base").items()}
    for i in (1, 2):  # changes as in bfloat16: few magnitudes, each many times
        rng = np.random.default_rng(i)
        steps = {n: rng.integers(-3, 4, x.shape) * np.float32(2**-6) for n, x in ties.items()}
        one = folder / "llama" / f"coarse{i}"
        one.mkdir()
        coarse = {n: np.float32(np.round(x * 64) / 64) + steps[n] for n, x in ties.items()}
        save_file(coarse, one / "model.safetensors", {"format": "pt"})
        _copy_config(folder / "llama" / "base", one)
    one = folder / "llama" / "coarse"
    one.mkdir()
    rounded = {n: np.float32(np.round(x * 64) / 64) for n, x in ties.items()}
    save_file(rounded, one / "model.safetensors", {"format": "pt"})
    _copy_config(folder / "llama" / "base", one)
    freq = {n: x for n, x in _leaves(folder / "llama" / "a").items()}
    freq |= {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32) for i in range(4)
    }
    one = folder / "llama" / "old"
    one.mkdir()
    save_file(freq, one / "model.safetensors", {"format": "pt"})
    _copy_config(folder / "llama" / "base", one)
    for who, drop in (("raw1", "lm_head.weight"), ("raw2", "model.norm.weight")):
        leaves = _leaves(folder / "llama" / {"raw1": "a", "raw2": "b"}[who])
        leaves.pop(drop)
        save_file(leaves, folder / "llama" / f"{who}.safetensors", {"format": "pt"})


def _copy_config(source: Path, target: Path) -> None:
    for path in source.glob("*.json"):
        if not path.name.endswith("index.json"):
            (target / path.name).write_bytes(path.read_bytes())


def tokenizer(folder: Path, added: list[str]) -> None:
    """A byte-pair tokenizer of 63 words, and the tokens that were added to it."""
    import tokenizers
    import transformers as t

    vocab = {f"t{i}": i for i in range(63)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="t0"))
    made.add_special_tokens(added)
    t.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>").save_pretrained(folder)


# ------------------------------------------------------------ recipes


def cases() -> dict[str, Case]:
    out: dict[str, Case] = {}

    def recipe(method, models, base=None, parameters=None, **more):
        made = {"merge_method": method, "models": models, "dtype": "float32"}
        made |= {"base_model": base} if base else {}
        made |= {"parameters": parameters} if parameters else {}
        return made | more

    def model(ref, **parameters):
        return {"model": ref} | ({"parameters": parameters} if parameters else {})

    for f in ("llama", "mistral", "qwen2", "gpt2", "pythia", "t5"):
        base, a, b, c = (f"{f}/{x}" for x in ("base", "a", "b", "c"))
        two = [model(a, weight=0.6), model(b, weight=0.4)]
        three = [model(a, weight=1.0), model(b, weight=0.5), model(c, weight=0.3)]
        dense = [model(a, weight=1.0, density=0.5), model(b, weight=0.5, density=0.3)]
        task = {
            "linear": recipe("linear", three),
            "linear-raw": recipe("linear", three, parameters={"normalize": False}),
            "slerp": recipe("slerp", [model(b)], a, {"t": 0.3}),
            "task_arithmetic": recipe("task_arithmetic", three, base),
            "ties": recipe("ties", dense, base, {"normalize": True}),
            "ties-sum": recipe("ties", dense, base, {"normalize": False, "lambda": 0.7}),
            "breadcrumbs": recipe(
                "breadcrumbs",
                [model(a, weight=1.0, density=0.6, gamma=0.05), model(b, weight=0.4, density=0.9)],
                base,
            ),
            "breadcrumbs_ties": recipe(
                "breadcrumbs_ties",
                [model(a, weight=1.0, density=0.6, gamma=0.05), model(b, weight=0.4, density=0.9)],
                base,
            ),
            "model_stock": recipe("model_stock", [model(a), model(b), model(c)], base),
            "nuslerp": recipe("nuslerp", two),
            "nuslerp-base": recipe("nuslerp", two, base),
            "multislerp": recipe("multislerp", three),
            "karcher": recipe("karcher", [model(a), model(b), model(c)]),
            "sce": recipe("sce", [model(a), model(b), model(c)], base, {"select_topk": 0.3}),
            "ram": recipe("ram", [model(a), model(b)], base),
            "arcee_fusion": recipe("arcee_fusion", [model(a)], base),
            "nearswap": recipe("nearswap", [model(a)], base, {"t": 0.01}),
            "linear-gradient": recipe(
                "linear", [model(a, weight=[0, 0.5, 1]), model(b, weight=[1, 0.5, 0])]
            ),
            "linear-filter": recipe(
                "linear",
                [
                    model(
                        a,
                        weight=[
                            {"filter": "norm", "value": 0.9},
                            {"filter": "mlp", "value": [0.2, 0.8]},
                            {"value": 0.5},
                        ],
                    ),
                    model(b, weight=0.5),
                ],
            ),
        }
        spread = {
            "dare_ties": recipe("dare_ties", dense, base),
            "dare_linear": recipe("dare_linear", dense, base),
            "della": recipe("della", dense, base, {"epsilon": 0.1}),
            "della_linear": recipe("della_linear", dense, base, {"epsilon": 0.1}),
        }
        for name, made in (task | spread).items():
            if f == "pythia" and name not in ("linear", "slerp"):
                continue  # mergekit asks for buffers that transformers does not save any more
            why = ""
            if name == "arcee_fusion":
                why = "the cancellation in a float32 divergence decides at the threshold there"
            out[f"{f}/{name}"] = Case([made], random=name in spread, why=why)
    base, a, b, c = (f"llama/{x}" for x in ("base", "a", "b", "c"))
    one = lambda method, models, *rest, **more: Case([recipe(method, models, *rest, **more)])
    piece = lambda *sources, **more: (
        {"sources": [{"model": m, "layer_range": list(r)} | p for m, r, p in sources]} | more
    )
    layers = lambda *slices, method="passthrough", **more: Case(
        [{"merge_method": method, "slices": list(slices), "dtype": "float32"} | more]
    )
    whole = lambda *values: {
        "parameters": {"weight": list(values) if len(values) > 1 else values[0]}
    }
    t_filters = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    out |= {
        # the shapes of mergekit's examples
        "slerp of a published card": layers(
            piece((a, (0, 4), {}), (b, (0, 4), {})),
            method="slerp",
            base_model=a,
            parameters={"t": t_filters},
        ),
        "stack of two": layers(piece((a, (0, 3), {})), piece((b, (1, 4), {}))),
        "stack with scale": layers(
            piece((a, (0, 2), {})),
            piece(
                (
                    a,
                    (1, 3),
                    {
                        "parameters": {
                            "scale": [
                                {"filter": "o_proj", "value": 0.0},
                                {"filter": "down_proj", "value": 0.0},
                                {"value": 1.0},
                            ]
                        }
                    },
                )
            ),
            piece((a, (2, 4), {})),
        ),
        "stack of one layer twice": layers(piece((a, (0, 1), {})), piece((a, (0, 1), {}))),
        "slices merged, a gradient in each": layers(
            piece((a, (0, 2), whole(0, 1)), (b, (0, 2), whole(1, 0.5))),
            piece((a, (2, 4), whole(0, 1)), (b, (1, 3), whole(1, 0.5))),
            method="linear",
        ),
        "slices of one layer": layers(
            piece((a, (0, 1), whole(0.2, 0.7)), (b, (3, 4), whole(1, 0.5))),
            piece((a, (2, 3), whole(0.2, 0.7)), (b, (1, 2), whole(1, 0.5))),
            method="linear",
        ),
        "filter by the input's layer": layers(
            piece(
                (
                    a,
                    (2, 4),
                    {
                        "parameters": {
                            "weight": [{"filter": "layers.3.", "value": 0.9}, {"value": 0.5}]
                        }
                    },
                ),
                (
                    b,
                    (0, 2),
                    {
                        "parameters": {
                            "weight": [{"filter": "layers.0.", "value": 0.1}, {"value": 0.5}]
                        }
                    },
                ),
            ),
            method="linear",
        ),
        "slices with a base of their own": layers(
            *(
                piece((m, r, whole(1.0)), (b, r, whole(0.5)), (base, r, {}), base_model=base)
                for m, r in ((a, (0, 2)), (c, (2, 4)))
            ),
            method="task_arithmetic",
            base_model=base,
        ),
        "base joins linear": one("linear", [model(a), model(b)], base, {"weight": 0.3}),
        "base joins karcher": one("karcher", [model(a), model(b)], base),
        "slerp by a list over two models": one("slerp", [model(a), model(b)], a, {"t": [0.1, 0.9]}),
        "ties with the base listed": one(
            "ties",
            [model(base), model(a, weight=0.5, density=0.5), model(b, weight=0.5, density=0.5)],
            base,
            {"int8_mask": True},
        ),
        "ties on coarse changes": one(
            "ties",
            [model("llama/coarse1", weight=1.0, density=0.2)],
            "llama/coarse",
        )._replace(why="of equal magnitudes the first stay here; as many there"),
        "breadcrumbs on coarse changes": one(
            "breadcrumbs",
            [model("llama/coarse1", weight=1.0, density=0.5, gamma=0.1)],
            "llama/coarse",
        )._replace(why="of equal magnitudes the first stay here; as many there"),
        "unused weight under slerp": one(
            "slerp", [model(a, weight=1.0), model(b)], a, {"t": 0.5, "embed_slerp": True}
        ),
        "unused weight under model_stock": one(
            "model_stock", [model(a, weight=1.0), model(b, weight=1.0)], base
        ),
        "unused keys under sce": one(
            "sce", [model(a, weight=1.0), model(b)], base, {"normalize": True}
        ),
        "unused weight under karcher": one("karcher", [model(a, weight=1.0), model(b)]),
        "unused weight under ram": one("ram", [model(a, weight=1.0), model(b)], base),
        "revision and dtype among parameters": one(
            "linear",
            [model(a, weight=1.0, revision="main"), model(b, weight=1.0)],
            None,
            {"dtype": "float16"},
        ),
        "a rotary buffer in one model": one(
            "linear", [model("llama/old", weight=0.5), model(b, weight=0.5)]
        ),
        "della, density 1 by default": one(
            "della", [model(a, weight=1.0), model(b, weight=0.5)], base
        ),
        "della_linear, density 1 for one": Case(
            [
                recipe(
                    "della_linear",
                    [model(a, weight=1.0, density=1), model(b, weight=0.5, density=0)],
                    base,
                )
            ]
        ),
        "numbers as text": one("linear", [model(a, weight="0.3"), model(b, weight="7e-1")]),
        "1e-10": one("karcher", [model(a), model(b)], None, {"tol": "1e-10", "max_iter": 12}),
        "nuslerp, weights that add up to 0": one(
            "nuslerp", [model(a, weight=1.0), model(b, weight=-1.0)]
        ),
        "a filter without a list": one(
            "linear", [model(a, weight={"filter": "*", "value": 0.4}), model(b, weight=0.6)]
        ),
        "dare_ties, density 0": one(
            "dare_ties", [model(a, weight=1.0, density=0), model(b, weight=0.5, density=1)], base
        ),
        "ties, density 0": one(
            "ties", [model(a, weight=1.0, density=0.0), model(b, weight=0.5, density=0.5)], base
        ),
        "normalize by layers": one(
            "task_arithmetic",
            [model(a, weight=1.0), model(b, weight=0.5)],
            base,
            {"normalize": [True, False]},
        ),
        "density by layers": one(
            "ties",
            [model(a, weight=1.0, density=[1, 0.5, 0.1]), model(b, weight=0.5, density=[0.1, 1])],
            base,
        ),
        "negative weights": one(
            "ties", [model(a, weight=1.0, density=0.5), model(b, weight=-0.5, density=0.5)], base
        ),
        "passthrough with scale": one("passthrough", [model(a, scale=0.5)]),
        "out_dtype bfloat16": one(
            "linear", [model(a, weight=1.0), model(b, weight=1.0)], out_dtype="bfloat16"
        ),
        "modules": Case(
            [
                {
                    "merge_method": "linear",
                    "modules": {
                        "default": {"models": [model(a, weight=1.0), model(b, weight=3.0)]}
                    },
                    "dtype": "float32",
                }
            ]
        ),
        "union of vocabularies": one(
            "linear",
            [model("llama/chat1", weight=0.5), model("llama/chat2", weight=0.5)],
            tokenizer_source="union",
        ),
        "union over a base": one(
            "task_arithmetic",
            [model("llama/chat1", weight=0.5), model("llama/chat2", weight=0.5)],
            base,
            tokenizer_source="union",
        ),
        "tokens of the base": one(
            "linear",
            [model(a, weight=0.5), model("llama/chat2", weight=0.5)],
            base,
            {"weight": 0.2},
            tokenizer_source="base",
        ),
        "tokens of a model": one(
            "linear",
            [model(a, weight=0.5), model("llama/chat1", weight=0.5)],
            tokenizer_source="llama/chat1",
        ),
        "rows by token": one(
            "linear",
            [model("llama/chat1", weight=0.5), model("llama/chat2", weight=0.5)],
            tokenizer={
                "source": "union",
                "tokens": {
                    "<|user|>": {
                        "source": {"kind": "model_token", "model": "llama/chat1", "token": "t5"}
                    },
                    "<|im_end|>": {"source": "llama/chat1", "force": True},
                    "t7": {"source": {"kind": "zero"}, "force": True},
                },
            },
        ),
        "a new token": one(
            "linear",
            [model(a, weight=0.5), model(b, weight=0.5)],
            tokenizer={
                "source": "union",
                "tokens": {
                    "<|new|>": {"source": {"kind": "model_token", "model": a, "token": "t3"}}
                },
            },
        ),
        "padded vocabulary": one(
            "linear",
            [model("llama/chat1", weight=0.5), model("llama/chat2", weight=0.5)],
            tokenizer={"source": "union", "pad_to_multiple_of": 8},
        )._replace(why="padding rows are zero here, the mean of all rows there"),
        "tokenizer twice": one(
            "linear",
            [model(a, weight=1.0), model(b, weight=1.0)],
            tokenizer_source="union",
            tokenizer={"source": "union"},
        ),
        "two documents": Case(
            [
                recipe("linear", [model(a, weight=1.0), model(b, weight=1.0)], name="first"),
                recipe("task_arithmetic", [model("first", weight=0.5), model(c, weight=0.5)], base),
            ],
            "multi",
        ),
        "documents in the other order": Case(
            [
                recipe(
                    "task_arithmetic", [model("second", weight=0.5), model(c, weight=0.5)], base
                ),
                recipe("slerp", [model("first"), model(b)], b, {"t": 0.4}, name="second"),
                recipe("linear", [model(a, weight=1.0), model(b, weight=1.0)], name="first"),
            ],
            "multi",
        ),
        "raw, what all have": Case(
            [
                recipe(
                    "linear",
                    [
                        model("llama/raw1.safetensors", weight=0.5),
                        model("llama/raw2.safetensors", weight=0.5),
                    ],
                )
            ],
            "raw",
            options=("--tensor-intersection",),
        ),
        "raw, what any has": Case(
            [
                recipe(
                    "linear",
                    [
                        model("llama/raw1.safetensors", weight=0.5),
                        model("llama/raw2.safetensors", weight=0.5),
                    ],
                )
            ],
            "raw",
            options=("--tensor-union",),
        ),
        "raw, neither": Case(
            [
                recipe(
                    "linear",
                    [
                        model("llama/raw1.safetensors", weight=0.5),
                        model("llama/raw2.safetensors", weight=0.5),
                    ],
                )
            ],
            "raw",
        ),
    }
    return out


# ------------------------------------------------------------ both programs


def run_mergekit(python: str, tasks: list[dict], folder: Path) -> dict[str, str]:
    """Name -> what mergekit said when it failed, or an empty text."""
    lines = "".join(json.dumps(t) + "\n" for t in tasks)
    done = subprocess.run(
        [python, "-c", WORKER],
        input=lines,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    found = [json.loads(x[7:]) for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if len(found) != len(tasks):
        raise SystemExit(f"mergekit stopped after {len(found)} recipes:\n{done.stderr[-2000:]}")
    return dict(found)


def run_jaxmerge(task: dict) -> str:
    """What jaxmerge said when it refused, or an empty text."""
    from jaxmerge.cli import merge

    flags = {o.removeprefix("--").replace("-", "_"): True for o in task["options"]}
    try:
        merge.run(Path(task["recipe"]), Path(task["out"]), quiet=True, force=True, seed=0, **flags)
        return ""
    except ValueError as error:  # UserError too
        return f"{type(error).__name__}: {error}"[:300]


def _leaves(folder: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401 - safetensors then reads bfloat16

    out: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        out |= load_file(path)
    return {n: np.asarray(x, np.float32) if x.dtype.kind in "fV" else x for n, x in out.items()}


COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "vocab_size")


def compare(case: Case, theirs: Path, ours: Path, base: Path | None) -> tuple[str, str]:
    """A verdict and what was seen."""
    a, b = _leaves(theirs), _leaves(ours)
    notes = []
    alone = sorted(set(a) ^ set(b))
    tied = [n for n in alone if _tied(n, a, b)]
    if len(tied) < len(alone):
        return "differs", f"leaves of one only: {alone[:3]}"
    both = [n for n in a if n in b]
    shapes = [n for n in both if a[n].shape != b[n].shape]
    if shapes:
        n = shapes[0]
        return "differs", f"{n}: {a[n].shape} there, {b[n].shape} here"
    if case.random:
        return _same_law(a, b, _leaves(base), both)
    gap = max((float(np.abs(a[n] - b[n]).max()) for n in both if a[n].size), default=0.0)
    off = sum(int(np.sum(np.abs(a[n] - b[n]) > TOLERANCE)) for n in both)
    notes.append(f"largest difference {gap:.1e}")
    if (theirs / "config.json").exists() and (ours / "config.json").exists():
        x, y = (json.loads((p / "config.json").read_text()) for p in (theirs, ours))
        wrong = [
            f"{k}: {x[k]} there, {y[k]} here" for k in COUNTS if k in x and k in y and x[k] != y[k]
        ]
        if wrong:
            return "differs", "config.json: " + "; ".join(wrong)
    if off == 0:
        return "equal", notes[0]
    total = sum(a[n].size for n in both)
    seen = f"{off} of {total} entries, {notes[0]}"
    if case.why.startswith("of equal"):
        counts = [
            (np.count_nonzero(a[n] != x), np.count_nonzero(b[n] != x))
            for n, x in _leaves(base).items()
        ]
        if any(x != y for x, y in counts):
            return "differs", f"another number of changed entries; {seen}"
    return ("differs on purpose" if case.why else "differs"), seen


def _tied(name: str, a: dict, b: dict) -> bool:
    """Whether a leaf of one output only is a copy of the embedding there."""
    leaves = a if name in a else b
    copies = (n for n in leaves if n != name and leaves[n].shape == leaves[name].shape)
    return any(np.array_equal(leaves[n], leaves[name]) for n in copies)


def _same_law(a, b, base, names) -> tuple[str, str]:
    """Random masks: the share of changed entries and the mean size of the change agree."""
    join = lambda x: np.concatenate([(x[n] - base[n]).ravel() for n in names if n in base])
    one, two = join(a), join(b)
    shares = [float(np.mean(x != 0)) for x in (one, two)]
    sizes = [float(np.abs(x).mean()) for x in (one, two)]
    squares = [float(np.square(x).mean()) for x in (one, two)]
    error = 4 * np.sqrt(2 / one.size)
    good = abs(shares[0] - shares[1]) < error * 0.5 + 1e-3
    good &= abs(sizes[0] - sizes[1]) < error * np.sqrt(squares[0])
    shown = [f"{a:.3f} of the entries by {b:.5f}" for a, b in zip(shares, sizes, strict=True)]
    seen = f"changed {shown[0]} there, {shown[1]} here, on average"
    return ("equal in law" if good else "differs"), seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", required=True, help="the Python where mergekit is installed")
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    parser.add_argument("--keep", help="a folder for the files; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints(folder)
        some = {n: c for n, c in cases().items() if options.only in n}
        tasks = []
        for name, case in some.items():
            slug = re.sub(r"\W+", "_", name)
            recipe = folder / f"{slug}.yaml"
            recipe.write_text(yaml.safe_dump_all(case.documents, sort_keys=False))
            tasks.append(
                {
                    "name": name,
                    "recipe": str(recipe),
                    "kind": case.kind,
                    "options": case.options,
                    "out": str(folder / "out" / slug),
                }
            )
        known = folder / "there.json"  # what mergekit did with a recipe that is still the same
        theirs = json.loads(known.read_text()) if known.exists() else {}
        stamp = lambda t: [Path(t["recipe"]).read_text(), *t["options"]]
        todo = [t for t in tasks if theirs.get(t["name"], [0])[0] != stamp(t)]
        for task in todo:
            shutil.rmtree(task["out"], ignore_errors=True)
        said = run_mergekit(options.mergekit, todo, folder)
        theirs |= {t["name"]: [stamp(t), said[t["name"]]] for t in todo}
        known.write_text(json.dumps(theirs))
        rows = []
        versions = subprocess.run(
            [
                options.mergekit,
                "-c",
                "from importlib.metadata import version as v; print(v('mergekit'), v('torch'))",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for task in sorted(tasks, key=lambda t: "/" in t["name"]):  # single recipes first
            case = some[task["name"]]
            ours = task | {"out": task["out"] + ".jm"}
            said = run_jaxmerge(ours)
            other = theirs[task["name"]][1]
            root = next((d["base_model"] for d in case.documents if "base_model" in d), None)
            if said or other:
                verdict = (
                    "both refuse"
                    if said and other
                    else "only mergekit"
                    if said
                    else "only jaxmerge"
                )
                seen = "; ".join(
                    x for x in (other and f"there {other}", said and f"here {said}") if x
                )
            else:
                base = folder / root if root else None
                verdict, seen = compare(case, Path(task["out"]), Path(ours["out"]), base)
            rows.append(
                {
                    "recipe": task["name"],
                    "verdict": verdict,
                    "seen": seen.replace(str(folder), "."),
                    "why": case.why,
                }
            )
            print(f"{verdict:20} {task['name']}: {seen}", flush=True)
            if not options.only:  # after every recipe, so that a run cut short has a result too
                found = {"mergekit": versions[0], "torch": versions[1], "rows": rows}
                RESULT.write_text(json.dumps(found, indent=1) + "\n")
    if not options.only:
        write_pages(json.loads(RESULT.read_text()))
    if any(r["verdict"] in ("differs", "only mergekit") for r in rows):
        sys.exit("some recipes differ without a reason that is written down")


def write_pages(result: dict) -> None:
    """The generated parts of docs/mergekit.md and of the README."""
    rows = result["rows"]
    families = list(dict.fromkeys(r["recipe"].split("/")[0] for r in rows if "/" in r["recipe"]))
    methods = f", and every method on {', '.join(families)}" if families else ""
    count = lambda *verdicts: sum(r["verdict"] in verdicts for r in rows)
    order = (
        "equal",
        "equal in law",
        "differs on purpose",
        "only jaxmerge",
        "both refuse",
        "only mergekit",
        "differs",
    )
    table = [f"| {v} | {count(v)} |" for v in order if count(v)]
    other = [r for r in rows if r["verdict"] not in ("equal", "equal in law")]
    more = [
        f"| {r['recipe']} | {r['verdict']} | {(r['why'] or r['seen']).replace('|', '/')} |"
        for r in other
    ]
    page = "\n".join(
        [
            f"{len(rows)} recipes through mergekit {result['mergekit']} (torch {result['torch']})",
            "and through jaxmerge, from the same files (`experiments/mergekit_parity.py`): shapes",
            f'of published recipes{methods}. "In law": random masks, compared by',
            "share and size of the changes.",
            "",
            "| Outcome | Recipes |",
            "|:--|--:|",
            *table,
            "",
            "| Recipe | Outcome | What |",
            "|:--|:--|:--|",
            *more,
        ]
    )
    good = count("equal", "equal in law")
    line = (
        f"mergekit's YAML unchanged: {good} of {len(rows)} recipes in the shapes of published ones "
        "give equal weights\n(random methods: equal in law); the rest, one by one: "
        "[docs/mergekit.md](docs/mergekit.md)."
    )
    for path, text in ((ROOT / "docs" / "mergekit.md", page), (ROOT / "README.md", line)):
        old = path.read_text()
        new = re.sub(
            r"(<!-- mergekit-yaml -->\n).*?(<!-- /mergekit-yaml -->)",
            lambda m, t=text: m[1] + t + "\n" + m[2],
            old,
            flags=re.S,
        )
        path.write_text(new)


if __name__ == "__main__":
    main()
