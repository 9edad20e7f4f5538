"""What `experiments/fuzz.py` damages: for each format a sound input, and what reads it.

A `Format` writes a sound input into an empty folder, names the files that are damaged, and reads
the result as a command would.  `read` returns nothing; it raises `Wrong` where what was accepted is
not what an independent reader (or the undamaged part) says.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

WORDS = {"model.embed_tokens.weight": (6, 4), "model.layers.0.mlp.up.weight": (4, 4),
         "model.layers.1.mlp.up.weight": (4, 4), "norm.weight": (4,)}  # fmt: skip


class Wrong(Exception):
    """Accepted, and not what it should be."""


class Format(NamedTuple):
    """One kind of input.

    Attributes:
        write: makes a sound one in a folder.
        files: which of its files are damaged.
        read: reads it.
        slow: an input takes a good part of a second.
    """

    write: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    slow: bool = False


def model(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in WORDS.items()}


def folder(path: Path, seed: int, **files: Any) -> None:
    """A model's folder with further JSON files: config=..., tokenizer=..."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(model(seed), path / "model.safetensors")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))


def same(leaves: Any, want: dict[str, np.ndarray]) -> None:
    got = {n: np.asarray(leaves[n]) for n in leaves}
    for n, x in want.items():
        if n in got and (got[n].shape != x.shape or got[n].tobytes() != x.tobytes()):
            raise Wrong(f"leaf {n!r} differs")


# ------------------------------------------------------------ checkpoints


