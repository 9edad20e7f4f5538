"""Merging checkpoints from files: jaxmerge, mergekit and a plain copy, side by side in one run.

    python experiments/bench/merge_files.py FAMILY --mergekit ENV/bin/mergekit-yaml --out SCRATCH
    python experiments/bench/merge_files.py FAMILY --before TREE --out SCRATCH --repeat 5

FAMILY holds folders ``base``, ``ft0`` ... in bfloat16; ``family.py FAMILY --decoder 0.4b`` makes
that of merge_files.json (290 leaves, 387M parameters, 0.77 GB each, random).  Every figure is a
whole process, started anew: wall seconds, CPU seconds (user and system, of all threads), and the
peak of anonymous resident memory (RssAnon, every 20 ms).
"copy" reads all inputs, computes nothing, writes one output and syncs it.  jaxmerge runs once more
than the others: the first run compiles and hashes its inputs, the later ones find both in its
cache.  Of --repeat runs the one of the least wall time counts, for every program.  All inputs are
read once before each run, so that every program finds them in the page cache, and jaxmerge is
byte-compiled as an installed package is: where PYTHONDONTWRITEBYTECODE is set, an edited module
would be parsed again in every run.

--before is another working tree of the repository (``git worktree add TREE COMMIT``): its runs and
this tree's alternate, and the ratio of their wall times says whether a change cost anything.

Aims (two idle cores): linear and task arithmetic at least 5 times as fast as mergekit, TIES 20
times, DARE-TIES 6 times; TIES within 4 times the copy, DARE-TIES within 4.5; under 1 GB.

Obtained: experiments/results/merge_files.json (--json), with the load average before each run; on a
busy machine wall times say little, and CPU seconds grow too.  There linear and task arithmetic (3.5
and 3.6 times mergekit) and TIES (12 times, 5.1 copies) miss their aims.  merge_files_3b.json is of
``family.py FAMILY --decoder 3b``, 31 GB, which no page cache here holds: TIES is 25 times as fast
as mergekit and takes 2.0 copies, DARE-TIES 7.7 and 2.9; linear and task arithmetic take no longer
than the copy, so that 3.8 and 3.5 times mergekit are what the disk allows; DARE-TIES has 1.1 GB,
which misses the last aim. A run replaces the rows of its methods in such a file, and keeps others
of the same family and machine.
`experiments/readme.py` makes the tables of the README from both.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path

import jaxmerge

METHODS = ("linear", "task_arithmetic", "ties", "dare_ties")

COPY = """
import os, sys
*inputs, out = sys.argv[1:]
block = bytearray(16 << 20)
view = memoryview(block)
with open(out, "wb", buffering=0) as target:
    for i, path in enumerate(inputs):
        with open(path, "rb", buffering=0) as file:
            while n := file.readinto(block):
                if os.path.dirname(path).endswith("base"):
                    target.write(view[:n])
    os.fsync(target.fileno())
"""


def recipe(method: str, family: Path, models: list[str]) -> str:
    """Mergekit's YAML, which both read."""
    parameters = {"weight": 1 / len(models)}
    if method in ("ties", "dare_ties"):
        parameters["density"] = 0.2
    content = {
        "merge_method": method,
        "models": [{"model": str(family / m), "parameters": parameters} for m in models],
        "dtype": "bfloat16",
    }
    if method != "linear":
        content["base_model"] = str(family / "base")
    return json.dumps(content)  # JSON is YAML


