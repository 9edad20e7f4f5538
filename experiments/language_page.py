"""Fills docs/language-models.md from result files, and with a conversation held here.

    python experiments/language_parity.py               # the table by family
    python experiments/language_harness.py FOLDER       # beside the harness's own model
    python experiments/bench/decoder.py --out experiments/results/decoder_cpu.json
    python experiments/language_page.py [--talk]        # --talk holds the conversation anew

A section of the page stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "experiments" / "results", ROOT / "docs" / "language-models.md"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TALK = (
    "jaxmerge", "generate", MODEL, "What is the capital of France?",
    "Name two things to see there.", "--chat", "--most", "48",
)  # fmt: skip


def read(name: str) -> dict | None:
    """A result file, or None where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers on the right."""
    line = lambda cells: "| " + " | ".join(cells) + " |"
    form = "|" + " :-- |" + " --: |" * (len(head) - 1)
    return "\n".join([line(head), form, *map(line, rows)])


def parity() -> str:
    """Differences from transformers, family by family."""
    content = read("language_parity")
    if content is None:
        return ""
    head = ["Model", "parameters", "block", "logits", "bfloat16", "torch's bfloat16"]
    head += ["greedy", "folder"]
    rows = []
    for name, row in content["families"].items():
        numbers = [f"{row['parameters']:,}", *(f"{row[k]:.0e}" for k in ("block", "logits"))]
        numbers += [f"{row[k]:.1e}" for k in ("bfloat16", "bfloat16_torch")]
        same = ["equal" if row["written"] else "differs"]
        same += ["bit for bit" if row["folder"] and row["again"] else "differs"]
        rows.append([f"`{name}`", *numbers, *same])
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
    return (
        "Random weights through both, eager attention in float32 (`python experiments/"
        f"language_parity.py`; {versions}). Block: the largest difference of a state behind a "
        "layer, relative to the largest state; logits: the largest difference; bfloat16: the mean "
        "difference of logits computed in bfloat16 from torch's in float32; greedy: eight tokens "
        "written; folder: what we write has the tensors we read, and transformers computes the "
        f"same of it.\n\n{grid(head, rows)}"
    )


def harness() -> str:
    """Figures of the harness for our model and for its own."""
    content = read("language_harness")
    if content is None:
        return ""
    rows = [
        [f"{task}, {figure}", str(row["count"]), f"{value:.6f}", f"{row['harness'][figure]:.6f}",
         f"{row['apart']:.0e}"]
        for task, row in content["tasks"].items()
        for figure, value in row["jaxmerge"].items()
    ]  # fmt: skip
    about = content["about"]
    head = ["Task, figure", "examples", "jaxmerge", "harness's own", "largest difference"]
    return (
        f"`{about['command']}` makes five tasks of local texts and runs `jaxmerge evaluate` and "
        f"the `hf` model of lm-evaluation-harness {about['lm_eval']} on {about['model']} "
        f"(dequantised, context {about['context']}). The last column compares all answers to its "
        "requests: log-likelihoods of a task's continuations; texts are equal. "
        "Documents differ by the harness's `log_softmax` in float32: the sums of float64 are 3e-4 "
        "from ours.\n\n" + grid(head, rows)
    )


def speed() -> str:
    """Tokens a second beside transformers, on every machine that was measured."""
    found = (read("decoder_cpu"), read("decoder_gpu"))
    return "\n\n".join(speed_on(content) for content in found if content)


def speed_on(content: dict) -> str:
    about, seconds = content["about"], content["seconds"]
    rows = []
    for name, row in content["tokens_per_second"].items():
        theirs = row["transformers"]
        ratio = "–" if theirs is None else f"{row['jaxmerge'] / theirs:.2f}"
        shown = "–" if theirs is None else f"{theirs:.1f}"
        rows.append([name, f"{row['jaxmerge']:.1f}", shown, ratio])
    table = grid(["What", "jaxmerge", "transformers", "ratio"], rows)
    size = f"{about['rows']} x {about['length']} tokens"
    if not seconds:
        return (
            f"`experiments/bench/decoder.py --gpu`: a random model of the shape of Llama 3.2 1B, "
            f"{about['dtype']} products over float32 weights, {about['device']}, jax "
            f"{about['jax']}, {size}; transformers under `torch.compile` and autocast (its "
            f"`generate` is not compiled). Tokens a second:\n\n{table}\n\nFull training takes "
            f"{100 * about['mfu']:.1f} % of the card's bfloat16 peak, torch "
            f"{100 * about['torch_mfu']:.1f} %."
        )
    return (
        f"`experiments/bench/decoder.py`: SmolLM2-135M, float32, {about['device']} with "
        f"{about['cores']} cores, {size}, tokens a second:\n\n{table}"
        f"\n\nLoading takes {seconds['loading']:.2f} s, reading the bytes of the file "
        f"{seconds['reading']:.2f} s. First calls, which compile 30 layers one by one: "
        + ", ".join(f"{name} {x:.0f} s" for name, x in content["first"].items())
        + "."
    )


def conversation() -> str:
    """What the command line prints, held by it."""
    done = subprocess.run(TALK, capture_output=True, text=True, check=True)
    lines = [textwrap.fill(line, 100) for line in done.stdout.strip().splitlines()]
    return "```\n$ " + shlex.join(TALK) + "\n" + "\n".join(lines) + "\n```"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    sections = {"parity": parity, "harness": harness, "speed": speed}
    if "--talk" in sys.argv:
        sections["conversation"] = conversation
    for name, make in sections.items():
        if content := make():
            pattern = rf"(?s)(<!-- {name} -->\n).*?(\n?<!-- /{name} -->)"
            assert re.search(pattern, text), name
            whole = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
            text = re.sub(pattern, lambda _, whole=whole: whole, text)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
