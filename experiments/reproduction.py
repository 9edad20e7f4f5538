"""Writes docs/reproduction.md from result files and from what was published.

    JAXMERGE_ORACLES=experiments/results/oracles.json pytest tests/test_golden_*.py
    python experiments/split_mnist.py data=FOLDER
    python experiments/permuted_mnist.py data=FOLDER
    python experiments/reproduction.py

`published.json` holds the published figures with their sources; `results/oracles.json` the largest
differences from the authors' own code, file by file; the other two the accuracy tables.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent
RESULTS, PAGE = ROOT / "results", ROOT.parent / "docs" / "reproduction.md"
SCENARIOS = {
    "class": "class-incremental",
    "domain": "domain-incremental",
    "task": "task-incremental",
}
ORACLES = {  # golden files: methods, the tolerance to which tests hold them, the test
    "coso": ("`coso`", "1e-8", "subspaces"),
    "der": ("`er`, `der`, `derpp`, both buffers", "1e-12", "der"),
    "gpm": ("`gpm`", "1e-12", "gpm"),
    "mas": ("`mas`", "1e-12", "regularisers"),
    "olora": ("`lora`, `olora`", "1e-12", "olora"),
    "osft": ("`osft`", "1e-10", "subspaces"),
    "refresh": ("`refresh`", "1e-12", "refresh"),
    "rehearsal_free": (
        "`l2`, `ewc`, `si`, `mas`, `pred_kd`, `feat_kd`",
        "1e-12, importances 1e-11",
        "regularisers",
    ),
    "slca": ("`slca`", "1e-9", "slca"),
    "supsup": ("`supsup`", "1e-11", "supsup"),
}  # fmt: skip


def read(name: str) -> dict | None:
    """A result file, or None where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def percent(row: dict) -> str:
    """Mean and standard deviation over seeds."""
    return f"{100 * np.mean(row['accuracy']):.1f} +- {100 * np.std(row['accuracy']):.1f}"


def grid(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return [line(head), "|" + " :-- |" * len(head), *map(line, rows), ""]


def accuracy_table(name: str) -> list[str]:
    """Every scenario of an experiment as a column, the chosen settings and costs below."""
    found = read(name)
    if found is None:
        return [f"`{name}`: no result file in this version.", ""]
    rows = [r for r in found["rows"] if r["scenario"] in SCENARIOS]
    scenarios = [s for s in SCENARIOS if any(r["scenario"] == s for r in rows)]
    methods = list(dict.fromkeys(r["method"] for r in rows))
    at = {(r["method"], r["scenario"]): r for r in rows}
    cell = lambda m, s: percent(at[m, s]) if (m, s) in at else "–"
    body = [[m, *(cell(m, s) for s in scenarios)] for m in methods]
    protocols = "; ".join(dict.fromkeys(r["protocol"] for r in rows))
    seconds = sum(r["processor_seconds"] for r in rows)
    said = [
        f"{protocols}. Mean accuracy over tasks after the last one in percent, mean and standard "
        f"deviation of {len(found['seeds'])} seeds; settings chosen on validation images of seed "
        f"{found['tuning_seed']}. `{found['command']}`, {seconds:.0f} processor seconds in all on "
        f"{found['machine']['cpus']} shared CPU cores. Methods of the script that are missing here "
        "have not been run yet: the command goes on where it stopped.",
        "",
    ]
    chosen = [
        [
            SCENARIOS[r["scenario"]],
            r["method"],
            f"`{r['setting']}`",
            f"{r['processor_seconds']:.0f}",
        ]
        for r in rows
    ]
    fold = ['<details markdown="1"><summary>Settings and costs</summary>', ""]
    fold += grid(["Scenario", "Method", "Setting", "Processor s"], chosen)
    fold += ["</details>", ""]
    return [*said, *grid(["Method", *(SCENARIOS[s] for s in scenarios)], body), *fold]


def published() -> list[str]:
    """Published figures beside ours, or why there is none."""
    rows = []
    for p in json.loads((ROOT / "published.json").read_text(encoding="utf-8")):
        ours, cost = None, "–"
        if p["ours"]:
            name, scenario, method = p["ours"]
            stored = (read(name) or {"rows": []})["rows"]
            hit = [r for r in stored if (r["scenario"], r["method"]) == (scenario, method)]
            if hit:
                ours = f"{percent(hit[0])} ({len(hit[0]['accuracy'])} seeds)"
                cost = f"`{name}.py scenarios={scenario}`, {hit[0]['processor_seconds']:.0f} s"
        reason = p.get("because", "it has not been run in this version")
        rows.append(
            [p["method"], p["protocol"], p["published"] or "–", p["note"],
             ours or f"not reproduced, because {reason}", cost]
        )  # fmt: skip
    return grid(["Method", "Protocol", "Published", "Source", "Ours", "Command, processor s"], rows)


def oracles() -> list[str]:
    """What each golden file holds to, and the largest difference where it was measured."""
    found = (read("oracles") or {"systems": {}})["systems"]
    rows = []
    for system, (methods, tolerance, test) in ORACLES.items():
        most = max((most for most, _ in found.get(system, {}).values()), default=None)
        measured = "–" if most is None else f"{most:.1e}"
        where = f"`tests/test_golden_{test}.py`"
        rows.append([methods, f"`{system}`", tolerance, measured, where])
    return grid(["Methods", "Golden files", "Held to", "Largest difference", "Test"], rows)


def page() -> str:
    """The whole page."""
    parts = [
        "# Reproduction of continual-learning methods",
        "",
        "Written by `python experiments/reproduction.py`; change the results, not this page.",
        "",
        "## Against the authors' code",
        "",
        "Absolute differences of weights, losses, gradients and importances in float64, through "
        "the public driver where the file is a stream; `JAXMERGE_ORACLES=FILE pytest "
        "tests/test_golden_*.py` measures the largest.",
        "",
        *oracles(),
        "Ranks, masks, buffer slots and chosen tasks are compared exactly and are equal. LwF has "
        "no oracle here: it is held to the equations of its paper.",
        "",
        "## Split MNIST",
        "",
        *accuracy_table("split_mnist"),
        "## Permuted MNIST",
        "",
        *accuracy_table("permuted_mnist"),
        "These streams are short: they rank methods under one protocol and are not comparable with "
        "the published figures below.",
        "",
        "## Published figures",
        "",
        *published(),
    ]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
