"""Figures of a language model on texts: perplexity, multiple choice, exact match.

    perplexity            exp(-ll / n), n tokens, words (split at white space) or bytes (UTF-8)
    bits per byte         -ll / (bytes ln 2)
    acc                   argmax over choices of ll
    acc_norm              ... of ll / characters of the choice
    acc_bytes             ... of ll / bytes of the choice
    acc_mutual_info       ... of ll - ll without the question
    exact_match           greedy decoding writes the answer

Log-likelihoods (ll) are natural logarithms, made and summed on the device. The definitions are
those of lm-evaluation-harness 0.4, with which they are compared in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxmerge.models.decoder.checkpoint import Model
from jaxmerge.models.decoder.generate import generate
from jaxmerge.models.decoder.scoring import Score, score, windows
from jaxmerge.models.decoder.tokenize import Tokenizer


class Perplexity(NamedTuple):
    """How well texts are predicted, all of them together.

    Attributes:
      log_likelihood: of all tokens, the first of each text behind the token that starts texts.
      tokens, words, bytes: how many there are.
    """

    log_likelihood: float
    tokens: int
    words: int
    bytes: int

    @property
    def per_token(self) -> float:
        return math.exp(-self.log_likelihood / self.tokens)

    @property
    def per_word(self) -> float:
        return math.exp(-self.log_likelihood / self.words)

    @property
    def per_byte(self) -> float:
        return math.exp(-self.log_likelihood / self.bytes)

    @property
    def bits_per_byte(self) -> float:
        return -self.log_likelihood / (self.bytes * math.log(2))


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer; raises ValueError where it was loaded without one."""
    if model.tokenizer is None:
        raise ValueError("texts need a tokenizer, this model was loaded without one")
    return model.tokenizer


def start_of(model: Model) -> int:
    """The token behind which a text begins: that which starts texts, or one that ends them."""
    tokenizer = tokenizer_of(model)
    if tokenizer.bos is not None:
        return tokenizer.bos
    if not tokenizer.ends:
        raise ValueError("the model has neither a token that starts texts nor one that ends them")
    return tokenizer.ends[0]


def log_likelihoods(
    model: Model, texts: Sequence[str], *, special: bool = False, **options
) -> list[float]:
    """The log-likelihood of whole texts, each behind the token that starts texts.

    A text longer than the model's context is read in windows that begin with one token of the
    window before. With `special`, the tokens that the tokenizer adds by itself are scored too.
    `options` go to `jaxmerge.models.decoder.scoring.score`.
    """
    tokenizer, first = tokenizer_of(model), start_of(model)
    pairs, owner = [], []
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text, special=special)
        pieces = windows(ids, first, model.config.context)
        pairs += pieces
        owner += [number] * len(pieces)
    sums = [0.0] * len(texts)
    for number, result in zip(owner, score(model, pairs, **options), strict=True):
        sums[number] += result.log_likelihood
    return sums


def perplexity(model: Model, texts: Sequence[str], **options) -> Perplexity:
    """How well a model predicts texts.

    Raises:
      ValueError: no text, or only empty ones; a model without tokenizer.

    Memory: the model, a batch of texts, some tokens' logits.
    """
    if isinstance(texts, str):
        raise TypeError("texts: found a single text, expected a sequence of texts")
    texts = list(texts)
    tokens = sum(len(tokenizer_of(model).encode(text, special=False)) for text in texts)
    if not tokens:
        raise ValueError(f"perplexity needs text, found {len(texts)} texts without a token")
    return Perplexity(
        sum(log_likelihoods(model, texts, **options)),
        tokens,
        sum(len(text.split()) for text in texts),
        sum(len(text.encode("utf-8")) for text in texts),
    )


def encode_pair(model: Model, context: str, more: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of what goes on behind it.

    White space at the end of the context belongs to the continuation; both are tokenised together
    and cut behind the context's own length. An empty context is the token that starts texts.
    """
    tokenizer = tokenizer_of(model)
    if not context:
        first, ids = start_of(model), tokenizer.encode(more, special=False)
        return ([first], ids) if ids[:1] != [first] else (ids[:1], ids[1:])
    stripped = context.rstrip()
    more, context = context[len(stripped) :] + more, stripped
    bos = tokenizer.named.get("bos_token")
    special = not (bos and context.startswith(bos))
    ids = tokenizer.encode(context, special)
    return ids, tokenizer.encode(context + more, special)[len(ids) :]


def continuations(model: Model, pairs: Sequence[tuple[str, str]], **options) -> list[Score]:
    """How likely each text is after its context; `options` as of `log_likelihoods`."""
    return score(model, [encode_pair(model, *pair) for pair in pairs], **options)


@dataclass(frozen=True)
class Question:
    """A question with choices.

    Attributes:
      text: ends where the answer begins.
      choices: written behind the text and one blank.
      label: number of the right one.
    """

    text: str
    choices: tuple[str, ...]
    label: int

    def __post_init__(self):
        if not self.choices or not 0 <= self.label < len(self.choices):
            raise ValueError(
                f"question {self.text[:40]!r}: label {self.label} of {len(self.choices)} choices"
            )


def multiple_choice(
    model: Model, questions: Sequence[Question], mutual_info: bool = False, **options
) -> dict[str, float]:
    """The shares of questions answered rightly, by every rule.

    Args:
      mutual_info: `acc_mutual_info` too, which scores every choice a second time.

    Raises:
      ValueError: no question.
    """
    questions = list(questions)
    if not questions:
        raise ValueError("multiple choice needs questions, found none")
    asked = [(q.text, f" {choice}") for q in questions for choice in q.choices]
    results = iter(continuations(model, asked, **options))
    alone = iter(())
    if mutual_info:
        alone = iter(continuations(model, [("", more) for _, more in asked], **options))
    right = {"acc": 0, "acc_norm": 0, "acc_bytes": 0, "exact_match": 0}
    right |= {"acc_mutual_info": 0} if mutual_info else {}
    for q in questions:
        scores = [next(results) for _ in q.choices]
        ll = [s.log_likelihood for s in scores]
        ranked = {
            "acc": ll,
            "acc_norm": [x / len(c) for x, c in zip(ll, q.choices, strict=True)],
            "acc_bytes": [x / len(c.encode()) for x, c in zip(ll, q.choices, strict=True)],
        }
        if mutual_info:
            ranked["acc_mutual_info"] = [x - next(alone).log_likelihood for x in ll]
        for name, values in ranked.items():
            right[name] += max(range(len(values)), key=values.__getitem__) == q.label
        right["exact_match"] += scores[q.label].greedy
    return {name: count / len(questions) for name, count in right.items()}


def exact_match(
    model: Model, prompts: Sequence[str], answers: Sequence[str], *, most: int = 32, **options
) -> float:
    """The share of prompts behind which the model writes the answer, white space apart.

    `options` go to `generate`; a line ends an answer unless `stop` says otherwise.
    """
    if len(prompts) != len(answers) or not prompts:
        raise ValueError(f"found {len(prompts)} prompts and {len(answers)} answers")
    options.setdefault("stop", ("\n",))
    written = generate(model, prompts, most=most, **options)
    pairs = zip(written, answers, strict=True)
    return sum(w.text.strip() == answer.strip() for w, answer in pairs) / len(prompts)
