"""mergekit's YAML through both programs: how many recipes give equal weights, and what differs.

    python -m venv ME && ME/bin/pip install torch mergekit        # an environment of its own
    python experiments/mergekit_parity --mergekit ME/bin/python [--only NAME] [--keep FOLDER]

Recipes of our own in the shapes of the published ones (mergekit's examples, model cards, its
documentation) on small random checkpoints: all methods on six families, a gradient, a slerp and a
stack on 22 more.  Both programs merge from the same files
into float32; leaves are compared by name and value, rows of a vocabulary by token, and so are layer
counts and vocabulary sizes of config.json.  Methods that draw random numbers cannot agree in their
values: there the share of entries that changed and the mean size of the change must, within four
deviations.

* `checkpoints`: the models; `recipes`, `families`, `published`, `options`, `vocabularies`: what is
  merged
* `programs`: both programs on one recipe; `outputs`: two outputs compared; `pages`: what is written

Writes `experiments/results/mergekit_parity.json` and the generated parts of docs/mergekit.md and of
the README, after every recipe; with ``--only`` the rows of others stay.  Takes some minutes; with
``--keep`` what mergekit made of a recipe that is still the same is not made again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from checkpoints import checkpoints, families, further_families
from families import by_family
from options import options
from outputs import compare
from pages import RESULT, write_pages
from programs import run_jaxmerge, run_mergekit, versions
from published import published
from recipes import Case, methods
from vocabularies import vocabularies


def cases() -> dict[str, Case]:
    """All recipes by name; of single methods the name is family/method."""
    recipes = published() | options() | vocabularies()
    for family in families():
        recipes |= methods(family)
    for family in further_families():
        recipes |= by_family(family)
    return recipes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", required=True, help="the Python where mergekit is installed")
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    parser.add_argument("--keep", help="a folder for the files; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints(folder)
        chosen = {n: c for n, c in cases().items() if options.only in n}
        theirs = there(options.mergekit, chosen, folder)
        both, rows = versions(options.mergekit), []
        for name, case in chosen.items():
            verdict, seen = outcome(case, task(name, case, folder), theirs[name], folder)
            seen = seen.replace(str(folder), ".")
            why = case.differs.why if case.differs else ""
            rows.append({"recipe": name, "verdict": verdict, "seen": seen, "why": why})
            print(f"{verdict:20} {name}: {seen}", flush=True)
            save(rows, both)
    if any(r["verdict"] in ("differs", "only mergekit") for r in rows):
        sys.exit("some recipes differ without a reason that is written down")


def save(rows: list[dict], both: dict[str, str]) -> None:
    """Write the result and the pages; of recipes that were not run now, earlier rows stay."""
    old = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    known = {r["recipe"]: r for r in [*old, *rows]}
    result = both | {"rows": [known[n] for n in cases() if n in known]}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    write_pages(result)


def task(name: str, case: Case, folder: Path) -> dict:
    """What a program needs to know of a recipe; its file is written."""
    slug = re.sub(r"\W+", "_", name)
    path = folder / f"{slug}.yaml"
    path.write_text(yaml.safe_dump_all(case.documents, sort_keys=False))
    out = str(folder / "out" / slug)
    return {"name": name, "recipe": str(path), "kind": case.kind, "options": case.options,
            "out": out}  # fmt: skip


def there(python: str, chosen: dict[str, Case], folder: Path) -> dict[str, str]:
    """What mergekit said of every recipe; its outputs lie in the folder."""
    file = folder / "there.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    tasks = {n: task(n, c, folder) for n, c in chosen.items()}
    stamps = {n: [Path(t["recipe"]).read_text(), *t["options"]] for n, t in tasks.items()}
    todo = [t for n, t in tasks.items() if known.get(n, [0])[0] != stamps[n]]
    for one in todo:
        shutil.rmtree(one["out"], ignore_errors=True)
    for name, message in run_mergekit(python, todo, folder):
        known[name] = [stamps[name], message]
        file.write_text(json.dumps(known))
    return {n: known[n][1] for n in chosen}


def outcome(case: Case, one: dict, other: str, folder: Path) -> tuple[str, str]:
    """A verdict on one recipe and what was seen."""
    ours = one | {"out": one["out"] + ".jm"}
    message = run_jaxmerge(ours)
    if message or other:
        verdict = (
            "both refuse" if message and other else "only mergekit" if message else "only jaxmerge"
        )
        seen = (f"there {other}" if other else "", f"here {message}" if message else "")
        return verdict, "; ".join(filter(None, seen))
    root = next((d["base_model"] for d in case.documents if "base_model" in d), None)
    root = root["model"]["path"] if isinstance(root, dict) else root
    base = folder / root if root else None
    return compare(case, Path(one["out"]), Path(ours["out"]), base)


if __name__ == "__main__":
    main()