def read_file(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(path / "m.safetensors")
    got = {n: source[n] for n in source}
    same(got, load_file(path / "m.safetensors"))


def write_shards(path: Path) -> None:
    (path / "m").mkdir()
    where, leaves = {}, list(model(0).items())
    for i, shard in enumerate((leaves[:2], leaves[2:])):
        save_file(dict(shard), path / "m" / f"s{i}.safetensors")
        where |= dict.fromkeys(dict(shard), f"s{i}.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))


def read_shards(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    same(open_source(path / "m"), model(0))


def write_torch(path: Path) -> None:
    """A torch archive without torch: protocol 2, two tensors, one a view."""
    text = lambda s: b"X" + len(s).to_bytes(4, "little") + s.encode()
    number = lambda n: b"K" + bytes([n])

    def tensor(key: str, kind: str, size: int, shape: tuple, strides: tuple, at: int) -> bytes:
        storage = (
            b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
            + number(size) + b"tQ"
        )  # fmt: skip
        tuples = b"".join(b"(" + b"".join(map(number, t)) + b"t" for t in (shape, strides))
        more = b"\x89ccollections\nOrderedDict\n)R"
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(at) + tuples + more + b"tR"
        )

    program = (
        b"\x80\x02}q\x00(" + text("a") + tensor("0", "FloatStorage", 6, (2, 3), (3, 1), 0)
        + text("b") + tensor("1", "BFloat16Storage", 8, (2, 2), (1, 4), 1) + b"u."
    )  # fmt: skip
    with zipfile.ZipFile(path / "m.bin", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", np.arange(6, dtype=np.float32).tobytes())
        archive.writestr("a/data/1", bytes(range(16)))


def read_torch(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(path / "m.bin", allow_pickle=True)
    for n in source:
        if source[n].shape != source.like[n].shape or source[n].dtype != source.like[n].dtype:
            raise Wrong(f"leaf {n!r} is not what was said of it")


def write_gguf(path: Path) -> None:
    tiny = Path(__file__).parents[1] / "tests/golden/gguf_tiny/tiny_llama.gguf"
    (path / "m.gguf").write_bytes(tiny.read_bytes())


def read_gguf(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(path / "m.gguf")
    source.config()
    for n in source:
        if source[n].shape != source.like[n].shape:
            raise Wrong(f"leaf {n!r} is not what was said of it")
    source.close()


def write_orbax(path: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as writer:
        writer.save((path / "m").resolve(), {"a": np.arange(6.0), "b": {"c": np.ones(3)}})


def read_orbax(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(path / "m")
    for n in source:
        if source[n].shape != source.like[n].shape:
            raise Wrong(f"leaf {n!r} is not what was said of it")
    source.close()


# ------------------------------------------------------------ what lies beside the weights

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "vocab_size": 6, "hidden_size": 4, "torch_dtype": "float32", "tie_word_embeddings": True,
}  # fmt: skip
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
}


def merge(path: Path, recipe: Any) -> None:
    """Merge a recipe in a folder, as the command does."""
    from jaxmerge.cli import merge as command

    text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe)
    (path / "r.yaml").write_text(text)
    command.run(path / "r.yaml", path / "out", quiet=True, force=True)


def two_models(path: Path) -> None:
    folder(path / "base", 0, config=CONFIG, tokenizer=TOKENIZER, tokenizer_config={"a": 1})
    folder(path / "a", 1, config=CONFIG, tokenizer=TOKENIZER)


def read_config(path: Path) -> None:
    merge(path, {"base": f"{path}/base", "models": [f"{path}/a"], "method": "average",
                 "out_dtype": "bfloat16"})  # fmt: skip


def read_tokenizer(path: Path) -> None:
    from jaxmerge.recipes.native import Recipe
    from jaxmerge.recipes.plan import Models

    recipe = Recipe([f"{path}/a"], "average", f"{path}/base", tokenizer="union")
    job = recipe.plan(Models()).jobs[0]
    for m in (job.base, *job.models):
        for n in m:
            if m[n].shape != m.like[n].shape:
                raise Wrong(f"leaf {n!r} is not what was said of it")


def write_adapter(path: Path) -> None:
    folder(path / "base", 0, config=CONFIG)
    (path / "l").mkdir()
    module = "base_model.model.model.layers.0.mlp.up"
    save_file(
        {f"{module}.lora_A.weight": np.ones((2, 4), np.float32),
         f"{module}.lora_B.weight": np.ones((4, 2), np.float32)},
        path / "l" / "adapter_model.safetensors",
    )  # fmt: skip
    config = {
        "peft_type": "LORA", "lora_alpha": 2, "r": 2, "alpha_pattern": {"up": 4}, "bias": "none",
        "rank_pattern": {}, "target_modules": ["up"], "use_rslora": False, "fan_in_fan_out": False,
    }  # fmt: skip
    (path / "l" / "adapter_config.json").write_text(json.dumps(config))


def read_adapter(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(f"{path}/base+{path}/l")
    for n in source:
        if source[n].shape != source.like[n].shape:
            raise Wrong(f"leaf {n!r} is not what was said of it")


RECIPE = """base: base
models: [a, base]
method:
  - trim: {density: 0.5, scope: leaf}
  - add
  - scale: {gradient: [0, 1]}
rules: {only: mlp}
out_dtype: float16
seed: 3
"""
MERGEKIT = """merge_method: slerp
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2]}
parameters:
  t:
    - filter: mlp
      value: [0, 0.5]
    - value: 0.3
dtype: float32
"""


def write_recipe(path: Path) -> None:
    two_models(path)
    (path / "own.yaml").write_text(RECIPE)
    (path / "mk.yaml").write_text(MERGEKIT)


def read_recipe(path: Path) -> None:
    from jaxmerge.cli import merge as command

    for name in ("own", "mk"):
        command.run(path / f"{name}.yaml", path / "out", quiet=True, force=True)


def write_resolved(path: Path) -> None:
    two_models(path)
    merge(path, {"base": f"{path}/base", "models": [f"{path}/a"], "method": "average"})


def read_resolved(path: Path) -> None:
    from jaxmerge.cli import merge as command

    command.run(path / "out" / "recipe.resolved.yaml", path / "again", quiet=True, resume=True)


# ------------------------------------------------------------ results and data


def results() -> Any:
    from jaxmerge.studies.results import Entry, Results, SeedRun, Sweep, Task, summarize

    matrix, metrics = [[0.5, 0.25], [0.75, 1.0]], {"accuracy": 0.5, "bwt": -0.25}
    entry = Entry("MagMax", "sequential", "magmax(0.5)", matrix, matrix, [0.5, 0.6], metrics,
                  Sweep([0.5, 1.0], [0.4, 0.5], 1.0), [None, 1.0])  # fmt: skip
    run = SeedRun(0, [0, 1], [Task("one", ["a"], 1, 1, 1), Task("two", ["b"], 1, 1, 1)], [entry],
                  [], {"training": 1.0}, {"sequential": {"training": 1.0}})  # fmt: skip
    recipe = {"lr": 0.1, "streams": {}}
    return Results("toy", "two tasks", ["a", "b"], recipe, [run], summarize([run]),
                   {"jaxmerge": "0"}, {"device": "cpu"}, {"total": 1.0})  # fmt: skip


def read_results(path: Path) -> None:
    from jaxmerge.cli import report
    from jaxmerge.studies import result_store
    from jaxmerge.studies.gather import gather

    groups = gather(result_store.read(next(iter(sorted(path.glob("r.*"))))))
    for form in ("md", "latex"):
        report.tables(groups, form)
        report.tables(groups, form, "accuracy")


def write_parquet(path: Path) -> None:
    from jaxmerge.studies import cells, result_store

    result_store.write(path, cells.cells(results()), "r")


def write_npz(path: Path) -> None:
    for split, count in (("train", 8), ("test", 4)):
        np.savez_compressed(
            path / f"d_{split}.npz", images=np.zeros((count, 4, 4), np.uint8),
            labels=np.arange(count) % 2, class_names=np.array(["a", "b"]),
        )  # fmt: skip


def read_npz(path: Path) -> None:
    from jaxmerge.data.npz import npz

    source = npz(path, "d")
    source.inputs[np.arange(len(source.labels))]


def write_texts(path: Path) -> None:
    texts = [[f"text {i}", f"i{i % 2}"] for i in range(8)]
    data = {s: texts for s in ("train", "val", "test")}
    (path / "data_full.json").write_text(json.dumps(data))
    (path / "domains.json").write_text(json.dumps({"d": ["i0", "i1"]}))
    rows = "text,category\n" + "".join(f'"a, {i}",k{i % 2}\n' for i in range(30))
    for split in ("train", "test"):
        (path / f"{split}.csv").write_text(rows)
    (path / "custrev.all").write_text("".join(f"{i % 2} some words {i}\n" for i in range(40)))


def read_texts(path: Path) -> None:
    from jaxmerge.data import text

    text.clinc150(path)
    text.banking77(path)
    text.sentences(path, "cr")


def write_images(path: Path) -> None:
    from PIL import Image

    for kind in ("a", "b"):
        (path / "d" / kind).mkdir(parents=True)
        for i in range(3):
            array = np.random.default_rng(i).integers(0, 255, (6, 5, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, "PNG" if kind == "a" else "JPEG")
            (path / "d" / kind / f"{i}.{'png' if kind == 'a' else 'jpg'}").write_bytes(
                buffer.getvalue()
            )


def read_images(path: Path) -> None:
    from jaxmerge.data.folders import folder as images

    source = images(path / "d", val=0.0)
    source.inputs[np.arange(len(source.labels))]


def write_statistic(path: Path) -> None:
    from jaxmerge.statistics import store

    values = {n: np.abs(x) for n, x in model(0).items()}
    about = {"data": "digits", "axis": {}}
    store.save(
        store.Statistic("fisher", values, 4, store.weights_hash(model(0)), about),
        path / "f.safetensors",
    )


def read_statistic(path: Path) -> None:
    from jaxmerge.statistics import store

    store.load(path / "f.safetensors", model(0))


FORMATS: dict[str, Format] = {
    "safetensors": Format(
        lambda p: save_file(model(0), p / "m.safetensors"), ("m.safetensors",), read_file
    ),
    "index": Format(write_shards, ("m/model.safetensors.index.json",), read_shards),
    "pickle": Format(write_torch, ("m.bin",), read_torch),
    "GGUF": Format(write_gguf, ("m.gguf",), read_gguf),
    "orbax": Format(write_orbax, ("m/_METADATA", "m/manifest.ocdbt"), read_orbax, slow=True),
    "config": Format(two_models, ("base/config.json", "base/tokenizer_config.json"), read_config,
                     slow=True),
    "tokenizer": Format(two_models, ("base/tokenizer.json", "a/tokenizer.json"), read_tokenizer),
    "adapter": Format(
        write_adapter, ("l/adapter_config.json", "l/adapter_model.safetensors"), read_adapter
    ),
    "recipe": Format(write_recipe, ("own.yaml", "mk.yaml"), read_recipe, slow=True),
    "resolved recipe": Format(write_resolved, ("out/recipe.resolved.yaml",), read_resolved,
                              slow=True),
    "results": Format(
        lambda p: (p / "r.json").write_text(results().to_json()) and None, ("r.json",), read_results
    ),
    "Parquet": Format(write_parquet, ("r.parquet",), read_results),
    "npz": Format(write_npz, ("d_train.npz", "d_test.npz"), read_npz),
    "text": Format(write_texts, ("data_full.json", "domains.json", "train.csv", "custrev.all"),
                   read_texts),
    "images": Format(write_images, ("d/a/0.png", "d/b/0.jpg"), read_images),
    "statistics": Format(write_statistic, ("f.safetensors",), read_statistic),
}  # fmt: skip
