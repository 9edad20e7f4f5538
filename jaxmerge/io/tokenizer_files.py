"""The files of a tokenizer in an output, so that all of them speak of the same tokens.

A fast tokenizer is tokenizer.json; the files of the slow one beside it (tokenizer.model,
vocab.json, merges.txt, added_tokens.json, ...) say the same in another form.  Where an output has
tokens that they lack, they are left out, as loaders prefer them to tokenizer.json.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmerge.io.model_folder import belongings, read_json

SLOW = (
    "*.model", "*.model.v*", "vocab*.json", "vocab*.txt", "*.vocab", "merges.txt", "*.spm", "*.bpe",
    "*.codes", "*.tiktoken", "tekken.json", "added_tokens.json",
)  # fmt: skip
FAST = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def _match(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, p) for p in patterns)


def tokenizer_files(
    base: Path | None, keeper: Path | None, added: Sequence[Mapping[str, Any]] = (),
    content: bytes | None = None, removed: Sequence[str] = (),
) -> dict[str, bytes | Path | None]:  # fmt: skip
    """Name -> file of the output's tokenizer; None for files of the base that must not stay.

    Args:
        base: the folder whose files the output has anyway.
        keeper: the folder whose tokenizer it gets.
        added: tokens beyond the keeper's, as tokenizer.json's `added_tokens` lists them.
        content: tokenizer.json with them, where it is not the keeper's.
        removed: tokens of the keeper's that it lacks.
    """
    names = [*SLOW, *FAST] if base != keeper else ()
    out: dict[str, bytes | Path | None] = {n: None for n in belongings(base) if _match(n, names)}
    out |= {n: p for n, p in belongings(keeper).items() if _match(n, [*SLOW, *FAST])}
    template = keeper / "chat_template.jinja" if keeper else None
    if template is not None and template.is_file():
        out[template.name] = template
    if content is not None:
        out |= {n: None for n in out if _match(n, SLOW)}
        out["tokenizer.json"] = content
        config = read_json(keeper / "tokenizer_config.json") if keeper else None
        known = config.get("added_tokens_decoder") if isinstance(config, dict) else None
        if isinstance(config, dict) and isinstance(known, dict):
            fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            more = {str(t["id"]): {f: t[f] for f in fields} for t in added}
            remaining = {i: t for i, t in known.items() if t.get("content") not in removed}
            config["added_tokens_decoder"] = {**remaining, **more}
            text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
            out["tokenizer_config.json"] = text.encode()
    return out
