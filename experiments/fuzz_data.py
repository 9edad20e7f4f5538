"""Results and data that `experiments/fuzz.py` damages: what writes sound ones, what reads them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_checkpoints import (
    model,
)


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


def write_tables(path: Path) -> None:
    rows = [{"text": f"some text {i}", "label": f"k{i % 2}"} for i in range(20)]
    (path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for ending, mark in (("csv", ","), ("tsv", "\t")):
        lines = [mark.join(r.values()) for r in ({"text": "text", "label": "label"}, *rows)]
        (path / f"t.{ending}").write_text("\n".join(lines) + "\n")


def read_tables(path: Path) -> None:
    from jaxmerge.data.tables import table

    for file in sorted(path.glob("t.*")):
        table(file)
