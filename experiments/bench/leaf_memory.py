"""Peak memory of `jaxmerge merge` on one large leaf, for every registered method, beside --check.

    python experiments/bench/leaf_memory.py                          # a leaf of 1.5 GB
    python experiments/bench/leaf_memory.py --leaf 0.3 --only ties,slerp --append

A base and three models (fewer where a method takes fewer) hold one float32 matrix; the values are
drawn once and shared by block, so that writing the inputs is quick.  Every method runs through the
command line in a process of its own; its peak is the resident memory that the kernel notes for
that process, Python, XLA and the mapped code included.  ``bound`` is what --check says before;
``x leaf`` is the peak beyond that of a merge of nothing, in leaves.

A method whose fold needs all entries of a leaf at once (a singular value decomposition, a sort)
is bounded by its leaf; those that can be cut are bounded by the budget.  Matrix methods that take
minutes at this size are measured on a smaller leaf (``--matrix``), which --check sees too.

Writes `experiments/results/leaf_memory.json` and `.md` after every method, each row with the
command of its run and the load before it.  `--append` keeps rows that are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import jaxmerge as jm
from jaxmerge.io.header import build
from jaxmerge.io.safetensors import File
from jaxmerge.statistics.store import FORMAT, weights_hash

RESULTS = Path(__file__).parents[1] / "results"
MODELS, WIDTH = 3, 4096
# Arguments of methods that have no defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "nearswap": {"t": 0.01},
    "tsv_c": {"tasks": MODELS},
    "wudi": {"steps": 2},
    "dop": {"steps": 1},
    "regmean": {"axis": 1},
}
FEWER = {  # methods that take fewer models, and those that are merged without a base
    "slerp": 2, "nuslerp": 2, "nearswap": 1, "arcee_fusion": 1, "interpolation": 2, "tsv_c": 1,
}  # fmt: skip
KINDS = {"mask": "BOOL", "fisher": "F32", "gram": "F32"}  # side information, and how it is stored
# Without programs that an earlier run has left: compiling takes memory too.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
# A decomposition or a sort of the whole leaf: minutes of processor time on a leaf of this size.
MATRIX = ("dop", "iso_c", "iso_cts", "opcm", "regmean", "tsv_c", "tsv_m", "wudi")


def published() -> list[str]:
    """The names of the registered factories that are published methods."""
    return sorted(n for n, f in jm.REGISTRY.items() if ".methods" in f.__module__)


def write_models(folder: Path, shape: tuple[int, int]) -> None:
    """A base and models with one leaf."""
    rng = np.random.default_rng(0)
    block = 1 << 22
    base = rng.standard_normal(block, np.float32)
    for i in range(MODELS + 1):
        noise = base if i == 0 else base + 0.1 * rng.standard_normal(block, np.float32)
        _one(folder / f"m{i}" / "model.safetensors", "F32", shape, noise)


def write_sides(folder: Path, kind: str, shape: tuple[int, int]) -> None:
    """Side information about every model, as random as its leaf."""
    shape = (WIDTH, WIDTH) if kind == "gram" else shape
    for i in range(1, MODELS + 1):
        path, about = folder / f"m{i}" / f"{kind}.safetensors", None
        if path.exists():
            continue
        count = WIDTH * WIDTH if kind == "gram" else 1 << 22
        values = np.random.default_rng(i).random(count, np.float32)
        if kind == "mask":
            values = values > 0.5
        else:
            weights = weights_hash(File(folder / f"m{i}" / "model.safetensors"))
            about = {"format": FORMAT, "kind": kind, "samples": "1", "weights": weights,
                     "about": "{}"}  # fmt: skip
        if kind == "gram":
            square = values[: WIDTH * WIDTH].reshape(WIDTH, WIDTH) - 0.5
            values = (square @ square.T).reshape(-1)
        _one(path, KINDS[kind], shape, values, about)


def _one(path: Path, code: str, shape: tuple[int, int], values: np.ndarray, about=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head, entries = build({"w": (code, shape)}, about or {})
    left = math.prod(shape)
    with open(path, "wb") as file:
        file.write(head)
        while left:
            part = values[:left]
            file.write(part.tobytes())
            left -= part.size
    assert path.stat().st_size == entries["w"].stop


def command(folder: Path, *options: str) -> tuple[int, int, float, str]:
    """Exit code, peak bytes, seconds and output of `jaxmerge merge r.yaml`."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "jaxmerge", "merge", "r.yaml", *options],
            cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=ENVIRONMENT,
        )  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
        out.seek(0)
        text = out.read().decode(errors="replace")
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_maxrss * 1024, time.perf_counter() - began, text


