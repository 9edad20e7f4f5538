"""How likely texts are: log-probabilities of tokens, reduced on the device.

Logits of a vocabulary of 150,000 are large; they are made for some tokens at a time, and only three
numbers a token leave them: the target's log-probability, whether the target is the most likely
token, and their sums.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.types import Array
from jaxmerge.models.decoder.checkpoint import Model
from jaxmerge.models.decoder.config import Config
from jaxmerge.models.decoder.modeling import Decoder, Positions, positions_of
from jaxmerge.models.packing import bucket
from jaxmerge.models.transformer import Compute, bind, check_ids

CHUNK = {"cpu": 1 << 25}  # logits that are made at a time, by backend
ACCELERATOR = 1 << 28  # elsewhere: fewer, larger products


class Score(NamedTuple):
    """How likely a continuation is after its context.

    Attributes:
      log_likelihood: natural logarithm, summed over the continuation's tokens.
      greedy: whether it is what greedy decoding would have written.
      tokens: log-probability of each of its tokens, float32.
    """

    log_likelihood: float
    greedy: bool
    tokens: np.ndarray


def target_scores(
    decoder: Decoder, states: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and whether the target is the most likely token, for each state.

    Args:
      decoder: bound to its parameters.
      states: `[batch, tokens, width]`, behind the final norm.
      targets: int `[batch, tokens]`.

    Returns:
      float32 and bool `[batch, tokens]`.

    Memory: the logits of some tokens in float32, 134 MB on a CPU and 1.1 GB elsewhere. The backward
    pass takes them from the forward pass where these are all tokens, otherwise it makes them again.
    """
    width, vocab = states.shape[-1], decoder.config.vocab
    rows, wanted = states.reshape(-1, width), targets.reshape(-1)
    most = CHUNK.get(jax.default_backend(), ACCELERATOR)
    parts = -(-len(rows) // max(1, most // vocab))

    def some(part):
        logits = decoder.logits(part[0])
        chosen = jnp.take_along_axis(logits, part[1][:, None], axis=-1)[:, 0]
        best = jnp.argmax(logits, axis=-1) == part[1]
        return chosen - jax.nn.logsumexp(logits, axis=-1), best

    if parts <= 1:
        log_p, best = some((rows, wanted))
    else:
        pad = -len(rows) % parts
        rows = jnp.pad(rows, ((0, pad), (0, 0))).reshape(parts, -1, width)
        wanted = jnp.pad(wanted, (0, pad)).reshape(parts, -1)
        log_p, best = jax.lax.map(jax.checkpoint(some), (rows, wanted))
    back = lambda x: x.reshape(-1)[: targets.size].reshape(targets.shape)
    return back(log_p), back(best)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _scores(config: Config, params, tokens, targets, positions: Positions, compute: Compute):
    decoder = bind(Decoder, config, params)
    states = decoder(tokens, positions, compute)[0]
    return target_scores(decoder, states, targets)


def token_scores(
    config: Config,
    params: Mapping,
    tokens: Array,
    targets: Array,
    positions: Positions,
    *,
    compute: Compute = Compute(),
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and whether it is the most likely token, `[batch, tokens]` each.

    Args:
      tokens: int `[batch, tokens]`, what is read.
      targets: int `[batch, tokens]`, what is scored behind each token.
      positions: where the tokens stand.

    >>> from jaxmerge.models.decoder import init
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    >>> tiny = Config.from_hf({"model_type": "llama", "num_hidden_layers": 1, **sizes})
    >>> params, tokens = init(tiny, jax.random.key(0)), np.array([[5, 6, 7]])
    >>> where = positions_of(np.ones((1, 3)))
    >>> token_scores(tiny, params, tokens, np.array([[6, 7, 8]]), where)[0].shape
    (1, 3)
    """
    check_ids(tokens, config.vocab)
    check_ids(targets, config.vocab)
    return _scores(config, dict(params), tokens, targets, positions, compute)


def score(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch: int = 16,
    compute: Compute = Compute(),
) -> list[Score]:
    """How likely each continuation is after its context.

    Rows of like length share a batch and are filled up at their end, so few shapes are compiled.

    Args:
      model: a decoder.
      pairs: ids of the context, at least one, and of the continuation. Where both are longer than
        the model's context, the beginning is left out.
      batch: rows at a time.

    Raises:
      ValueError: ids outside of the vocabulary; an empty context or continuation, or one with as
        many tokens as the model's context has, all of them are counted.
    """
    room = model.config.context
    wrong = [i for i, (context, more) in enumerate(pairs) if not context or not more]
    long = [i for i, (_, more) in enumerate(pairs) if len(more) > room]
    for ids in (np.array(list(ids), np.int64) for pair in pairs for ids in pair):
        check_ids(ids, model.config.vocab)
    if wrong or long:
        raise ValueError(
            f"{len(wrong)} of {len(pairs)} pairs have an empty context or continuation, and "
            f"{len(long)} a continuation longer than the model's context of {room} tokens (the "
            f"first of them: {(wrong + long)[0]})"
        )
    rows = [[*context, *more][-(room + 1) :] for context, more in pairs]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    results: list[Score | None] = [None] * len(rows)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        length = min(bucket(max(len(rows[i]) for i in chosen) - 1, 4), room)
        tokens = np.zeros((batch, length), np.int32)
        targets, mask = tokens.copy(), tokens.copy()
        for row, i in enumerate(chosen):
            ids = rows[i]
            tokens[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
            mask[row, : len(ids) - 1] = 1
        scores = token_scores(
            model.config, model.params, tokens, targets, positions_of(mask), compute=compute
        )
        log_p, best = map(np.asarray, scores)
        for row, i in enumerate(chosen):
            last = len(rows[i]) - 1
            part = slice(last - len(pairs[i][1]), last)
            per_token = log_p[row, part]
            results[i] = Score(
                float(per_token.sum(dtype=np.float64)), bool(best[row, part].all()), per_token
            )
    return [x for x in results if x is not None]


def windows(ids: Sequence[int], first: int, room: int) -> list[tuple[list[int], list[int]]]:
    """A text in windows, so that every token is scored once: pairs of context and continuation.

    The first window begins behind the token `first`; each later one has one token of context, and
    the last one as many as there is room for.

    >>> windows([5, 6, 7, 8, 9], first=1, room=3)
    [([1], [5, 6, 7]), ([6, 7], [8, 9])]
    """
    ids, pairs, done = list(ids), [], 0
    while done < len(ids):
        new = min(room, len(ids) - done)
        end = done + new
        start = 0 if done == 0 else max(0, end - room - 1)
        context = [first] if done == 0 else ids[start:done]
        pairs.append((context, ids[done:end]))
        done = end
    return pairs
