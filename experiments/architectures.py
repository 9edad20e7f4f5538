"""Every architecture of transformers through merges from files, checked with numpy and by loading.

    python experiments/architectures.py RESULTS.jsonl [--types llama t5] [--part 0/2]
    python experiments/architectures.py RESULTS.jsonl --page docs/architectures.md

For every model type that `zoo` builds small: two random checkpoints, then through `jaxmerge merge`

    plain      linear merge of both: values, config unchanged
    gradient   the weight falls from the first layer to the last, in every stack by itself
    stack      layers 0..1 of one and 1..2 of the other: values, the count in the config; of several
               stacks one, named by its path
    union      tokens of both, half of them shared: rows of every token, sizes in the config
    lora       a PEFT adapter on every linear layer: W + s B A, transposed where kernels are

and transformers loads what comes out without a missing, unexpected or mismatched key.  A step that
jaxmerge refuses is noted with its line.  A line of RESULTS.jsonl for each type; a run goes on where
it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import numpy as np
import torch
import yaml
import zoo
from architecture_table import token_leaves
from safetensors.numpy import load_file, save_file
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from jaxmerge.cli import merge as command
from jaxmerge.errors import UserError
from jaxmerge.io.architectures import architecture, table, tower_of
from jaxmerge.io.architectures.names import numbers, template
from jaxmerge.recipes.layers import holding

logging.disable_progress_bar()
STEPS = ("plain", "gradient", "stack", "union", "lora")
FIRST = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3", "phi3",
         "gpt2", "gpt_neox", "bloom", "falcon", "opt", "t5", "bart", "bert", "roberta",
         "deepseek_v3", "whisper", "clip", "siglip", "vit", "dinov2", "swin", "resnet",
         "qwen2_vl", "llava", "mamba", "jamba", "olmoe", "gpt_oss", "wav2vec2")  # fmt: skip
Arrays = dict[str, np.ndarray]


class Wrong(Exception):
    """A result that is not as expected."""


class Skipped(Exception):
    """A step that does not apply, and why."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--types", nargs="*")
    parser.add_argument("--part", default="0/1", help="this part of the types, as 0/2 and 1/2")
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    if args.page:
        args.page.write_text(page(results(args.results)), encoding="utf-8")
        return
    done = {r["type"] for r in results(args.results)}
    part, parts = map(int, args.part.split("/"))
    known = set(table.families())
    types = sorted(zoo.types(), key=lambda t: (t not in FIRST, t not in known, t))
    for model_type in (args.types or types)[part::parts]:
        if model_type not in done:
            steps = tried(model_type)
            with open(args.results, "a", encoding="utf-8") as file:
                file.write(json.dumps({"type": model_type, **steps}) + "\n")


