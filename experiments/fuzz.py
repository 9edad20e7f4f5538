"""Damaged and hostile inputs of every format, by the thousand: who is refused, and how.

    python experiments/fuzz.py --seconds 3600                  # all formats for an hour
    python experiments/fuzz.py --inputs 200 --only recipe,npz  # so many inputs of each
    python experiments/fuzz.py --only npz --seed 17 --inputs 1 --show    # one input again
    python experiments/fuzz.py --again                         # the defects on file, once mended

A sound input of `experiments/fuzz_formats.py` is damaged by a seed and read as a command would read
it.  The outcome is one of

    accepted     read, and what was read agrees with an independent reader
    refused      one message that names a file of the input, of at most a screen
    poor         refused, but in Python's own words, or without naming the file
    traceback    an exception that the command line would not turn into a line
    wrong        accepted, but not what it should be
    slow         more than `SLOW` seconds
    memory       more than `MAX_MEMORY` bytes beyond what the process had
    crash        the process died

of which the last six are defects.  Inputs run in worker processes, a hundred in each, so that a
crash costs one input.  Prints every defect with the seed that makes it again; writes
`experiments/results/fuzz.json`, from which docs/reliability.md is made.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_checkpoints import Wrong
from fuzz_damage import damage
from fuzz_formats import FORMATS, Format

RESULTS = Path(__file__).parent / "results"
SLOW, MAX_MEMORY, BATCH = 30.0, 1 << 30, 100
SCREEN = 4000  # characters of a message
DEFECTS = ("poor", "traceback", "wrong", "slow", "memory", "crash")
PYTHON = re.compile(
    r"object has no attribute|unsupported operand|is not iterable|not subscriptable|"
    r"not callable|index out of range|invalid literal|unhashable|cannot be interpreted|"
    r"values to unpack|indices must be|unexpected keyword|required positional|"
    r"embedded null|codec can't|must be str, not|__init__|broadcast|NoneType|Traceback"
)


def run_one(form: Format, sound: Path, work: Path, seed: int) -> tuple[str, str]:
    """The outcome of one input, and what it said."""
    rng = random.Random(seed)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sound, work)
    for name in rng.sample(form.files, rng.choice((1, 1, 1, len(form.files)))):
        path = work / name
        path.write_bytes(damage(path.read_bytes(), name, rng))
    before, began = peak(), time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            form.read(work)
        outcome, text = "accepted", ""
    except Wrong as error:
        outcome, text = "wrong", str(error)
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        outcome = "refused" if well_said(text, form, (work, sound)) else "poor"
        text = f"{type(error).__name__}: {text}"
    except Exception as error:
        outcome, text = "traceback", f"{type(error).__name__}: {error}"
    if time.perf_counter() - began > SLOW:
        outcome = "slow"
    elif peak() - before > MAX_MEMORY:
        outcome = "memory"
    return outcome, text


def well_said(text: str, form: Format, folders: tuple[Path, ...]) -> bool:
    """Whether a refusal names a file of the input, in our words, on no more than a screen."""
    names = [*map(str, folders), *(Path(n).name for n in form.files)]
    named = any(n in text for n in names)
    return named and not PYTHON.search(text) and len(text) < SCREEN and len(text.split()) > 3


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_inputs(
    name: str,
    seeds: Iterable[int],
    until: float = float("inf"),
    report: Callable[[dict], None] = print,
) -> None:
    """Inputs of a format, in this process; `report` gets the outcome of every one."""
    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as temporary:
        sound, work = Path(temporary).resolve() / "sound", Path(temporary).resolve() / "work"
        sound.mkdir()
        form.write(sound)
        form.read(sound)
        shutil.rmtree(sound)
        sound.mkdir()
        form.write(sound)
        for seed in seeds:
            if time.time() > until:
                break
            outcome, text = run_one(form, sound, work, seed)
            report({"seed": seed, "outcome": outcome, "text": text[:300]})


def in_a_process(name: str, seeds: range, until: float) -> list[dict[str, Any]]:
    """The same in a process of its own; one that dies is noted as a crash, or as slow."""
    code = [
        sys.executable,
        __file__,
        "--worker",
        name,
        str(seeds.start),
        str(len(seeds)),
        str(until),
    ]
    try:
        done = subprocess.run(code, capture_output=True, text=True, timeout=60 + 10 * len(seeds))
        lines = done.stdout.splitlines()
        ended = f"exit {done.returncode}: {done.stderr[-200:]}" if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        lines, ended = (error.stdout or b"").decode().splitlines(), "did not end"
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    if ended:
        rows.append({"seed": seeds.start + len(rows), "outcome": "crash", "text": ended})
    return rows


def again(out: Path) -> None:
    """Run the inputs that were defects once more; those that are none now are noted as mended.

    The counts stay those of the run: they say what it met.
    """
    report = json.loads(out.read_text())
    left, mended = [], report.get("mended", [])
    for name in dict.fromkeys(d["format"] for d in report["defects"]):
        mine = {d["seed"]: d for d in report["defects"] if d["format"] == name}
        rows: list[dict[str, Any]] = []
        run_inputs(name, mine, report=rows.append)
        for row in rows:
            if row["outcome"] in DEFECTS:
                print(f"{name} --seed {row['seed']}: {row['outcome']}: {row['text']}", flush=True)
                left.append({"format": name, **row})
            else:
                mended.append(mine[row["seed"]] | {"now": row["outcome"]})
    print(f"{len(report['defects'])} inputs again, {len(left)} of them defects")
    report["defects"], report["mended"] = left, mended
    out.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=None, help="of each format")
    parser.add_argument("--seconds", type=float, default=60, help="in all, without --inputs")
    parser.add_argument("--only", default="", help="formats, with commas between")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--show", action="store_true", help="print every outcome")
    parser.add_argument("--out", type=Path, default=None, help="where to write the table")
    parser.add_argument("--append", action="store_true", help="keep the other formats on file")
    parser.add_argument("--again", action="store_true", help="run the defects on file again")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        name, first, count, until = given.worker
        seeds = range(int(first), int(first) + int(count))
        run_inputs(name, seeds, float(until), lambda row: print(json.dumps(row), flush=True))
        return
    if given.again:
        return again(given.out or RESULTS / "fuzz.json")
    names = given.only.split(",") if given.only else list(FORMATS)
    counts = {n: Counter() for n in names}
    began, defects, batch = time.time(), [], 0
    until = began + given.seconds if given.inputs is None else float("inf")
    while time.time() < until and (given.inputs is None or batch * BATCH < given.inputs):
        for n in names:
            if time.time() > until:
                break  # a process that begins takes seconds
            first, last = given.seed + batch * BATCH, given.seed + (batch + 1) * BATCH
            if given.inputs is not None:
                last = min(last, given.seed + given.inputs)
            for row in in_a_process(n, range(first, last), until):
                counts[n][row["outcome"]] += 1
                if row["outcome"] in DEFECTS or given.show:
                    print(f"{n} --seed {row['seed']}: {row['outcome']}: {row['text']}", flush=True)
                if row["outcome"] in DEFECTS:
                    defects.append({"format": n, **row})
        batch += 1
    out = given.out or RESULTS / "fuzz.json"
    old = json.loads(out.read_text()) if given.append and out.exists() else {}
    report = {
        "command": " ".join(["python experiments/fuzz.py", *sys.argv[1:]]),
        "seconds": old.get("seconds", 0) + time.time() - began,
        "counts": {**old.get("counts", {}), **{n: dict(c) for n, c in counts.items()}},
        "defects": [*old.get("defects", []), *defects],
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    total = sum(counts.values(), Counter())
    print(f"{sum(total.values())} inputs: " + ", ".join(f"{n} {k}" for k, n in total.items()))
    sys.exit(any(total[k] for k in DEFECTS))


if __name__ == "__main__":
    main()
