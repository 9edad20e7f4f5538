"""Texts written by a decoder, token by token, in one compiled loop for the whole batch.

Prompts of different lengths are filled up on their left, so all rows write their next token into
the same slot of a cache of fixed size. The loop runs on the device until every row has ended; a
caller that wants to see tokens as they come, or whose stop strings must be looked for in text, gets
them some at a time from the same compiled loop.

The next token is drawn as transformers does it: repetition penalty, temperature, top-k, top-p, in
that order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.models.decoder.checkpoint import Model
from jaxmerge.models.decoder.modeling import Decoder, Positions, State, empty_state, positions_of
from jaxmerge.models.packing import bucket
from jaxmerge.models.transformer import Compute, bind

CHECK_EVERY = 16  # tokens between two looks for stop strings


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: only this many most likely tokens; 0 for all.
      top_p: only the most likely tokens that together have this probability; 1 for all.
      repetition_penalty: logits of tokens that occurred are divided by it where they are positive
        and multiplied where they are negative; 1 for none (Keskar et al. 2019, arXiv 1909.05858).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        wrong = []
        if not self.temperature >= 0:
            wrong.append(f"temperature is {self.temperature}, expected 0 or more")
        if self.top_k < 0:
            wrong.append(f"top_k is {self.top_k}, expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            wrong.append(f"top_p is {self.top_p}, expected a share above 0, at most 1")
        if not self.repetition_penalty > 0:
            wrong.append(f"repetition_penalty is {self.repetition_penalty}, expected above 0")
        if wrong:
            raise ValueError("; ".join(wrong))


class Generation(NamedTuple):
    """What was written behind one prompt.

    Attributes:
      text: without special tokens, cut before a stop string; empty without tokenizer.
      tokens: its ids, the one that ended it included.
      reason: "end" (a token that ends texts), "stop" (a stop string) or "length".
    """

    text: str
    tokens: list[int]
    reason: str


class Loop(NamedTuple):
    """What the loop hands on from token to token.

    Attributes:
      state: keys and values so far.
      logits: of the next token, float32 `[batch, vocab]`.
      index: place of the next token in its text, `[batch]`.
      tokens: what was written, `[batch, most]`.
      written: how many tokens were.
      done: bool `[batch]`, the rows that have ended.
      seen: bool `[batch, vocab]`, the tokens that occurred; no columns without a penalty.
      key: of the draws.
    """

    state: State | None
    logits: jax.Array
    index: jax.Array
    tokens: jax.Array
    written: jax.Array
    done: jax.Array
    seen: jax.Array
    key: jax.Array


def choose(logits: jax.Array, seen: jax.Array, key: jax.Array, how: tuple, filtered: bool):
    """The next token of each row, int32 `[batch]`; `how` holds `Sampling`'s numbers, traced."""
    temperature, top_k, top_p, penalty = how
    if seen.shape[1]:
        punished = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(seen, punished, logits)
    if temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if not filtered:
        return jax.random.categorical(key, logits).astype(jnp.int32)
    order = jnp.argsort(-logits, axis=-1)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(ranked.shape[1])[None]
    ranked = jnp.where((top_k > 0) & (rank >= top_k), -jnp.inf, ranked)
    shares = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    ranked = jnp.where((before < top_p) | (rank == 0), ranked, -jnp.inf)
    drawn = jax.random.categorical(key, ranked)
    return jnp.take_along_axis(order, drawn[:, None], axis=1)[:, 0].astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _read(config, params, prompts, slots: int, most: int, penalised: bool, compute: Compute, key):
    """Reads the prompts; int `[batch, length]`, filled up on the left with -1."""
    decoder = bind(Decoder, config, params)
    where = positions_of(prompts >= 0)
    batch = prompts.shape[0]
    state = empty_state(config, batch, slots, compute.dtype)
    states, state = decoder(jnp.maximum(prompts, 0), where, compute, state)
    seen = jnp.zeros((batch, config.vocab if penalised else 0), bool)
    if penalised:
        rows = jnp.broadcast_to(jnp.arange(batch)[:, None], prompts.shape)
        columns = jnp.where(prompts >= 0, prompts, config.vocab)
        seen = seen.at[rows, columns].set(True, mode="drop")
    return Loop(
        state=state,
        logits=decoder.logits(states[:, -1]),
        index=where.index[:, -1] + 1,
        tokens=jnp.zeros((batch, most), jnp.int32),
        written=jnp.zeros((), jnp.int32),
        done=jnp.zeros(batch, bool),
        seen=seen,
        key=key,
    )


