"""What else goes wrong while a command writes: two at once, another machine, read-only, vanished.

    python experiments/mishaps.py                          # every command
    python experiments/mishaps.py --only merge,convert

Every command of `experiments/kill_trials.py` that writes is tried

    two at once     a second one for the same output while the first is stopped at its work: the
                    second ends, the first goes on and makes what a single one makes
    another host    a lock that a process of another machine left: refused; made once it is deleted
    read-only       the folder of the output may not be written to (root without its right to)
    vanished        its input is deleted as soon as it has begun to write

and each refusal must be exit code 2 with one line that names a file or a process, without a
traceback, and must not block the next try.  A command without an input of its own, and one that is
through before its input is gone, are not counted as vanished.  A command that makes a single file
renames it into place and has no lock: two at once, both end well and the file is whole.

Writes `experiments/results/mishaps.json`, from which docs/reliability.md is made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kill_trials import RESULTS, Command, at_work, begin, commands, locks, started, write_models

# root writes wherever it likes, unless it is without these rights
PLAIN = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
INPUTS = {"merge": "b", "convert": "a", "convert --to orbax": "a", "extract-lora": "a"}
SINGLE_FILE = ("stats",)  # commands without a lock
FOREIGN = {"host": "elsewhere.example", "pid": 4242, "boot": "another"}


def ended(child: subprocess.Popen) -> dict[str, Any]:
    """How a command ended: its code, and whether it said one line about it."""
    text = child.communicate()[1]
    lines = [x for x in text.splitlines() if x.startswith("error:")]
    well = child.returncode == 2 and len(lines) == 1 and "Traceback" not in text
    return {"code": child.returncode, "well": well, "said": (lines or [text[-300:]])[-1][:300]}


def as_wanted(command: Command, folder: Path, want: Any) -> bool:
    """Whether the command, tried (again), gives what an undisturbed one gives."""
    args = command.again if started(command, folder) else command.first
    child = begin(folder, args)
    child.communicate()
    return (folder / command.out).exists() and command.same(folder / command.out) == want


def two_at_once(command: Command, folder: Path, want: Any) -> dict[str, Any] | None:
    one = begin(folder, command.first)
    at_work(one, command, folder)
    one.send_signal(signal.SIGSTOP)
    if one.poll() is not None:
        return None
    other = ended(begin(folder, command.first))
    one.send_signal(signal.SIGCONT)
    first = ended(one)
    same = first["code"] == 0 and command.same(folder / command.out) == want
    return {"held": same and other["well"], "said": other["said"] or first["said"]}


def both(command: Command, folder: Path, want: Any) -> dict[str, Any]:
    ends = [ended(c) for c in [begin(folder, command.first) for _ in range(2)]]
    held = all(e["code"] == 0 for e in ends) and command.same(folder / command.out) == want
    return {"held": held, "said": "both made it" if held else ends[0]["said"]}


def another_host(command: Command, folder: Path, want: Any) -> dict[str, Any]:
    for lock in locks(command, folder):
        lock.write_text(json.dumps(FOREIGN))
    end = ended(begin(folder, command.first))
    for lock in locks(command, folder):
        lock.unlink(missing_ok=True)
    well = end["well"] and FOREIGN["host"] in end["said"] and as_wanted(command, folder, want)
    return {"held": well, "said": end["said"]}


def read_only(command: Command, folder: Path, want: Any) -> dict[str, Any]:
    folder.chmod(0o555)
    end = ended(begin(folder, command.first, PLAIN))
    folder.chmod(0o755)
    return {"held": end["well"] and as_wanted(command, folder, want), "said": end["said"]}


def vanished(command: Command, folder: Path, want: Any, name: str) -> dict[str, Any] | None:
    child, gone = begin(folder, command.first), folder / "gone"
    while child.poll() is None and not started(command, folder):
        time.sleep(0.002)
    os.rename(folder / name, gone)
    end = ended(child)
    os.rename(gone, folder / name)
    if end["code"] == 0:
        return None
    return {"held": end["well"] and as_wanted(command, folder, want), "said": end["said"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="commands, with commas between")
    parser.add_argument("--out", type=Path, default=RESULTS / "mishaps.json")
    parser.add_argument("--append", action="store_true", help="keep other commands on file")
    given = parser.parse_args()
    old = json.loads(given.out.read_text()) if given.append and given.out.exists() else {}
    report: dict[str, Any] = {"commands": old.get("commands", {})}
    words = [w for w in sys.argv[1:] if w != "--append"]
    known = commands()
    with tempfile.TemporaryDirectory() as temporary:
        os.chmod(temporary, 0o755)
        sound = Path(temporary) / "sound"
        write_models(sound)

        def fresh(i: int) -> Path:
            return Path(shutil.copytree(sound, Path(temporary) / f"work{i}", dirs_exist_ok=False))

        for name in given.only.split(",") if given.only else known:
            command, folder = known[name], fresh(0)
            first = ended(begin(folder, command.first))
            if first["code"]:
                sys.exit(f"{name}: {first['said']}")
            want: Any = command.same(folder / command.out)
            trials: dict[str, Any] = {
                "command": " ".join(["python experiments/mishaps.py", *words])
            }
            locked = name not in SINGLE_FILE
            trials["two at once"] = (two_at_once if locked else both)(command, fresh(1), want)
            trials["another host"] = another_host(command, fresh(2), want) if locked else None
            trials["read only"] = read_only(command, fresh(3), want)
            if name in INPUTS:
                trials["vanished"] = vanished(command, fresh(4), want, INPUTS[name])
            report["commands"][name] = trials
            report["not tried"] = [n for n in known if n not in report["commands"]]
            print(name, json.dumps(trials), flush=True)
            given.out.write_text(json.dumps(report, indent=1) + "\n")
            for i in range(5):
                shutil.rmtree(Path(temporary) / f"work{i}", ignore_errors=True)


if __name__ == "__main__":
    main()
