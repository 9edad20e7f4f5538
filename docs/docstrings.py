"""Makes our docstrings Markdown when the reference is built (a griffe extension).

Docstrings are written to be read in a terminal: doctests stand in the text, literal blocks follow
a double colon, tables are drawn with equals signs, ``R[t][i]`` is an index and no link.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrites every docstring once, before its sections are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """griffe calls this with every object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """The docstring as Markdown."""
    out: list[str] = []
    lines = text.split("\n")
    i = 0
    while i < len(lines):
        line = lines[i]
        indent = line[: len(line) - len(line.lstrip())]
        if line.strip() in ("Example:", "Examples:"):
            out += [f"{indent}**Example**", ""]
            i += 1
        elif line.strip().startswith(">>>"):
            end = next((j for j in range(i, len(lines)) if not lines[j].strip()), len(lines))
            under = "**Example**" in "".join(out[-2:])  # one level deeper than its heading
            block = [x[4:] for x in lines[i:end]] if under else lines[i:end]
            out += _fenced(block, indent[4:] if under else indent, "pycon")
            i = end
        elif re.match(r"\s*={4,}[ =]*$", line):
            end = i + max(j for j in range(len(lines) - i) if lines[i + j].strip("= \t") == ""
                          and "=" in lines[i + j]) + 1  # fmt: skip
            out += _fenced(lines[i:end], indent, "text")
            i = end
        elif line.rstrip().endswith("::"):
            end = i + 1
            while end < len(lines) and (not lines[end].strip() or _deeper(lines[end], indent)):
                end += 1
            while not lines[end - 1].strip():
                end -= 1
            lead = line.rstrip()[:-1]
            out += [_plain(lead)] if lead.strip(" :") else []
            out += ["", *_fenced(lines[i + 1 : end], indent, "text"), ""]
            i = end
        else:
            out.append(_plain(line))
            i += 1
    return "\n".join(out)


def _deeper(line: str, indent: str) -> bool:
    return len(line) - len(line.lstrip()) > len(indent)


def _fenced(lines: list[str], indent: str, language: str) -> list[str]:
    while lines and not lines[0].strip():
        lines = lines[1:]
    return ["", f"{indent}```{language}", *lines, f"{indent}```", ""]


def _plain(line: str) -> str:
    """Brackets outside code are brackets."""
    parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
    return "".join(p if p.startswith("`") else p.replace("[", "\\[") for p in parts)
