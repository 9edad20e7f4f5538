"""The tokens in a tokenizer.json, and a tokenizer.json with others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError
from jaxmerge.io.opened_model import Source
from jaxmerge.io.tokenizer_files import tokenizer_files
from jaxmerge.io.untrusted import member, read_json

MAX_TOKENS = 1 << 22  # tokens of a vocabulary; tables and embeddings of the output grow with it


def token_table(source: Source) -> dict[str, int]:
    """Token -> row of the embedding, from the model's tokenizer.json."""
    content, where = tokenizer_json(source), f"{source.ref}: tokenizer.json"
    model = content.get("model", {})
    vocab = model.get("vocab", {}) if isinstance(model, dict) else None
    if isinstance(vocab, list):  # unigram: pairs of token and score, in order
        if not all(isinstance(pair, list) and pair for pair in vocab):
            raise UserError(f"{where}: model.vocab must hold pairs of a token and its score.")
        table = {str(pair[0]): i for i, pair in enumerate(vocab)}
    elif isinstance(vocab, dict):
        table = {str(t): i for t, i in vocab.items()}
    else:
        raise UserError(f"{where}: model.vocab must map tokens to numbers, or list them.")
    for added in added_tokens(content, where):
        table[added["content"]] = added["id"]
    wrong = [t for t, i in table.items() if type(i) is not int or not 0 <= i < MAX_TOKENS]
    if wrong:
        raise UserError(
            f"{where}: {wrong[0]!r} has the number {table[wrong[0]]!r}; expected an integer from 0 "
            f"to {MAX_TOKENS - 1} ({len(wrong)} such tokens)."
        )
    return table


def added_tokens(content: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The tokens that a tokenizer.json adds to its model's, checked."""
    entries = content.get("added_tokens", [])
    if not isinstance(entries, list) or not all(
        isinstance(a, dict) and isinstance(a.get("content"), str) and "id" in a for a in entries
    ):
        raise UserError(f"{where}: added_tokens must be a list of objects with content and id.")
    return entries


def tokenizer_json(source: Source) -> dict[str, Any]:
    path = member(source.folder, "tokenizer.json")
    if path is None:
        raise UserError(
            f"{source.ref} has no tokenizer.json, which merging vocabularies needs; save its fast "
            "tokenizer there, or leave the tokenizer choice out."
        )
    return read_json(path)


def add_tokens(
    base: Source,
    new: Sequence[tuple[str, Source]],
    rows: Mapping[str, int],
    beyond: Sequence[str] = (),
) -> dict[str, bytes | Path | None]:
    """The base's tokenizer with more added tokens, with the flags that their owners give.

    Args:
        beyond: tokens of the base that have no row: left out.
    """
    content = _without(tokenizer_json(base), set(beyond))
    flags: dict[str, dict[str, Any]] = {}
    for owner in dict.fromkeys(s for _, s in new):
        for added in added_tokens(tokenizer_json(owner), owner.ref):
            flags.setdefault(added["content"], added)
    plain = {
        "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": False,
    }  # fmt: skip
    more = [plain | flags.get(t, {}) | {"id": rows[t], "content": t} for t, _ in new]
    content["added_tokens"] = [*content.get("added_tokens", []), *more]
    text = (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
    return tokenizer_files(base.folder, base.folder, more, text, beyond)


def _without(content: dict[str, Any], tokens: set[str]) -> dict[str, Any]:
    """A tokenizer.json without some of its tokens, and without the merges that need them."""
    model = dict(content.get("model") or {})
    added = [t for t in content.get("added_tokens") or [] if t["content"] not in tokens]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in tokens}
    elif isinstance(model.get("vocab"), list):
        model["vocab"] = [pair for pair in model["vocab"] if pair[0] not in tokens]
    if tokens and isinstance(model.get("merges"), list):
        pairs = [(m, m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
        model["merges"] = [m for m, p in pairs if not tokens & {*p, "".join(p)}]
    return content | {"added_tokens": added} | ({"model": model} if model else {})


def in_order(table: Mapping[str, int]) -> list[str]:
    """The tokens of a table by their number."""
    return sorted(table, key=lambda t: table[t])