def measure(command: list[str], cwd: Path, env: dict[str, str]) -> dict[str, float]:
    """Run a command: wall seconds, CPU seconds, peak anonymous memory in bytes."""
    began = time.perf_counter()
    child = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak, done = [0], threading.Event()

    def watch():
        while not done.is_set():
            try:
                for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        peak[0] = max(peak[0], int(line.split()[1]) * 1024)
            except OSError:
                return
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - began
    done.set()
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()[-2000:]}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": peak[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path)
    parser.add_argument("--mergekit", help="mergekit-yaml in an environment of its own")
    parser.add_argument("--before", type=Path, help="another tree of the repository, to compare")
    parser.add_argument("--out", type=Path, help="scratch folder on the same disk")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each program, best counts")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    family = options.family.resolve()
    models = sorted(p.name for p in family.glob("ft*"))
    if not models or not (family / "base").is_dir():
        parser.error(f"{family} has no folders base and ft0: family.py makes them.")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    trees = {"jaxmerge": Path(jaxmerge.__file__).parents[1]}
    if options.before:
        trees["before"] = options.before.resolve()
    for tree in trees.values():
        compileall.compile_dir(tree / "jaxmerge", quiet=1)
    scratch = Path(tempfile.mkdtemp(dir=options.out))
    inputs = [str(p) for d in ("base", *models) for p in sorted((family / d).glob("*.safetensors"))]

    def run(*command: str, tree: str = "jaxmerge") -> dict[str, float]:
        env = os.environ | {"JAXMERGE_CACHE": str(scratch / f"cache-{tree}"), "HF_HUB_OFFLINE": "1"}
        env["PYTHONPATH"] = str(trees[tree])
        shutil.rmtree(scratch / "merged", ignore_errors=True)
        subprocess.run(["cat", *inputs], stdout=subprocess.DEVNULL, check=True)
        load = os.getloadavg()[0]
        return measure(list(command), family, env) | {"load_before": load}

    def best(*command: str) -> dict[str, float]:
        return least([run(*command) for _ in range(options.repeat)])

    try:
        plain = (sys.executable, "-c", COPY, *inputs, str(scratch / "copy"))
        run(*plain)
        copy = best(*plain)
        (scratch / "copy").unlink()
        rows = {}
        for method in options.methods:
            path = scratch / f"{method}.yaml"
            path.write_text(recipe(method, family, models))
            merge = ("merge", str(path), str(scratch / "merged"), "--quiet")
            ours = {t: (*program(at), *merge) for t, at in trees.items()}
            rows[method] = {"first": run(*ours["jaxmerge"])}
            for t in ours.keys() - {"jaxmerge"}:
                run(*ours[t], tree=t)
            turns = [{t: run(*ours[t], tree=t) for t in ours} for _ in range(options.repeat)]
            rows[method] |= {t: least([turn[t] for turn in turns]) for t in ours}
            if options.mergekit:
                theirs = (options.mergekit, str(path), str(scratch / "merged"), "--quiet")
                rows[method]["mergekit"] = best(*theirs)
            show(method, rows[method], copy)
            save(options.json, inputs, options.mergekit, copy, rows)
    finally:
        shutil.rmtree(scratch)


def program(tree: Path) -> tuple[str, ...]:
    """The command `jaxmerge` of a working tree."""
    settings = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = settings["project"]["scripts"]["jaxmerge"].partition(":")
    return sys.executable, "-c", f"from {module} import {function}; {function}()"


def save(
    path: Path | None, inputs: list[str], mergekit: str | None, copy: dict, rows: dict
) -> None:
    """Enter the figures so far into the file."""
    if path is None:
        return
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "inputs": len({os.path.dirname(p) for p in inputs}),
        "bytes": sum(map(os.path.getsize, inputs)),
        "mergekit": version(mergekit), "copy": copy, "methods": rows,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    if all(known.get(k) == result[k] for k in ("machine", "bytes", "mergekit")):  # other methods
        result["methods"] = known["methods"] | rows
        result["copy"] = least([known["copy"], copy])
    path.write_text(json.dumps(known | result, indent=2) + "\n")


def least(runs: list[dict[str, float]]) -> dict[str, float]:
    """The run of the least wall time, and how many there were."""
    return min(runs, key=lambda r: r["wall"]) | {"runs": sum(r.get("runs", 1) for r in runs)}


def version(command: str | None) -> str | None:
    """The installed version behind mergekit-yaml."""
    if command is None:
        return None
    python = Path(command).parent / "python"
    code = "from importlib.metadata import version; print(version('mergekit'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def show(method: str, row: dict, copy: dict) -> None:
    """One line a program."""
    for who in ("first", "jaxmerge", "before", "mergekit"):
        if who in row:
            r = row[who]
            print(
                f"{method:16} {who:9} {r['wall']:7.1f} s wall {r['cpu']:7.1f} s CPU "
                f"{r['wall'] / copy['wall']:6.1f} x copy  {r['peak'] / 1e9:5.2f} GB", flush=True,
            )  # fmt: skip
    if "before" in row:
        ours, old = row["jaxmerge"], row["before"]
        print(
            f"{method:16} jaxmerge / before: {ours['wall'] / old['wall']:.2f} in wall time, "
            f"{ours['cpu'] / old['cpu']:.2f} in CPU time", flush=True,
        )  # fmt: skip
    if "mergekit" in row:
        ours, theirs = row["jaxmerge"], row["mergekit"]
        print(
            f"{method:16} mergekit / jaxmerge: {theirs['wall'] / ours['wall']:.1f} in wall time, "
            f"{theirs['cpu'] / ours['cpu']:.1f} in CPU time", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