def measure(folder: Path, name: str, shape: tuple[int, int]) -> dict[str, Any]:
    """One method: what --check says, what the merge takes."""
    arguments = ARGUMENTS.get(name, {})
    method = jm.get(name)(**arguments)
    count = FEWER.get(name, MODELS)
    models = [f"m{i + 1}" for i in range(count)]
    recipe: dict[str, Any] = {"base": "m0", "models": models, "method": {name: arguments}}
    for kind in method.needs:
        apart = multiprocessing.get_context("spawn").Process(
            target=write_sides, args=(folder, kind, shape)
        )  # a command's peak counts the memory of the process that it was started from
        apart.start()
        apart.join()
    if method.needs:
        recipe["extras"] = {k: [f"{m}/{k}.safetensors" for m in models] for k in method.needs}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    row: dict[str, Any] = {"method": name, "models": count}
    code, _, _, text = command(folder, "--check", "--json")
    if code:
        return row | {"refused": text.strip().splitlines()[-1][:200]}
    row["bound"] = json.loads(text[text.index("{") :])["memory"]
    shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.rmtree(folder / ".out.partial", ignore_errors=True)
    code, row["peak"], row["seconds"], text = command(folder, "out", "-q")
    if code:
        row["failed"] = text.strip().splitlines()[-1][:200] if text.strip() else f"exit {code}"
    shutil.rmtree(folder / "out", ignore_errors=True)
    return row


def table(report: dict[str, Any]) -> str:
    """The rows as Markdown."""
    commands = ", ".join(f"`{c}`" for c in dict.fromkeys(r["command"] for r in report["rows"]))
    lines = [
        f"{commands}: one float32 leaf, a base and {MODELS} models (fewer where a method takes "
        "fewer); `x leaf` is the peak beyond that of a merge of nothing in the same run.",
        "",
        "| Method | Models | leaf GB | --check GB | peak GB | peak / --check | x leaf | s |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for r in sorted(report["rows"], key=lambda r: r["method"]):
        if "peak" not in r or "failed" in r:
            lines.append(f"| `{r['method']}` | {r['models']} | | | | | | |")
            continue
        more = (r["peak"] - r["nothing"]) / r["leaf"]
        lines.append(
            f"| `{r['method']}` | {r['models']} | {r['leaf'] / 1e9:.2f} | {r['bound'] / 1e9:.2f} | "
            f"{r['peak'] / 1e9:.2f} | {r['peak'] / r['bound']:.2f} | {more:.1f} | "
            f"{r['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--leaf", type=float, default=1.5, help="GB of the leaf")
    parser.add_argument("--matrix", type=float, default=0.05, help="GB for decompositions")
    parser.add_argument("--only", default="", help="names of methods, with commas between")
    parser.add_argument("--work", type=Path, default=None, help="folder for the inputs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--append", action="store_true", help="keep the other rows on file")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else published()
    path = given.out / "leaf_memory.json"
    old = json.loads(path.read_text()) if given.append and path.exists() else {"rows": []}
    rows = {r["method"]: r for r in old["rows"]}
    shape_of = lambda size: (max(1, int(size * 1e9 / 4 / WIDTH)), WIDTH)
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.work) as temporary:
        folders = {}
        for size in {0.0001, given.leaf, given.matrix}:
            folders[size] = Path(temporary) / f"{size}"
            write_models(folders[size], shape_of(size))
        nothing = measure(folders[0.0001], "task_arithmetic", shape_of(0.0001))["peak"]
        words = [w for w in sys.argv[1:] if w != "--append"]
        if "--work" in words:  # where the inputs lay is of no matter
            at = words.index("--work")
            del words[at : at + 2]
        run = {
            "command": " ".join(["python experiments/bench/leaf_memory.py", *words]),
            "nothing": nothing, "cores": os.cpu_count(),
        }  # fmt: skip
        for name in names:
            size, load = given.matrix if name in MATRIX else given.leaf, os.getloadavg()[0]
            row = measure(folders[size], name, shape_of(size))
            rows[name] = row | run | {"leaf": 4 * math.prod(shape_of(size)), "load": load}
            print(json.dumps(rows[name]), flush=True)
            report = {"rows": [rows[n] for n in sorted(rows)]}
            given.out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n")
            path.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
