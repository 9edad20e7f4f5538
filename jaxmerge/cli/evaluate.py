"""`jaxmerge evaluate MODEL --tasks ...`: a decoder on tasks of lm-evaluation-harness."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

from jaxmerge.errors import UserError, writing


def run(
    ref: str,
    *,
    tasks: str,
    limit: int | None = None,
    fewshot: int | None = None,
    batch: int = 16,
    chat: bool = False,
    dtype: str = "float32",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Print the figures of every task."""
    from jaxmerge.evaluation import lm_eval
    from jaxmerge.models import decoder

    if out is not None and not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write {out.name} into.")
    lm_eval.require()
    names = [task.strip() for task in tasks.split(",") if task.strip()]
    lm_eval.tasks_of(names)
    model = decoder.load(ref, dtype=dtype)
    if model.tokenizer is None:
        raise UserError(f"{ref} has no tokenizer that can be read{decoder.why_no_tokenizer(ref)}.")
    results = lm_eval.evaluate(
        model, names, limit=limit, fewshot=fewshot, batch=batch, chat=chat,
        compute=decoder.Compute(dtype if dtype != "float16" else "float32"),
    )  # fmt: skip
    if out is not None:
        with writing(out):
            out.write_text(jsonlib.dumps(results, indent=1) + "\n", encoding="utf-8")
    if json:
        print(jsonlib.dumps(results, indent=2))
        return
    from rich.table import Table

    from jaxmerge.cli import terminal

    table = Table("task", "figure", "value", "±", box=None)
    for task, figures in results.items():
        for name, value in figures.items():
            if name.endswith("_stderr") or name == "sample_len":
                continue
            error = figures.get(f"{name}_stderr")
            table.add_row(task, name, f"{value:.4f}", "" if error is None else f"{error:.4f}")
    terminal.console().print(table)
