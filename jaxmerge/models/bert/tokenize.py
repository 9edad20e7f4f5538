"""Sentences to WordPiece ids, through the `tokenizers` package."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STEP = 16  # lengths are rounded up to a multiple, so that few shapes are compiled


@dataclass(frozen=True)
class Tokenizer:
    """`tokenizer(texts)` -> int32 `[texts, length]`, `length` just enough for the longest.

    Attributes:
      backend: a `tokenizers.Tokenizer`.
      max_tokens: longest sentence, special tokens included.
      end, pad: token ids.
    """

    backend: Any
    max_tokens: int
    end: int
    pad: int

    def __call__(
        self, texts: str | Iterable[str], truncate: bool = False, length: int | None = None
    ) -> np.ndarray:
        """Encodes sentences.

        Args:
          texts: one sentence or several.
          truncate: cut sentences that are too long (keeping the end token) instead of raising.
          length: of every row; otherwise the longest one's, rounded up to a multiple of 16.

        Raises:
          ValueError: sentences longer than `max_tokens` (or `length`), all listed, unless
            `truncate`.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        limit = self.max_tokens if length is None else min(length, self.max_tokens)
        rows = [code.ids for code in self.backend.encode_batch(texts)]
        too_long = [
            f"{text[:60]!r} has {len(row)}"
            for text, row in zip(texts, rows, strict=True)
            if len(row) > limit
        ]
        if too_long and not truncate:
            raise ValueError(
                f"sentences longer than {limit} tokens: {'; '.join(too_long)}. Shorten them or"
                " pass truncate=True"
            )
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
        config = {
            "tokenizer_class": "BertTokenizer",
            "model_max_length": self.max_tokens,
            "pad_token": self.backend.id_to_token(self.pad),
            "sep_token": self.backend.id_to_token(self.end),
            "cls_token": "[CLS]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_tokenizer(folder: str | Path, max_tokens: int) -> Tokenizer | None:
    """Reads `tokenizer.json`, or `vocab.txt`; None when the folder has neither.

    Raises:
      ValueError: a vocabulary without [CLS], [SEP] and [PAD].
    """
    import tokenizers

    folder = Path(folder)
    if (folder / "tokenizer.json").exists():
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.no_truncation()
        backend.no_padding()
    elif (folder / "vocab.txt").exists():
        backend = _from_vocab(folder)
    else:
        return None
    ids = {token: backend.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]")}
    if unknown := [token for token, found in ids.items() if found is None]:
        raise ValueError(f"{folder}: the vocabulary lacks the special tokens {unknown}")
    return Tokenizer(backend, max_tokens, end=ids["[SEP]"], pad=ids["[PAD]"])


def _from_vocab(folder: Path):
    from tokenizers.implementations import BertWordPieceTokenizer

    options = {}
    if (folder / "tokenizer_config.json").exists():
        options = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return BertWordPieceTokenizer(
        str(folder / "vocab.txt"),
        lowercase=options.get("do_lower_case", True),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )._tokenizer
