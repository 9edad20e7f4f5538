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

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.architectures import architecture
from jaxmerge.io.architectures.config_changes import other_vocabularies, vocabulary_changes
from jaxmerge.io.safetensors import Leaves, Whole
from jaxmerge.io.sources import Source
from jaxmerge.io.tokenizer_files import tokenizer_files
from jaxmerge.io.untrusted import member, read_json
from jaxmerge.recipes.chat_templates import template_files
from jaxmerge.recipes.parse import mapping

MEAN, ZERO = -1, -2  # in place of a source's number
MAX_TOKENS = 1 << 22  # tokens of a vocabulary; tables and embeddings of the output grow with it
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
        self.config: dict[str, Any] = {}
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
            keeper, tokens = base, list(_in_order(self.tables[0]))
            seen = set(tokens)
            new: list[tuple[str, Source]] = []
            for s, table in zip(self.sources[1:], self.tables[1:], strict=True):
                new += [(t, s) for t in _in_order(table) if t not in seen]
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
        self.config |= vocabulary_changes(architecture(base), self._need(base), self.size)
        self._fill(wishes, models)
        return keeper

    def _check_rows(self, base: Source) -> None:
        """Raise where a table of tokens has rows that config.json counts as something else."""
        layout = architecture(base)
        size = max(layout.vocabularies.values(), default=0)
        odd = [n for n in base if size and layout.vocabulary(n) and layout.rows(n) > size]
        if odd:
            raise UserError(
                f"tokenizer: {base.ref}: {odd[0]!r} has {layout.rows(odd[0])} rows, config.json "
                f"says vocab_size {size}: what the other rows are for is not known. Merge without "
                "a tokenizer choice, or mend vocab_size in config.json."
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

    def _source(self, ref: str, models: Any) -> Source:
        opened = models.open(ref)
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
        if isinstance(source, Mapping):
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


class Reindexed(Whole):
    """A source whose embedding rows are those of the output's vocabulary."""

    def __init__(self, vocabulary: Vocabulary, k: int):
        super().__init__()
        self.vocabulary, self.k, self.source = vocabulary, k, vocabulary.sources[k]
        self.ref, self.folder, self.files = self.source.ref, self.source.folder, self.source.files
        self.config, self.made_of = self.source.config, architecture(self.source)
        self.stamps = {p: s for other in vocabulary.sources for p, s in other.stamps.items()}
        self.mapped = vocabulary.indexed(self.source)
        self.like = {
            n: like._replace(shape=self._shape(n, like.shape)) if n in self.mapped else like
            for n, like in self.source.like.items()
        }

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = self.made_of.token_axis(name)
        return (*shape[:axis], self.vocabulary.size, *shape[axis + 1 :])

    def _rows(self, source: Leaves, name: str) -> np.ndarray:
        """A leaf with tokens along its first axis."""
        return np.moveaxis(source[name], self.made_of.token_axis(name), 0)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name not in self.mapped:
            return self.source.read(name, start, stop)
        return super().read(name, start, stop)

    def into(self, out: np.ndarray, name: str, start: int = 0) -> None:
        if name in self.mapped:
            out[:] = self.read(name, start, start + len(out))
        else:
            self.source.into(out, name, start)

    def load(self, name: str) -> np.ndarray:
        v, like = self.vocabulary, self.like[name]
        own = v.own[self.k]
        take = (own >= 0) & ~v.force
        whole = np.zeros(like.shape, like.dtype)
        out = np.moveaxis(whole, self.made_of.token_axis(name), 0)
        out[take] = self._rows(self.source, name)[own[take]]
        todo = np.flatnonzero(~take)
        for k, other in enumerate(v.sources):
            here = todo[v.fill_source[todo] == k]
            if here.size:
                rows = v.fill_row[here]
                self._has(other, name, rows)
                out[here] = self._rows(other, name)[rows]
        mean = todo[v.fill_source[todo] == MEAN]
        if mean.size:
            total, count = np.zeros((mean.size, *out.shape[1:]), np.float32), 0
            for k, other in enumerate(v.sources):
                there = v.own[k, mean] >= 0
                if there.any():
                    rows = self._rows(other, name)[v.own[k, mean[there]]]
                    total[there] += rows.astype(np.float32)
                count = count + there
            shape = (-1,) + (1,) * (len(like.shape) - 1)
            out[mean] = (total / np.maximum(count, 1).reshape(shape)).astype(like.dtype)
        return whole

    def _has(self, other: Leaves, name: str, rows: np.ndarray) -> None:
        if name not in other:
            raise UserError(f"tokenizer: {getattr(other, 'ref', 'a model')} has no leaf {name!r}.")

    def close(self) -> None:
        self.source.close()


def token_table(source: Source) -> dict[str, int]:
    """Token -> row of the embedding, from the model's tokenizer.json."""
    content, where = _tokenizer_json(source), f"{source.ref}: tokenizer.json"
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


def _tokenizer_json(source: Source) -> dict[str, Any]:
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
    content = _without(_tokenizer_json(base), set(beyond))
    flags: dict[str, dict[str, Any]] = {}
    for owner in dict.fromkeys(s for _, s in new):
        for added in added_tokens(_tokenizer_json(owner), owner.ref):
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
    if tokens and isinstance(model.get("merges"), list):
        pairs = [(m, m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
        model["merges"] = [m for m, p in pairs if not tokens & {*p, "".join(p)}]
    return content | {"added_tokens": added} | ({"model": model} if model else {})


def _in_order(table: Mapping[str, int]) -> list[str]:
    return sorted(table, key=lambda t: table[t])
