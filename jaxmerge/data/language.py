"""Texts and conversations as windows of tokens for a decoder.

Documents are laid one behind the other and cut into rows of one length; a document that does not
fit goes on in the next row as a new one. Tokens of different documents do not see each other, each
document's first token is predicted by nothing, and of instructions only the answer is learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxmerge.core.types import Array

if TYPE_CHECKING:
    from jaxmerge.models.decoder.tokenize import Tokenizer

Document = tuple[Sequence[int], Sequence[bool]]  # ids, and which of them are learnt


class Windows(NamedTuple):
    """Texts cut into rows of one length; documents in one row do not see each other.

    Attributes:
      tokens: int32 `[rows, length]`.
      index: int32, the place of each token in its document.
      segment: int32, the document, 0 where there is padding.
      targets: int32, the next token, -1 where none is learnt.
    """

    tokens: Array
    index: Array
    segment: Array
    targets: Array


def windows(documents: Iterable[Document], length: int) -> Windows:
    """Rows of `length` tokens.

    Args:
      documents: ids, and for each whether it is a target.
      length: tokens a row.

    Raises:
      ValueError: nothing to learn: no document, or every token masked.

    >>> rows = windows([([5, 6, 7], [1, 1, 1]), ([8, 9], [0, 1])], length=4)
    >>> rows.tokens.tolist(), rows.segment.tolist()
    ([[5, 6, 7, 8], [9, 0, 0, 0]], [[1, 1, 1, 2], [1, 0, 0, 0]])
    >>> rows.targets.tolist()
    [[6, 7, -1, 9], [-1, -1, -1, -1]]
    """
    if length < 2:
        raise ValueError(f"rows of {length} tokens predict nothing, expected at least 2")
    rows: list[list[tuple[int, int, int, int]]] = [[]]
    count = 0
    for ids, learnt in documents:
        if len(ids) != len(learnt):
            raise ValueError(f"a document of {len(ids)} tokens with a mask of {len(learnt)}")
        count += 1
        segment, index = _next(rows[-1]), 0
        for place, token in enumerate(ids):
            if len(rows[-1]) == length:
                rows.append([])
                segment, index = 1, 0
            last = place + 1 == len(ids)
            target = -1 if last or not learnt[place + 1] else ids[place + 1]
            rows[-1].append((int(token), index, segment, int(target)))
            index += 1
    filled = [row + [(0, 0, 0, -1)] * (length - len(row)) for row in rows if row]
    result = Windows(*np.array(filled or [[(0, 0, 0, -1)]], np.int32).transpose(2, 0, 1))
    if not (result.targets >= 0).any():
        found = f"{count} documents without a target (all masked, or shorter than two tokens)"
        raise ValueError(f"there is nothing to learn: found {found if count else 'no document'}")
    return result


def _next(row: Sequence[tuple[int, int, int, int]]) -> int:
    return row[-1][2] + 1 if row else 1


def texts(tokenizer: Tokenizer, documents: Iterable[str], length: int) -> Windows:
    """Plain texts: every token is learnt, and that the text ends.

    Raises:
      TypeError: a single text, documents that are no text.
      ValueError: there is nothing to learn.
    """
    if isinstance(documents, str):
        raise TypeError("documents: found a single text, expected a sequence of texts")
    end = list(tokenizer.ends[:1])
    ids = [tokenizer.encode(text) + end for text in documents]
    return windows([(row, [True] * len(row)) for row in ids], length)


def instructions(
    tokenizer: Tokenizer, conversations: Iterable[Sequence[Mapping[str, str]]], length: int
) -> Windows:
    """Conversations through the chat template; only what the assistant says is learnt.

    Args:
      conversations: lists of messages with `role` and `content`.

    Raises:
      TypeError: conversations of another form.
      ValueError: no chat template, a template that rewrites earlier turns, nothing to learn.
    """
    documents = []
    for number, messages in enumerate(conversations):
        if not _is_conversation(messages):
            raise TypeError(
                f"conversation {number}: found {messages!r:.80}, expected a list of messages, each "
                "with role and content"
            )
        ids: list[int] = []
        learnt: list[bool] = []
        for turn, message in enumerate(messages):
            answer = message["role"] == "assistant"
            if answer:
                asked = tokenizer.chat(messages[:turn], answer=True)
                _add(tokenizer, asked, False, ids, learnt)
            text = tokenizer.chat(messages[: turn + 1], answer=False)
            _add(tokenizer, text, answer, ids, learnt)
        documents.append((ids, learnt))
    return windows(documents, length)


def _is_conversation(messages: object) -> bool:
    entries = messages if isinstance(messages, Sequence) else [None]
    return all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in entries)


def _add(tokenizer: Tokenizer, text: str, answer: bool, ids: list[int], learnt: list[bool]) -> None:
    """Takes the ids of a longer text; those that are new are learnt if they are an answer's."""
    longer = tokenizer.encode(text, special=False)
    if longer[: len(ids)] != ids:
        raise ValueError(
            "the chat template writes earlier turns differently when later ones follow; give "
            "conversations of one question and one answer"
        )
    learnt += [answer] * (len(longer) - len(ids))
    ids[:] = longer
