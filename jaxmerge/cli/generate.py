"""`jaxmerge generate MODEL PROMPT...`: a decoder goes on behind prompts, or holds a conversation.

One prompt is written to the terminal as it comes, several are computed at once; with ``--chat``
the prompts are the turns of one conversation, and without any they are read from standard input.
"""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator

from jaxmerge.errors import UserError
from jaxmerge.io.untrusted import printable


def run(
    ref: str,
    prompts: list[str] | None = None,
    *,
    chat: bool = False,
    system: str | None = None,
    most: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: list[str] | None = None,
    seed: int = 0,
    dtype: str = "float32",
    json: bool = False,
) -> None:
    """Print what the model writes."""
    from jaxmerge.models import decoder

    sampling = decoder.Sampling(temperature, top_k, top_p, repetition_penalty)
    if system is not None and not chat:
        raise UserError("--system is for conversations: add --chat.")
    if most < 1:
        raise UserError(f"--most is {most}, expected at least 1.")
    model = decoder.load(ref, dtype=dtype)
    if model.tokenizer is None:
        raise UserError(f"{ref} has no tokenizer that can be read{decoder.why_no_tokenizer(ref)}.")
    options = {
        "most": most, "sampling": sampling, "stop": tuple(stop or ()), "seed": seed,
        "compute": decoder.Compute(dtype if dtype != "float16" else "float32"),
    }  # fmt: skip
    if chat:
        _talk(model, prompts or _lines(), system, options, json)
        return
    if not prompts:
        prompts = [sys.stdin.read()]
    alone = len(prompts) == 1 and not json
    first = [prompts[0]]  # shown with the first token: a prompt that is refused is not
    show = (lambda _, text: _print(first.pop() + text if first else text)) if alone else None
    written = decoder.generate(model, prompts, on_text=show, **options)
    if json:
        _json(prompts, written)
    elif alone:
        print(printable("".join(first)))  # the prompt, where no token came
    else:
        for prompt, one in zip(prompts, written, strict=True):
            print(printable(prompt + one.text), end="\n\n")


def _talk(model, turns, system: str | None, options: dict, json: bool) -> None:
    """A conversation; every turn sees those before it."""
    from jaxmerge.models import decoder

    messages = [] if system is None else [{"role": "system", "content": system}]
    asked, written = [], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        text = model.tokenizer.chat(messages)
        if not json:
            print(f"> {printable(turn)}")
        show = None if json else (lambda _, text: _print(text))
        replies = decoder.generate(model, [text], special=False, on_text=show, **options)
        if not json:
            print("\n")
        messages.append({"role": "assistant", "content": replies[0].text})
        asked.append(turn)
        written += replies
    if json:
        _json(asked, written)


def _lines() -> Iterator[str]:
    """The turns typed at a terminal, until it ends."""
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _print(text: str) -> None:
    print(printable(text), end="", flush=True)


def _json(prompts, written) -> None:
    rows = [
        {"prompt": p, "text": w.text, "tokens": w.tokens, "reason": w.reason}
        for p, w in zip(prompts, written, strict=True)
    ]
    print(jsonlib.dumps(rows, indent=2))
