"""What the pages say of the results: docs/mergekit.md and the README."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "experiments" / "results" / "mergekit_parity.json"


def write_pages(result: dict) -> None:
    """The generated parts of docs/mergekit.md and of the README."""
    rows = result["rows"]
    families = Counter(r["recipe"].split("/")[0] for r in rows if "/" in r["recipe"])
    whole = [f for f, recipes in families.items() if recipes > 3]
    methods = f", and every method on {', '.join(whole)}" if whole else ""
    few = len(families) - len(whole)
    methods += f"; a gradient, a slerp and a stack on {few} more families" if few else ""
    count = lambda *verdicts: sum(r["verdict"] in verdicts for r in rows)
    order = (
        "equal",
        "equal in law",
        "differs on purpose",
        "only jaxmerge",
        "both refuse",
        "only mergekit",
        "differs",
    )
    table = [f"| {v} | {count(v)} |" for v in order if count(v)]
    other = [r for r in rows if r["verdict"] not in ("equal", "equal in law")]
    said = lambda r: " ".join((r["why"] or r["seen"]).split()).replace("|", "/")
    more = [f"| {r['recipe']} | {r['verdict']} | {said(r)} |" for r in other]
    page = "\n".join(
        [
            f"{len(rows)} recipes through mergekit {result['mergekit']} (torch {result['torch']})",
            "and through jaxmerge, from the same files (`experiments/mergekit_parity`): shapes",
            f'of published recipes{methods}. "In law": random masks, compared by',
            "share and size of the changes.",
            "",
            "| Outcome | Recipes |",
            "|:--|--:|",
            *table,
            "",
            "| Recipe | Outcome | What |",
            "|:--|:--|:--|",
            *more,
        ]
    )
    good = count("equal", "equal in law")
    line = (
        f"mergekit's YAML unchanged: {good} of {len(rows)} recipes in the shapes of published ones "
        "give equal weights\n(random methods: equal in law); the rest, one by one: "
        "[docs/mergekit.md](docs/mergekit.md)."
    )
    for path, text in ((ROOT / "docs" / "mergekit.md", page), (ROOT / "README.md", line)):
        old = path.read_text()
        new = re.sub(
            r"(<!-- mergekit-yaml -->\n).*?(<!-- /mergekit-yaml -->)",
            lambda m, t=text: m[1] + t + "\n" + m[2],
            old,
            flags=re.S,
        )
        path.write_text(new)
