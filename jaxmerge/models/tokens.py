"""What the tokenizers of all models share: special tokens by name, and texts that are too long."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError, library_message
from jaxmerge.io.untrusted import read_text
from jaxmerge.models.folders import read_json

SHOWN = 5  # offenders spelt out in an error; the rest is counted


def backend_of(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, without truncation and padding.

    Raises:
      UserError: the file is damaged.
    """
    import tokenizers

    text = read_text(path)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
        backend.no_truncation()
        backend.no_padding()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package raises bare exceptions and, rarely, panics
        raise UserError(
            f"{path} is no tokenizer that can be read ({library_message(error)}); take it anew "
            "from where the model came from."
        ) from None
    return backend


def text_of(token: Any) -> str | None:
    """The text of a token as files have it, a string or an object with its `content`."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def special_tokens(folder: Path, defaults: Mapping[str, str]) -> dict[str, str]:
    """What a folder's files say of these names, `"eos_token"` and so on -> token.

    Raises:
      UserError: a token that is no text.

    Args:
      folder: may hold `special_tokens_map.json` and `tokenizer_config.json` (which has the last
        word).
      defaults: the names that are wanted, and what holds where no file says anything.
    """
    tokens = dict(defaults)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        given = read_json(folder / name)
        for key in defaults:
            if given.get(key) is None:
                continue
            token = text_of(given[key])
            if token is None:
                raise UserError(f"{folder / name}: {key} is {given[key]!r:.80}; expected text.")
            tokens[key] = token
    return tokens


def token_ids(backend, folder: Path, tokens: Mapping[str, str]) -> dict[str, int]:
    """Their ids.

    Raises:
      ValueError: tokens that the vocabulary lacks, all listed.
    """
    ids = {key: backend.token_to_id(token) for key, token in tokens.items()}
    if unknown := [tokens[key] for key, token_id in ids.items() if token_id is None]:
        raise ValueError(f"{folder}: the vocabulary lacks the special tokens {unknown}")
    return ids


class TooLong(ValueError):
    """Texts of more tokens than a model reads.

    Args:
      found: which, in words.
      remedy: what has them cut, as it is written where the texts come from.
    """

    def __init__(self, found: str, remedy: str = "pass truncate=True"):
        super().__init__(f"{found}. Shorten them or {remedy}.")
        self.found = found


@contextlib.contextmanager
def cut_by(remedy: str) -> Iterator[None]:
    """Texts that are too long are refused with what has them cut at this place.

    Args:
      remedy: "add --truncate", where that is an option.

    >>> with cut_by("add --truncate"):
    ...     refuse_long(["one two"], [2], 1, "a row of 3")
    Traceback (most recent call last):
    jaxmerge.models.tokens.TooLong: 1 of 1 texts has ... Shorten them or add --truncate.
    """
    try:
        yield
    except TooLong as error:
        raise TooLong(error.found, remedy) from None


def refuse_long(texts: Sequence[str], lengths: Sequence[int], limit: int, what: str) -> None:
    """Raises TooLong when a text has more than `limit` tokens; `what` says where they must fit.

    >>> refuse_long(["one two", "three"], [2, 1], 1, "a row of 3")
    Traceback (most recent call last):
    jaxmerge.models.tokens.TooLong: 1 of 2 texts has more than the 1 tokens that fit a row of 3: ...
    """
    long = [
        f"{text[:60]!r} has {length}"
        for text, length in zip(texts, lengths, strict=True)
        if length > limit
    ]
    if long:
        rest = f" and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
        raise TooLong(
            f"{len(long)} of {len(texts)} texts {'has' if len(long) == 1 else 'have'} more than the"
            f" {limit} tokens that fit {what}: {'; '.join(long[:SHOWN])}{rest}"
        )