@functools.partial(jax.jit, static_argnums=(0, 4, 6, 7), donate_argnums=2)
def _write(config, params, loop: Loop, until, ends: tuple, how, filtered: bool, compute: Compute):
    """Goes on until so many tokens are written, or every row has ended."""
    decoder = bind(Decoder, config, params)
    pad = ends[0] if ends else 0

    def step(loop: Loop) -> Loop:
        key, own = jax.random.split(loop.key)
        token = choose(loop.logits, loop.seen, own, how, filtered)
        token = jnp.where(loop.done, pad, token)
        done = loop.done | jnp.isin(token, jnp.array(ends or (-1,), jnp.int32))
        segment = jnp.ones_like(token)[:, None]
        where = Positions(loop.index[:, None], segment)
        states, state = decoder(token[:, None], where, compute, loop.state)
        seen = loop.seen
        if seen.shape[1]:
            seen = seen.at[jnp.arange(len(token)), token].set(True)
        start = (jnp.zeros((), jnp.int32), loop.written)
        return Loop(
            state=state,
            logits=decoder.logits(states[:, -1]),
            index=loop.index + 1,
            tokens=jax.lax.dynamic_update_slice(loop.tokens, token[:, None], start),
            written=loop.written + 1,
            done=done,
            seen=seen,
            key=key,
        )

    going = lambda loop: (loop.written < until) & ~jnp.all(loop.done)
    return jax.lax.while_loop(going, step, loop)


