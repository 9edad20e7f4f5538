"""Sentences to WordPiece ids, through the `tokenizers` package."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.models.folders import read_json
from jaxmerge.models.tokens import backend_of, refuse_long, special_tokens, token_ids

NAMED = {f"{token.lower()}_token": f"[{token}]" for token in ("CLS", "SEP", "PAD", "UNK", "MASK")}
NAMED |= {"tokenizer_class": "BertTokenizer"}
NEEDED = ("cls_token", "sep_token", "pad_token")
STEP = 16  # lengths are rounded up to a multiple, so that few shapes are compiled


@dataclass(frozen=True)
class Tokenizer:
    """`tokenizer(texts)` -> int32 `[texts, length]`, `length` just enough for the longest.

    Attributes:
      backend: a `tokenizers.Tokenizer`.
      max_tokens: longest sentence, special tokens included.
      end, pad: token ids.
      named: the special tokens and the class of the tokenizer, by the names that they have in
        `tokenizer_config.json`.
    """

    backend: Any
    max_tokens: int
    end: int
    pad: int
    named: Mapping[str, str] = field(default_factory=lambda: dict(NAMED))

    def __call__(
        self, texts: str | Iterable[str], truncate: bool = False, length: int | None = None
    ) -> np.ndarray:
        """Encodes sentences.

        Args:
          texts: one sentence or several.
          truncate: cut sentences that are too long (keeping the end token) instead of raising.
          length: of every row; otherwise the longest one's, rounded up to a multiple of 16.

        Raises:
          ValueError: sentences longer than `max_tokens` (or `length`), unless `truncate`.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        limit = self.max_tokens if length is None else min(length, self.max_tokens)
        rows = [code.ids for code in self.backend.encode_batch(texts)]
        if not truncate:
            refuse_long(texts, [len(row) for row in rows], limit, "a sentence")
        if length is None:
            longest = min(max(map(len, rows), default=1), limit)
            length = min(-(-longest // STEP) * STEP, self.max_tokens)
        out = np.full((len(rows), length), self.pad, np.int32)
        for filled, row in zip(out, rows, strict=True):
            ids = row if len(row) <= limit else [*row[: limit - 1], self.end]
            filled[: len(ids)] = ids
        return out

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`."""
        folder = Path(folder)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {"model_max_length": self.max_tokens, **self.named}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_tokenizer(folder: str | Path, max_tokens: int) -> Tokenizer | None:
    """Reads `tokenizer.json`, or `vocab.txt`; None when the folder has neither.

    Raises:
      ValueError: a vocabulary without the tokens that start, end and fill up a sentence: those
        which the folder's files name, or [CLS], [SEP] and [PAD].
    """
    folder = Path(folder)
    named = special_tokens(folder, NAMED)
    if (folder / "tokenizer.json").exists():
        backend = backend_of(folder / "tokenizer.json")
    elif (folder / "vocab.txt").exists():
        backend = _from_vocab(folder, named)
    else:
        return None
    ids = token_ids(backend, folder, {key: named[key] for key in NEEDED})
    return Tokenizer(backend, max_tokens, ids["sep_token"], ids["pad_token"], named)


def _from_vocab(folder: Path, named: Mapping[str, str]):
    from tokenizers import BertWordPieceTokenizer

    options = read_json(folder / "tokenizer_config.json")
    return BertWordPieceTokenizer(
        str(folder / "vocab.txt"),
        **{key: token for key, token in named.items() if key.endswith("_token")},
        lowercase=options.get("do_lower_case", True),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )._tokenizer
