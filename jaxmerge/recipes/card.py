"""The README.md of a merged checkpoint: a model card that says how it was made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jaxmerge.io.hub import HUB
from jaxmerge.io.untrusted import plain_line, plain_markdown


def card(plan: Any, report: Any, note: dict[str, Any]) -> str:
    """Front matter for the hub, the models, the recipe, what was computed."""
    import yaml

    refs = list(note["inputs"])
    front = {"library_name": "transformers", "tags": ["merge", "jaxmerge"]}
    hub = [r for r in refs if HUB.fullmatch(r)]
    if hub:
        front = {"base_model": [r.partition("@")[0] for r in hub], **front}
    head = yaml.safe_dump(front, sort_keys=False)
    name = plain_markdown(Path(report.out).name)
    models = "\n".join(f"- {_link(r)}" for r in refs)
    recipe = yaml.safe_dump(plan.resolved, sort_keys=False, allow_unicode=True, width=100)
    merged = sum(len(job.grid) for job in plan.jobs)
    copied = sum(len(job.like) for job in plan.jobs) - merged
    dtype = plan.out_dtype.name if plan.out_dtype is not None else "as the base"
    fence = "`" * max(3, 1 + longest_run(recipe, "`"))
    return f"""---
{head}---
# {name}

A merge made with jaxmerge {note["versions"]["jaxmerge"]}: {_code(plan.method)}.

Models:

{models}

{report.parameters:,} parameters; {merged} leaves merged, {copied} copied; stored {dtype}; \
seed {plan.seed}.
`recipe.resolved.yaml` holds the recipe with the hashes of the inputs:
`jaxmerge merge recipe.resolved.yaml OUT` makes the same bytes again.

{fence}yaml
{recipe.strip()}
{fence}
"""


def _link(ref: str) -> str:
    if HUB.fullmatch(ref):
        name, _, revision = ref.partition("@")
        return f"[{name}](https://huggingface.co/{name})" + (f" at {revision}" if revision else "")
    return _code(ref)


def _code(text: str) -> str:
    """Text as inline code, whatever it holds."""
    text = plain_line(text)
    ticks = "`" * (1 + longest_run(text, "`"))
    space = " " if len(ticks) > 1 else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def longest_run(text: str, sign: str) -> int:
    """How often a sign stands in a row at most.

    >>> longest_run("a``b`", "`")
    2
    """
    return max((len(run) for run in re.findall(f"{re.escape(sign)}+", text)), default=0)