def results(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results, of each type the last, by name."""
    lines = path.read_text().splitlines() if path.exists() else []
    latest = {r["type"]: r for r in map(json.loads, lines)}
    return [latest[t] for t in sorted(latest)]


def tried(model_type: str) -> dict[str, Any]:
    """What holds for one model type: step -> "holds", or what was refused, skipped or wrong."""
    began = time.process_time()
    try:
        config = zoo.config_of(model_type, factors=(32, 16, 8, 4, 2), most=2_000_000)
        with tempfile.TemporaryDirectory() as folder:
            case = Case(model_type, config, Path(folder))
            steps = {"class": zoo.class_name(model_type), "parameters": case.parameters}
            for step in STEPS:
                steps[step] = outcome(getattr(case, step))
    except Exception as error:
        steps = {"error": line(error)}
    return steps | {"seconds": round(time.process_time() - began, 1)}


def outcome(step: Callable[[], None]) -> str:
    """How one step went."""
    try:
        step()
    except Skipped as reason:
        return f"- {reason}"
    except UserError as refusal:
        return f"refused: {line(refusal)}"
    except Wrong as fault:
        return f"WRONG: {fault}"
    except Exception as error:
        return f"FAILED: {line(error)}"
    return "holds"


def line(error: BaseException) -> str:
    text = re.sub(r"/tmp/\w+/", "", str(error)).strip().replace("\n", " ")
    return f"{type(error).__name__}: {text[:200]}"


class Case:
    """Two random checkpoints of a type, and the steps."""

    def __init__(self, model_type: str, config: dict, folder: Path):
        self.type, self.folder, self.loaded = model_type, folder, zoo.class_of(model_type)
        self.small = config
        torch.manual_seed(0)
        self.model = zoo.build(model_type, config, "cpu").eval()
        self.model.save_pretrained(folder / "a", max_shard_size="1TB")
        stored = load_file(folder / "a" / "model.safetensors")
        whole = lambda x: (
            np.asarray(np.nan_to_num(x)) if x.dtype.kind == "f" else x
        )  # what nobody initialises
        first = {n: whole(x) for n, x in stored.items()}
        g = np.random.default_rng(1)
        fixed = constants(self.model)
        self.a = {n: x if n in fixed else jitter(x, g) for n, x in first.items()}
        self.b = {n: x if n in fixed else jitter(x, g) for n, x in first.items()}
        shutil.copytree(folder / "a", folder / "b")
        for name, leaves in (("a", self.a), ("b", self.b)):
            save_file(leaves, folder / name / "model.safetensors", metadata={"format": "pt"})
        self.config = json.loads((folder / "a" / "config.json").read_text())
        self.parameters = sum(x.size for x in first.values())
        facts = table.known(model_type)
        self.stacks = dict(facts.stacks) if facts else {}
        clean = self.load(folder / "a")
        self.usual = {  # of the original itself, whichever layer
            k: {template(str(n)) for n in v or ()} for k, v in clean.items()
        }

    # ------------------------------------------------------------ steps

    def plain(self) -> None:
        got = self.merge(linear([0.5, 0.5]))
        self.compare(got, {n: mean(x, self.b[n], 0.5) for n, x in self.a.items()})
        if self.out_config() != self.config:
            raise Wrong(f"config.json changed: {changes(self.config, self.out_config())}")
        self.check_load()

    def gradient(self) -> None:
        depth = {n: self.depth(n) for n in self.a}
        if not any(depth.values()):
            raise Skipped("no stack of layers")
        got = self.merge(linear([[1, 0], [0, 1]]))
        self.compare(got, {n: mean(x, self.b[n], depth[n]) for n, x in self.a.items()})

    def stack(self) -> None:
        if not self.stacks:
            raise Skipped("no stack of layers")
        made_of = architecture(self.a, self.config)
        groups = list(dict.fromkeys(map(made_of.together, made_of.main())))
        groups = [g for g in groups if not g[0].stages] or groups  # stages are refused
        last = [g for g in groups if tower_of(g[0].path) == "decoder"] or groups
        n = last[0][0].layers if last else 3
        ranges = (("a", [0, n]), ("b", [n - 1, n]))
        slices = [{"sources": [{"model": m, "layer_range": r}]} for m, r in ranges]
        recipe: dict[str, Any] = {"merge_method": "passthrough", "slices": slices}
        whole = {"models": [{"model": "a"}]}
        if {tower_of(s.path) for g in groups for s in g} == {"encoder", "decoder"}:
            modules = {"encoder": whole, "decoder": {"slices": slices}, "text_decoder": whole}
            recipe = {"merge_method": "passthrough", "modules": modules}
        elif last and {*made_of.main()} - {*last[0]}:
            modules = {holding(last[0]): {"slices": slices}, "default": whole}
            recipe = {"merge_method": "passthrough", "modules": modules}
        got = self.merge(recipe)
        new, gone = got.keys() - self.a.keys(), self.a.keys() - got.keys()
        if not new or gone:
            raise Wrong(f"{len(new)} new leaves, {len(gone)} missing")
        for name, x in got.items():
            place = self.place(name)
            if name in new and place is not None:
                source, choice = place[2](place[1][-1] - 1), (self.b,)
            else:
                source, choice = name, (self.a, self.b) if place is None else (self.a,)
                if place is not None and not any(place[0] == self.place(m)[0] for m in new):
                    choice = (self.a, self.b)  # of a stack that stays
            if not any(source in c and np.array_equal(c[source], x) for c in choice):
                raise Wrong(f"{name} is not {source}")
        self.check_load()

    def union(self) -> None:
        size = next((v for p, v in zoo.ints(self.config) if p[-1] == "vocab_size"), 0)
        shapes = {n: x.shape for n, x in self.a.items()}
        rows = token_leaves(self.type, self.small, shapes)  # by the modules, of one token more
        if not size or not rows:
            raise Skipped("no vocabulary")
        shared, own = size - 4, 4
        for name in "ab":
            tokens = [f"t{i}" for i in range(shared)] + [f"{name}{i}" for i in range(own)]
            vocab = {t: i for i, t in enumerate(tokens)}
            content = {
                "version": "1.0",
                "added_tokens": [],
                "model": {"type": "BPE", "vocab": vocab, "merges": []},
            }
            (self.folder / name / "tokenizer.json").write_text(json.dumps(content))
        try:
            got = self.merge(linear([0.5, 0.5]) | {"tokenizer_source": "union"})
        finally:
            for name in "ab":
                (self.folder / name / "tokenizer.json").unlink()
        grown: dict[str, int] = {}  # leaf -> the axis along which its tokens lie
        for n in got.keys() & self.a.keys():
            for axis, (new, old) in enumerate(zip(got[n].shape, self.a[n].shape, strict=True)):
                if new != old:
                    grown[n] = axis
        if not grown:
            raise Wrong(f"no leaf grew, {sorted(rows)[:3]} should")
        for n, axis in grown.items():
            first = lambda x, axis=axis: np.moveaxis(x.astype(np.float32), axis, 0)
            a, b, out = first(self.a[n]), first(self.b[n]), first(got[n])
            want = np.concatenate([(a + b)[:shared] / 2, a[shared:size], b[shared:size]])
            if self.a[n].dtype.kind != "f":
                want[:shared] = a[:shared]
            if out.shape != want.shape or not np.allclose(out, want, rtol=1e-4, atol=1e-5):
                raise Wrong(f"{n} {list(got[n].shape)}")
        rest = {n: mean(x, self.b[n], 0.5) for n, x in self.a.items() if n not in grown}
        self.compare({n: x for n, x in got.items() if n not in grown}, rest)
        self.check_load()

    def lora(self) -> None:
        names, g, factors, want = zoo.stored(self.model), np.random.default_rng(2), {}, dict(self.a)
        for at, module in self.model.named_modules():
            name = names.get(f"{at}.weight")
            if (
                isinstance(module, torch.nn.Linear | Conv1D)
                and name in self.a
                and self.a[name].size
            ):
                w = self.a[name].astype(np.float32)
                out, into = w.T.shape if isinstance(module, Conv1D) else w.shape
                down = g.normal(size=(2, into)).astype(np.float32)
                up = g.normal(size=(out, 2)).astype(np.float32)
                factors[f"base_model.model.{at}.lora_A.weight"] = down
                factors[f"base_model.model.{at}.lora_B.weight"] = up
                delta = 2 * up @ down
                want[name] = w + (delta.T if isinstance(module, Conv1D) else delta)
        if not factors:
            raise Skipped("no linear layer")
        folder = self.folder / "adapter"
        folder.mkdir(exist_ok=True)
        save_file(factors, folder / "adapter_model.safetensors")
        fan = any(isinstance(m, Conv1D) for m in self.model.modules())
        settings = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "fan_in_fan_out": fan,
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        applied = linear([1, 0])  # of one program with the steps above: less to compile
        applied["models"] = [
            m | {"model": r} for m, r in zip(applied["models"], ("a+adapter", "a"), strict=True)
        ]
        self.compare(self.merge(applied), want)

    # ------------------------------------------------------------ what they are made of

    def merge(self, recipe: dict) -> Arrays:
        here = Path.cwd()
        os.chdir(self.folder)
        try:
            Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
            command.run(Path("recipe.yaml"), Path("out"), quiet=True, force=True)
            return load_file("out/model.safetensors")
        finally:
            os.chdir(here)

    def out_config(self) -> dict:
        return json.loads((self.folder / "out" / "config.json").read_text())

    def load(self, folder: Path) -> dict[str, Any]:
        _, info = self.loaded.from_pretrained(folder, output_loading_info=True)
        return info

    def check_load(self) -> None:
        info = self.load(self.folder / "out")
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            names = {str(n) for n in info.get(kind) or ()}
            names = {n for n in names if template(n) not in self.usual.get(kind, set())}
            if names:
                raise Wrong(f"loading: {kind}: {sorted(names)[:2]} ({len(names)})")

    def place(self, name: str):
        """Stack, layer and the name of another layer's leaf, by what the modules said."""
        values: tuple[int, ...] = ()
        for n in numbers(name):
            values = (*values, n.value)
            if n.container in self.stacks:
                other = lambda i, n=n: f"{name[: n.start]}{i}{name[n.stop :]}"
                return n.container, values, other
        return None

    def depth(self, name: str) -> float:
        place = self.place(name)
        if place is None:
            return 0.0
        order = sorted({p[1] for m in self.a if (p := self.place(m)) and p[0] == place[0]})
        return order.index(place[1]) / (len(order) - 1) if len(order) > 1 else 1.0

    def compare(self, got: Arrays, want: Mapping[str, np.ndarray]) -> None:
        if got.keys() != want.keys():
            raise Wrong(f"leaves differ: {sorted(got.keys() ^ want.keys())[:3]}")
        for n, x in want.items():
            close = np.allclose(
                got[n].astype(np.float64), x.astype(np.float64), rtol=1e-4, atol=1e-5
            )
            if got[n].shape != x.shape or not close:
                raise Wrong(f"values of {n}")


def linear(weights: list) -> dict:
    return {"merge_method": "linear", "models": [
        {"model": m, "parameters": {"weight": w}} for m, w in zip("ab", weights, strict=True)
    ]}  # fmt: skip


def constants(model: torch.nn.Module) -> set[str]:
    """Stored buffers that training does not change: frequencies, as opposed to counts and means."""
    names = zoo.stored(model)
    buffers = {names.get(n, n): b for n, b in model.named_buffers() if b.is_floating_point()}
    counts = lambda b: bool(((b == 0) | (b == 1)).all())
    return {
        n
        for n, b in buffers.items()
        if n is not None and (not counts(b) or n.endswith("inv_freq"))  # of two axes [1]
    }


def jitter(x: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Other values of the same kind; what is no weight stays."""
    if x.dtype.kind != "f":
        return x
    return np.asarray(x + 0.1 * g.normal(size=x.shape), x.dtype)


def mean(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """What a linear merge gives; integers are the first model's."""
    return (1 - t) * a + t * b if a.dtype.kind == "f" else a


def changes(a: Any, b: Any) -> list:
    return [k for k in {*a, *b} if a.get(k) != b.get(k)]


def page(tried_types: list[dict[str, Any]]) -> str:
    """The documentation page."""
    good = sorted((r for r in tried_types if "error" not in r), key=lambda r: r["type"])
    kinds = {s: Counter(re.split(r"[:\s]", r[s])[0] for r in good) for s in STEPS}
    among = lambda *starts: sum(all(r[s].startswith(starts) for s in STEPS) for r in good)
    whole, sound = among("holds", "-"), among("holds", "-", "refused")
    import transformers

    head = TOP.format(
        version=transformers.__version__,
        tried=len(good),
        known=len(table.families()),
        all=len(zoo.types()),
        names=64,
        whole=whole,
        refused=sound - whole,
        wrong=len(good) - sound,
        small=len(tried_types) - len(good),
    )
    counts = ["| | holds | does not apply | refused | wrong |", "| :-- | --: | --: | --: | --: |"]
    counts += [
        f"| {s} | {c['holds']} | {c['-']} | {c['refused']} | {c['WRONG'] + c['FAILED']} |"
        for s, c in kinds.items()
    ]
    notes: dict[str, int] = {}
    rows = []
    for r in good:
        cells = []
        for s in STEPS:
            text = r[s]
            if text == "holds":
                cells.append("✓")
            elif text.startswith("-"):
                cells.append("–")
            else:
                general_text = general(text)
                number = notes.setdefault(general_text, len(notes) + 1)
                cells.append(f"{'refused' if text.startswith('refused') else 'no'} [{number}]")
        rows.append(f"| `{r['type']}` | {' | '.join(cells)} |")
    legend = [f"{i}. {text.replace('](', '] (')}" for text, i in notes.items()]
    reasons: dict[str, list[str]] = {}
    for r in sorted((r for r in tried_types if "error" in r), key=lambda r: r["type"]):
        reasons.setdefault(general(r["error"]), []).append(f"`{r['type']}`")
    unbuilt = [f"* {why.replace('](', '] (')}: {', '.join(t)}" for why, t in reasons.items()]
    lines = [head, *counts, "", "## By family", "", f"| family | {' | '.join(STEPS)} |",
             "| :-- | :-: | :-: | :-: | :-: | :-: |", *rows, "", *legend, "",
             "## Not built", "", *unbuilt, ""]  # fmt: skip
    return "\n".join(lines)


def general(text: str) -> str:
    """A refusal without the names of one family, so that equal ones are counted once."""
    text = re.sub(r"^refused: \w+: ", "", text)
    text = re.sub(r"stacks of layers, .*", "stacks of layers; say which by modules", text)
    text = re.sub(r"^recipe\.yaml: ", "", text)
    text = re.sub(r"'[^']*'", "...", re.sub(r"\(?[\w.*]*\.[\w.*]+\)?", "...", text))
    return re.sub(r"\d+", "n", text).replace("|", "/")[:120]


TOP = """# Architectures

What a model is made of is known, not guessed: which numbers in its names count layers, where its
config says how many, which leaves have a row for every token, what is tied, which kernels are
stored [in, out]. For {known} model types of transformers {version} that comes from a table which
`experiments/architecture_table.py` derives from the modules themselves; for others, names, shapes
and config decide, and the command says what it took for what. `jaxmerge inspect MODEL
--architecture` shows it. Buffers are constants and stay as in the base; so does a tower that the
family itself never trains (BLT's patcher, FLAVA's codebook), unless a model has other values there.

`experiments/architectures.py` builds a type small, twice at random, and merges the two from files:
a plain linear merge, a gradient over the layers of every stack, a stack of two ranges, the union of
two vocabularies, a LoRA adapter on every linear layer. Values are compared with numpy, the config
with what it should be, and transformers loads the results without a missing, unexpected or
mismatched key.

Of {all} types that have a model {tried} were tried (mergekit 0.1.5 knows {names} names). For
{whole} everything that applies holds, for {refused} more a step is refused with the reason that
stands below, and {wrong} have a wrong result. {small} could not be built small (packages that are
not installed, sizes fixed in code): the last list.
"""

if __name__ == "__main__":
    main()
