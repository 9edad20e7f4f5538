"""The tables of docs/reliability.md, made from the result files; `readme.py` puts them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OUTCOMES = ("accepted", "refused", "poor", "traceback", "wrong", "slow", "memory", "crash")
MISHAPS = ("two at once", "another host", "read only", "vanished")


def attack() -> str:
    """Every table that was measured, one below the other."""
    makers = {
        "fuzz": fuzz, "kills": kills, "mishaps": mishaps, "long_streams": long_streams,
    }  # fmt: skip
    paths = {RESULTS / f"{name}.json": make for name, make in makers.items()}
    parts = [make(json.loads(p.read_text())) for p, make in paths.items() if p.exists()]
    return "\n\n".join(parts) or "Not tried yet."


def fuzz(report: dict[str, Any]) -> str:
    """Outcomes by format."""
    total = sum(sum(c.values()) for c in report["counts"].values())
    mended = len(report.get("mended", ()))
    since = f" {mended} of the defects are mended since (`--again`)." if mended else ""
    if report.get("again"):  # of a run whose counts were changed
        since = f" {report['again']} were refused badly; mended, and counted as they are now."
    lines = [
        f"`{report['command']}`: {total:,} inputs in {report['seconds']:,.0f} s.{since}",
        "",
        f"| Format | Inputs | {' | '.join(o.capitalize() for o in OUTCOMES)} |",
        f"| :-- | {' | '.join(['--:'] * (1 + len(OUTCOMES)))} |",
    ]
    for name, c in report["counts"].items():
        figures = [str(c.get(o, 0)) for o in OUTCOMES]
        lines.append(f"| {name} | {sum(c.values())} | {' | '.join(figures)} |")
    return "\n".join(lines)


def ran(report: dict[str, Any]) -> str:
    """The commands that made the rows, and the rows that there are none of."""
    commands = ", ".join(
        f"`{c}`" for c in dict.fromkeys(r["command"] for r in report["commands"].values())
    )
    missing = ", ".join(f"`{n}`" for n in report["not tried"])
    return f"{commands} (not tried: {missing})" if missing else commands


def kills(report: dict[str, Any]) -> str:
    """Kills and full disks by command."""
    lines = [
        f"{ran(report)}; on a full disk: the exit code, lines on standard error, whether they were "
        "a traceback, and whether the next try gave the same output.",
        "",
        "| Command | Outputs | Kills | As undisturbed | Full disk: code | Lines | Traceback | "
        "Next try |",
        "| :-- | --: | --: | --: | --: | --: | :-- | :-- |",
    ]
    for name, c in report["commands"].items():
        full = c["full"]
        lines.append(
            f"| `{name}` | {c['trials']} | {c['kills']} | {c['held']} | {full['code']} | "
            f"{full['lines']} | {'yes' if full['traceback'] else 'no'} | "
            f"{'equal' if full['next'] else 'not equal'} |"
        )
    return "\n".join(lines)


def mishaps(report: dict[str, Any]) -> str:
    """What else goes wrong, by command."""
    lines = [
        f"{ran(report)}: a second process for the same output, a lock of another machine, an "
        "output that may not be written, an input that vanishes; each refused in one line, and the "
        "next try as undisturbed.",
        "",
        f"| Command | {' | '.join(t.capitalize() for t in MISHAPS)} |",
        f"| :-- | {' | '.join([':-:'] * len(MISHAPS))} |",
    ]
    for name, c in report["commands"].items():
        outcomes = [("yes" if c[t]["held"] else "no") if c.get(t) else "–" for t in MISHAPS]
        lines.append(f"| `{name}` | {' | '.join(outcomes)} |")
    return "\n".join(lines)


def long_streams(report: dict[str, Any]) -> str:
    """Memory and time of long streams."""
    lines = [
        f"`{report['command']}`, load average {report['load']:.0f}; resident memory and median "
        "processor seconds a step early in the stream and at its end:",
        "",
        "| Stream | Memory early, MB | at the end | Seconds early | at the end |",
        "| :-- | --: | --: | --: | --: |",
    ]
    names = {
        "loop": "300 tasks through the loop, a task",
        "updates": "10,000 models through `jm.update`, 20 models",
    }
    for key, name in names.items():
        c = report[key]
        lines.append(
            f"| {name} | {c['memory_first'] / 1e6:.0f} | {c['memory_last'] / 1e6:.0f} | "
            f"{c['seconds_first']:.3f} | {c['seconds_last']:.3f} |"
        )
    return "\n".join(lines)
