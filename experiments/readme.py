"""Fill the tables of README.md from the result files; nothing is copied by hand.

    python experiments/readme.py            # writes README.md; a test checks that it is up to date

A section stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; NAME is a function below.
"""

from __future__ import annotations

import re
from pathlib import Path

from jaxmerge.continual.results import Results
from jaxmerge.report import tables, words

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"


def quickstart() -> str:
    """The quickstart's table, its picture and its headline."""
    results = Results.from_json(RESULTS / "quickstart.json")
    return "\n\n".join(
        [
            "What it prints (`jaxmerge quickstart`, accuracy on the test split, mean and standard "
            f"deviation over {len(results.seeds)} class orders):",
            tables.markdown(results).strip(),
            words.headline(results),
            "![Accuracy of every method after the last task](docs/images/quickstart.png)",
        ]
    )


SECTIONS = {"quickstart": quickstart}


def fill(text: str) -> str:
    """The README with every section made anew."""
    for name, make in SECTIONS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.S)
    return text


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(fill(page.read_text()))
