"""Kill every command that writes, at random moments, and give each of them a full disk.

    python experiments/kill_trials.py                      # a few kills of each command
    python experiments/kill_trials.py --kills 20 --only merge,convert

A trial starts the command, kills it (SIGKILL) at a moment drawn within the time that it takes
undisturbed, or within the time that it takes from its lock on (it writes then), and goes on with
it (``--resume`` where there is one, else the command again) until it is through.  It holds if the
result is that of a run that nobody killed: equal bytes of checkpoints and statistics, equal figures
of runs.  Then the command runs with a limit on the size of the files that it writes, which ends a
write as a full disk does: it must end with exit code 2 and one line that names a file, and the next
try must succeed.

Writes `experiments/results/kills.json`, from which docs/reliability.md is made.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors.numpy import save_file

RESULTS = Path(__file__).parent / "results"
JAXMERGE = [sys.executable, "-m", "jaxmerge"]


TOY = """
from jaxmerge.cli.quickstart import Quickstart


def get_config():
    return Quickstart(epochs=1, seeds=1)
"""


class Command(NamedTuple):
    """One command.

    Attributes:
        first: its arguments.
        again: arguments that go on with it.
        out: what it writes, in the folder of the trial.
        same: what of the output must be equal; gets the path.
        limit: bytes of a file at which the disk is full.
    """

    first: Sequence[str]
    again: Sequence[str]
    out: str
    same: Callable[[Path], Any]
    limit: int


def content(path: Path) -> dict[str, bytes]:
    """Name -> bytes of a folder or a file, but those that note where the inputs lay."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    noted = ("README.md", "recipe.resolved.yaml", "adapter_config.json")
    return {str(p.relative_to(path.parent)): p.read_bytes() for p in files if p.name not in noted}


def arrays(path: Path) -> dict[str, bytes]:
    """Of an Orbax checkpoint, whose files hold times."""
    from jaxmerge.io.sources import open_source

    source = open_source(path)
    return {n: source[n].tobytes() for n in source}


def figures(path: Path) -> Any:
    """Of a run: everything but times and memory."""
    results = json.loads((path / "results.json").read_text())
    return [{k: v for k, v in run.items() if k not in ("seconds", "streams")}
            for run in results["seeds"]]  # fmt: skip


def cells(path: Path) -> Any:
    """Of a sweep: the accuracies of its cells."""
    from jaxmerge.studies import result_store

    return sorted((r["key"], r["accuracy"]) for r in result_store.read(path))


def write_models(folder: Path) -> None:
    """A base, two models and a recipe, some forty leaves each."""
    for i, name in enumerate(("base", "a", "b")):
        rng = np.random.default_rng(i)
        leaves = {f"layers.{k}.mlp.up.weight": rng.standard_normal((256, 512)).astype(np.float32)
                  for k in range(40)}  # fmt: skip
        (folder / name).mkdir(parents=True)
        save_file(leaves, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"num_hidden_layers": 40}')
    recipe = {"base": "base", "models": ["a", "b"], "method": "ties"}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "toy.py").write_text(TOY)


def commands() -> dict[str, Command]:
    """Every command that writes."""
    mini = resources.files("jaxmerge") / "assets" / "mini"
    merge = ["merge", "r.yaml", "out", "-q", "--shard-size", "8MB"]
    convert = ["convert", "a", "out", "-q", "--dtype", "bfloat16"]
    orbax = ["convert", "a", "out", "-q", "--to", "orbax"]
    lora = ["extract-lora", "base", "a", "out", "--rank", "16", "-q"]
    stats = ["stats", str(mini), "--data", "digits", "--kind", "fisher", "--samples", "64",
             "--out", "out.safetensors"]  # fmt: skip
    quickstart = ["quickstart", "--quick", "--quiet"]
    run = ["run", "toy.py", "--quiet"]
    sweep = ["sweep", "toy.py", "--quiet", "--grid", "factor=0.5,1.0", "--out", "out"]
    return {
        "merge": Command(merge, [*merge, "--resume"], "out", content, 1_000_000),
        "convert": Command(convert, [*convert, "--resume"], "out", content, 1_000_000),
        "convert --to orbax": Command(orbax, orbax, "out", arrays, 1_000_000),
        "extract-lora": Command(lora, lora, "out", content, 300_000),
        "stats": Command(stats, stats, "out.safetensors", content, 100_000),
        "quickstart": Command([*quickstart, "--out", "out"], [*quickstart, "--resume", "out"],
                              "out", figures, 100_000),
        "run": Command([*run, "--out", "out"], [*run, "--resume", "out"], "out", figures,
                       100_000),
        "sweep": Command(sweep, [*sweep, "--resume"], "out", cells, 100_000),
    }  # fmt: skip


def run(folder: Path, args: Sequence[str], limit: int | None = None) -> subprocess.CompletedProcess:
    def before() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [*JAXMERGE, *args], cwd=folder, capture_output=True, text=True, preexec_fn=before,
        env=environment(),
    )  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu"}


def started(command: Command, folder: Path) -> bool:
    """Whether there is something to go on with."""
    hidden = folder / f".{command.out}.partial"
    return (folder / command.out).exists() or hidden.exists()


def locks(command: Command, folder: Path) -> list[Path]:
    """Where a command notes that it works on its output."""
    return [folder / f".{command.out}.lock", folder / f"{command.out}.lock"]


