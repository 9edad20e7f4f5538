"""Vocabularies: one set of tokens for the output, and every model's embedding rows mapped to it.

    tokenizer: union                      the base's tokens, then the others' in the order of models
    tokenizer: base                       the base's tokens
    tokenizer: models/b                   that model's
    tokenizer:
      source: union
      pad_to_multiple_of: 64
      tokens:
        <|im_start|>: {source: models/b, force: true}
        <pad>: {source: {kind: zero}}
        <|end|>: {source: {kind: model_token, model: models/b, token: </s>}}

A model that has a token brings its own row.  For one that has not: what `tokens` says, else the
base's row, else the only owner's, else the mean of the owners' rows.  With ``force`` every model
gets what `tokens` says.  Tokens come from tokenizer.json; a token that `tokens` names and no
tokenizer has is added, one whose number lies beyond the rows of a model is not that model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.architectures import architecture, configs
from jaxmerge.io.architectures.config_changes import (
    other_vocabularies,
    short_vocabularies,
    vocabulary_changes,
)
from jaxmerge.io.opened_model import Source
from jaxmerge.io.tokenizer_files import tokenizer_files
from jaxmerge.recipes.chat_templates import template_files
from jaxmerge.recipes.layers import ref_of
from jaxmerge.recipes.parse import mapping
from jaxmerge.recipes.reindexed import MEAN, ZERO, Reindexed
from jaxmerge.recipes.tokenizer_json import add_tokens, in_order, token_table

MOST_PAD = 1 << 16  # rows that a vocabulary is padded to a multiple of


class Vocabulary:
    """The output's vocabulary, and where every row of every model comes from."""

    @classmethod
    def of(
        cls, setting: Any, template: Any, models: Any, sources: Sequence[Source | None],
        based: bool = True,
    ):  # fmt: skip
        """The vocabulary that a recipe asks for; None if it says nothing about it.

        Args:
            based: the first source is a base, whose rows stand in before those of others.
        """
        if setting is None and template is None:
            return None
        return cls(setting, template, models, [s for s in sources if s is not None], based)

    def __init__(self, setting, template, models: Any, sources: Sequence[Source], based: bool):
        self.sources, self.based = list(dict.fromkeys(sources)), based
        self.warnings: list[str] = []
        self.config: dict[configs.Path, int] = {}
        self.files: dict[str, bytes | Path | None] = {}  # None: left out
        self.active = setting is not None
        keeper = self.sources[0]
        if self.active:
            keeper = self._read(setting, models)
        if template is not None:
            self.files |= template_files(template, keeper.folder, self.sources)

    def _read(self, setting: Any, models: Any) -> Source:
        known = ("source", "tokens", "pad_to_multiple_of")
        setting = mapping(
            {"source": setting} if isinstance(setting, str) else setting, "tokenizer", known
        )
        self.tables = [self._table(s) for s in self.sources]
        source, base = setting.get("source", "union"), self.sources[0]
        if source == "union":
            keeper, tokens = base, list(in_order(self.tables[0]))
            seen = set(tokens)
            new: list[tuple[str, Source]] = []
            for s, table in zip(self.sources[1:], self.tables[1:], strict=True):
                new += [(t, s) for t in in_order(table) if t not in seen]
                seen |= set(table)
            rows = {t: i for t, i in self.tables[0].items()}
            after = max(rows.values(), default=-1) + 1
            rows |= {t: after + i for i, (t, _) in enumerate(new)}
        else:
            keeper, new = base if source == "base" else self._source(source, models), []
            rows = dict(self._table(keeper))
        wishes = setting.get("tokens") or {}
        if not isinstance(wishes, Mapping):
            raise UserError(f"tokenizer: tokens must map tokens to settings, got {wishes!r}.")
        after = max(rows.values(), default=-1) + 1
        named = [t for t in map(str, wishes) if t not in rows]
        rows |= {t: after + i for i, t in enumerate(named)}
        new += [(t, keeper) for t in named]
        beyond = [t for t in token_table(keeper) if t not in rows]
        if new or beyond:
            self.files |= add_tokens(keeper, new, rows, beyond)
        self.files = tokenizer_files(base.folder, keeper.folder) | self.files
        pad = setting.get("pad_to_multiple_of") or 1
        if type(pad) is not int or not 1 <= pad <= MOST_PAD:
            raise UserError(
                f"tokenizer: pad_to_multiple_of must be an integer from 1 to {MOST_PAD}: {pad!r}."
            )
        size = max(rows.values(), default=-1) + 1
        self.size = -(-size // pad) * pad
        self.rows = rows
        self._check_rows(base)
        for source in self.sources:
            self._check_short(source)
        self.config |= vocabulary_changes(architecture(base), self._need(base), self.size)
        self._fill(wishes, models)
        return keeper

    def _check_rows(self, base: Source) -> None:
        """Raise where a table of tokens has rows that config.json counts as something else."""
        layout = architecture(base)
        size = max(layout.vocabularies.values(), default=0)
        others = other_vocabularies(layout, self._need(base))
        rows = {n: layout.rows(n) for n in base if layout.vocabulary(n)}
        odd = [n for n, r in rows.items() if r > size and r not in others] if size else []
        if odd:
            raise UserError(
                f"tokenizer: {base.ref}: {odd[0]!r} has {rows[odd[0]]} rows, config.json "
                f"says vocab_size {size}: what the other rows are for is not known. Merge without "
                "a tokenizer choice, or mend vocab_size in config.json."
            )

    def _check_short(self, source: Source) -> None:
        """Raise where a table holds the first tokens only and these do not stay the first."""
        layout, table = architecture(source), self.tables[self.sources.index(source)]
        short = short_vocabularies(layout, self._need(source))
        for n in source:
            count = layout.rows(n) if short and layout.vocabulary(n) else 0
            moved = [t for t, i in table.items() if i < count and self.rows.get(t) != i]
            if count in short and moved:
                raise UserError(
                    f"tokenizer: {source.ref}: {n!r} has rows for the first {count} tokens only, "
                    f"and {len(moved)} of them get other places, such as {moved[0]!r}. Merge "
                    "without a tokenizer choice, or choose this model's tokenizer."
                )

    def _table(self, source: Source) -> dict[str, int]:
        """The tokens of a model that have a row."""
        table = token_table(source)
        layout = architecture(source)
        sizes = {layout.rows(n) for n in source.like if layout.vocabulary(n)}
        most = max(sizes, default=len(table))  # smaller ones are other vocabularies (codebooks)
        beyond = [t for t, i in table.items() if i >= most]
        if beyond:
            self.warnings.append(
                f"{source.ref}: its tokenizer has {len(table)} tokens, its embedding {most} "
                f"rows; {len(beyond)} tokens such as {beyond[0]!r} count as not its own"
            )
        return {t: i for t, i in table.items() if t not in set(beyond)}

    def _source(self, ref: Any, models: Any) -> Source:
        opened = models.open(ref_of(ref))
        return next((s for s in self.sources if s.ref == opened.ref), opened)

    def _fill(self, wishes: Any, models: Any) -> None:
        """For every output row: its row in model k, or -1; and the source and row to fill in."""
        n = self.size
        self.own = np.full((len(self.sources), n), -1, np.int64)
        for k, table in enumerate(self.tables):
            both = [(i, table[t]) for t, i in self.rows.items() if t in table]
            if both:
                new, old = np.array(both).T
                self.own[k, new] = old
        owners = (self.own >= 0).sum(0)
        first = np.argmax(self.own >= 0, axis=0)
        lone = (owners == 1) | ((self.own[0] >= 0) & self.based)
        self.fill_source = np.where(lone, first, np.where(owners == 0, ZERO, MEAN))
        self.fill_row = self.own[first, np.arange(n)]
        self.force = np.zeros(n, bool)
        for token, wish in wishes.items():
            wish = mapping(wish or {}, f"tokenizer: tokens: {token!r}", ("source", "force"))
            i = self.rows[str(token)]
            self.force[i] = bool(wish.get("force", False))
            if wish.get("source") is not None or self.force[i]:
                chosen = self._wish(str(token), wish.get("source"), models)
                self.fill_source[i], self.fill_row[i] = chosen

    def _wish(self, token: str, source: Any, models: Any) -> tuple[int, int]:
        what = f"tokenizer: tokens: {token!r}"
        wanted: Any = token
        if isinstance(source, Mapping) and not _is_model(source):
            known = ("kind", "model", "token", "token_id")
            source = mapping(source, what, known)
            kind, wanted = source.get("kind"), source.get("token", token)
            if kind == "zero":
                return ZERO, -1
            if kind != "model_token":
                raise UserError(f"{what}: kind must be zero or model_token, got {kind!r}.")
            row, source = source.get("token_id"), source.get("model")
            if row is not None:
                if type(row) is not int:
                    raise UserError(f"{what}: token_id must be an integer, got {row!r}.")
                k = self.sources.index(self._source(source, models))
                return k, self._row(k, row, what)
        chosen = self._source(source, models)
        if chosen not in self.sources:
            raise UserError(f"{what}: {source!r} is not among the merged models.")
        k = self.sources.index(chosen)
        if wanted not in self.tables[k]:
            raise UserError(f"{what}: {source!r} has no token {wanted!r}.")
        return k, self.tables[k][wanted]

    def _row(self, k: int, row: int, what: str) -> int:
        if not 0 <= row <= max(self.tables[k].values(), default=-1):
            raise UserError(f"{what}: {self.sources[k].ref} has no token number {row}.")
        return row

    def apply(self, sources: Sequence[Source | None]) -> list[Any]:
        """The sources with their embeddings in the output's vocabulary."""
        if not self.active:
            return list(sources)
        return [None if s is None else Reindexed(self, self.sources.index(s)) for s in sources]

    def _need(self, source: Source) -> int:
        """How many rows the tokens of a model need."""
        return max(self.tables[self.sources.index(source)].values(), default=-1) + 1

    def indexed(self, source: Source) -> set[str]:
        """The leaves with a row for every token: embeddings and output heads, padded or not.

        Shorter ones are other vocabularies, and so are those of a size that the config states for
        something else, as for codes of speech.
        """
        made_of, need = architecture(source), self._need(source)
        others = other_vocabularies(made_of, need)
        rows = {n: made_of.rows(n) for n in source if made_of.vocabulary(n)}
        return {n for n, r in rows.items() if r >= need and r not in others}


def _is_model(source: Any) -> bool:
    """Whether a source of rows is mergekit's mapping of a model, and no kind of row."""
    return isinstance(source, Mapping) and "model" in source and "kind" not in source


def resolved(setting: Any, models: Any) -> Any:
    """A tokenizer choice with references that mean the same anywhere."""
    own = lambda ref: ref if ref in ("union", "base") else models.resolve(ref_of(ref))
    if isinstance(setting, str):
        return own(setting)
    out = dict(setting)
    if out.get("source") is not None:
        out["source"] = own(out["source"])
    wishes = {}
    for token, wish in (out.get("tokens") or {}).items():
        source = (wish or {}).get("source")
        if isinstance(source, str) or _is_model(source):
            wish = {**wish, "source": models.resolve(ref_of(source))}
        elif isinstance(source, Mapping) and source.get("model") is not None:
            model = models.resolve(ref_of(source["model"]))
            wish = {**wish, "source": {**source, "model": model}}
        wishes[token] = wish
    return out | ({"tokens": wishes} if wishes else {})