def generate(
    model: Model,
    prompts: Sequence[str | Sequence[int]],
    *,
    most: int = 64,
    sampling: Sampling = Sampling(),
    stop: Sequence[str] = (),
    special: bool = True,
    seed: int = 0,
    compute: Compute = Compute(),
    on_text: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Goes on behind prompts, all of them at once.

    Args:
      model: a decoder.
      prompts: texts, or lists of ids.
      most: tokens to write for each; less where the model's context ends.
      sampling: how the next token is chosen; the most likely one unless given.
      stop: texts end before the first of these strings.
      special: whether the token that starts texts goes in front of prompts, where the model wants
        one; not of a rendered chat, which holds it.
      seed: of the draws.
      compute: dtype of the matrix products and of the cache, form of the attention.
      on_text: called with the number of a prompt and the text that was added behind it, while
        it is written; stop strings never show.

    Returns:
      A `Generation` for each prompt.

    Raises:
      ValueError: no prompt, an empty one, ids outside of the vocabulary, a prompt that fills the
        model's context, texts or stop strings without a tokenizer, logits that are not finite.

    Memory: the model, and a cache of `2 layers batch slots kv_heads depth` numbers.
    """
    rows = _ids(model, prompts, special)
    if stop and model.tokenizer is None:
        raise ValueError("stop strings need a tokenizer, this model was loaded without one")
    config, longest = model.config, max(map(len, rows))
    if longest >= config.context:
        which = next(i for i, row in enumerate(rows) if len(row) == longest)
        raise ValueError(
            f"prompt {which} has {longest} tokens, the model's context {config.context}: shorten it"
        )
    most = min(most, config.context - longest)
    length = min(bucket(longest, 4), config.context - most)
    filled = np.full((len(rows), max(length, longest)), -1, np.int32)
    for row, ids in zip(filled, rows, strict=True):
        row[len(row) - len(ids) :] = ids
    slots = filled.shape[1] + most
    greedy = sampling.temperature == 0
    filtered = sampling.top_k > 0 or sampling.top_p < 1
    how = (
        None if greedy else jnp.float32(sampling.temperature),
        jnp.int32(sampling.top_k),
        jnp.float32(sampling.top_p),
        jnp.float32(sampling.repetition_penalty),
    )
    penalised, params = sampling.repetition_penalty != 1, dict(model.params)
    key = jax.random.key(seed)
    loop = _read(config, params, filled, slots, most, penalised, compute, key)
    if not np.isfinite(np.asarray(loop.logits)).all():
        raise ValueError(
            "the model's logits are NaN or infinite: its weights hold such numbers, or are too "
            f"large for {compute.dtype}; look whether the merge that made it is at fault"
        )
    ends = () if model.tokenizer is None else model.tokenizer.ends
    texts = [_Text(model, stop) for _ in rows]
    looked_at = on_text is not None or bool(stop)
    written = 0
    while written < most and not all(text.reason for text in texts):
        until = min(written + CHECK_EVERY, most) if looked_at else most
        if on_text is not None:
            until = min(until, written + 2)
        loop = _write(config, params, loop, until, ends, how, filtered, compute)
        tokens, now = np.asarray(loop.tokens), int(loop.written)
        for number, (text, row) in enumerate(zip(texts, tokens, strict=True)):
            added = text.add(row[written:now].tolist(), ends)
            if on_text is not None and added:
                on_text(number, added)
        if now == written or (now < until and bool(np.asarray(loop.done).all())):
            break
        written = now
    for number, text in enumerate(texts):
        if on_text is not None and (rest := text.rest()):
            on_text(number, rest)
    return [Generation(text.text(), text.ids, text.reason or "length") for text in texts]


def _ids(model: Model, prompts: Sequence[str | Sequence[int]], special: bool) -> list[list[int]]:
    """The ids of prompts; raises ValueError for those that cannot be read, all at once."""
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts: expected a list of texts or of ids, found none or a single text")
    tokenizer, rows, wrong = model.tokenizer, [], []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError("texts need a tokenizer, this model was loaded without one")
            prompt = tokenizer.encode(prompt, special) or (
                [] if tokenizer.bos is None else [tokenizer.bos]
            )
        ids = [int(i) for i in prompt]
        rows.append(ids)
        if not ids:
            wrong.append(f"prompt {number} is empty")
        elif not 0 <= min(ids) <= max(ids) < model.config.vocab:
            wrong.append(f"prompt {number} has ids outside of 0 to {model.config.vocab - 1}")
    if wrong:
        raise ValueError("; ".join(wrong[:5]))
    return rows


class _Text:
    """The tokens of one row as they come, and the text that is safe to show."""

    def __init__(self, model: Model, stop: Sequence[str]):
        self.tokenizer, self.stop = model.tokenizer, [s for s in stop if s]
        self.ids: list[int] = []
        self.reason, self.shown, self._cut = "", 0, -1

    def add(self, tokens: Sequence[int], ends: tuple[int, ...]) -> str:
        """Takes tokens; what of the text is new and cannot be taken back."""
        for token in tokens:
            if self.reason:
                return ""
            self.ids.append(token)
            if token in ends:
                self.reason = "end"
        if self.tokenizer is None:
            return ""
        whole = self.tokenizer.decode(self.ids)
        positions = [at for s in self.stop if (at := whole.find(s)) >= 0]
        if positions:
            self._cut, self.reason = min(positions), "stop"
        if self.reason:
            return self.rest()
        # an unfinished character, or what may become a stop string, waits
        safe = len(whole) - max([0, *(_overlap(whole, s) for s in self.stop)])
        while safe and whole[safe - 1] == "\ufffd":
            safe -= 1
        new = whole[self.shown : safe]
        self.shown = max(self.shown, safe)
        return new

    def rest(self) -> str:
        """What was not shown yet."""
        text = self.text()
        new, self.shown = text[self.shown :], len(text)
        return new

    def text(self) -> str:
        if self.tokenizer is None:
            return ""
        whole = self.tokenizer.decode(self.ids)
        return whole if self._cut < 0 else whole[: self._cut]


def _overlap(text: str, stop: str) -> int:
    """The longest end of a text that a stop string begins with."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