def holds(child: subprocess.Popen, command: Command, folder: Path) -> bool:
    """Whether that process has a lock."""
    for lock in locks(command, folder):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(lock.read_text())["pid"] == child.pid:
                return True
    return False


def begin(folder: Path, args: Sequence[str], prefix: Sequence[str] = ()) -> subprocess.Popen:
    return subprocess.Popen(
        [*prefix, *JAXMERGE, *args], cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


def at_work(child: subprocess.Popen, command: Command, folder: Path) -> bool:
    """Waits until a process has its lock; False if it ended without one."""
    while child.poll() is None and not holds(child, command, folder):
        time.sleep(0.002)
    return child.poll() is None


def undisturbed(command: Command, folder: Path) -> tuple[float, float]:
    """Seconds that a command takes, and seconds of them with its lock; SystemExit if it fails."""
    began = locked = time.perf_counter()
    child = begin(folder, command.first)
    if at_work(child, command, folder):
        locked = time.perf_counter()
    errors = child.communicate()[1]
    if child.returncode:
        sys.exit(f"{' '.join(command.first)}: {errors}")
    ended = time.perf_counter()
    return ended - began, ended - locked if locked > began else 0.0


def trial(
    command: Command, sound: Path, kills: int, times: tuple[float, float], want: Any, rng,
    attempts: int = 3,
) -> dict:  # fmt: skip
    """One output, killed some times on its way; again from the start where it was through before
    the first kill."""
    with tempfile.TemporaryDirectory(dir=sound.parent) as temporary:
        folder, done = Path(temporary) / "work", 0
        shutil.copytree(sound, folder)
        for _ in range(kills):
            args = command.again if started(command, folder) else command.first
            began, seconds, child = time.perf_counter(), times[0], begin(folder, args)
            after = rng.uniform(0.3, 1.0) * seconds
            if times[1] and rng.random() < 0.7 and at_work(child, command, folder):
                after = rng.random() * times[1]
            try:
                child.wait(after)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                done += 1
                continue
            if child.returncode and not (folder / command.out).exists():  # a kill after the rename
                errors = child.stderr.read() if child.stderr else ""
                return {"kills": done, "held": False, "said": errors[-300:]}
            if not done and attempts:  # the machine was busier when the time was taken
                shutil.rmtree(folder)
                share = min(1.0, (time.perf_counter() - began) / seconds)
                sooner = times[0] * share, times[1] * share / 2
                return trial(command, sound, kills, sooner, want, rng, attempts - 1)
            break
        args = command.again if started(command, folder) else command.first
        last = run(folder, args)
        if last.returncode and not (folder / command.out).exists():
            return {"kills": done, "held": False, "said": last.stderr[-300:]}
        same = command.same(folder / command.out) == want
        left = [p.name for p in folder.iterdir() if p.name.startswith(".")]
        errors = "" if same else "differs"
        return {"kills": done, "held": same and not left, "said": errors, "left": left}


def full_disk(command: Command, sound: Path, want: Any) -> dict[str, Any]:
    """The command on a full disk, and the next try."""
    with tempfile.TemporaryDirectory(dir=sound.parent) as temporary:
        folder = Path(temporary) / "work"
        shutil.copytree(sound, folder)
        failed = run(folder, command.first, command.limit)
        lines = [x for x in failed.stderr.splitlines() if x.startswith("error:")]
        again = run(folder, command.again if started(command, folder) else command.first)
        same = again.returncode == 0 and command.same(folder / command.out) == want
        return {
            "code": failed.returncode,
            "said": (lines or [failed.stderr[-300:]])[-1].replace(f"{folder}/", "")[:300],
            "lines": len(failed.stderr.strip().splitlines()),
            "traceback": "Traceback" in failed.stderr, "next": same,
            "next_said": "" if same else again.stderr[-300:],
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=3, help="at most, of each trial")
    parser.add_argument("--trials", type=int, default=2, help="of each command")
    parser.add_argument("--only", default="", help="commands, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "kills.json")
    parser.add_argument("--append", action="store_true", help="keep other commands on file")
    given = parser.parse_args()
    known = commands()
    rng = random.Random(given.seed)
    old = json.loads(given.out.read_text()) if given.append and given.out.exists() else {}
    report: dict[str, Any] = {"commands": old.get("commands", {})}
    words = [w for w in sys.argv[1:] if w != "--append"]
    with tempfile.TemporaryDirectory() as temporary:
        sound = Path(temporary) / "sound"
        write_models(sound)
        for name in given.only.split(",") if given.only else known:
            command, want = known[name], None
            times = float("inf"), float("inf")
            for _ in range(2):  # the first one may compile what the second one finds
                with tempfile.TemporaryDirectory(dir=temporary) as other:
                    folder = Path(other) / "work"
                    shutil.copytree(sound, folder)
                    times = min(times, undisturbed(command, folder))
                    want = command.same(folder / command.out)
            trials = [
                trial(command, sound, given.kills, times, want, rng) for _ in range(given.trials)
            ]
            full = full_disk(command, sound, want)
            report["commands"][name] = {
                "command": " ".join(["python experiments/kill_trials.py", *words]),
                "trials": len(trials), "kills": sum(t["kills"] for t in trials),
                "held": sum(t["held"] for t in trials), "seconds": times[0], "full": full,
                "wrong": [t for t in trials if not t["held"]],
            }  # fmt: skip
            report["not tried"] = [n for n in known if n not in report["commands"]]
            print(name, json.dumps(report["commands"][name]), flush=True)
            given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
