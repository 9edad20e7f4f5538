"""Texts to token ids and back, and conversations as a model's chat template has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError, library_message
from jaxmerge.io.untrusted import read_text
from jaxmerge.models.decoder.templates import rendered
from jaxmerge.models.folders import read_json
from jaxmerge.models.tokens import backend_of, text_of

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` with what a decoder needs besides.

    Attributes:
      backend: a `tokenizers.Tokenizer`.
      ends: ids of the tokens that end a text.
      bos: id of the token that starts one, None without.
      pad: id of padding.
      template: the chat template (Jinja), None without.
      named: `bos_token` and so on -> token.
      settings: tokenizer_config.json.
    """

    backend: Any
    ends: tuple[int, ...]
    bos: int | None
    pad: int
    template: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of a text; `special` adds the token in front where the model wants one."""
        if not isinstance(text, str):
            raise TypeError(f"found {text!r:.80}, expected a text")
        return self.backend.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def chat(self, messages: Sequence[Mapping[str, str]], answer: bool = True, **more: Any) -> str:
        """A conversation as text, special tokens included (encode it with `special=False`).

        Args:
          messages: with `role` and `content` each.
          answer: open the turn of the assistant at the end.
          more: further variables of the template.

        Raises:
          ValueError: the model has no chat template, or the template refuses the conversation.
        """
        if self.template is None:
            raise ValueError(
                "this model has no chat template (tokenizer_config.json has no chat_template, and "
                "there is no chat_template.jinja): it was not made for conversations; give it "
                "plain text"
            )
        variables = {"messages": list(messages), "add_generation_prompt": answer, **self.named}
        try:
            return rendered(self.template, {**variables, **more})
        except Exception as error:  # of Jinja, or of what the template does
            raise ValueError(
                f"the chat template refuses this conversation: {library_message(error)}"
            ) from None

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`."""
        folder = Path(folder)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {**self.settings, **self.named}
        if self.template is not None:
            config["chat_template"] = self.template
        text = json.dumps(config, indent=1, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def load_tokenizer(folder: str | Path | None, vocab: int) -> Tokenizer | None:
    """Reads `tokenizer.json` and what stands beside it; None where there is none.

    Args:
      folder: of the model.
      vocab: how many rows the embedding has.

    Raises:
      ValueError: a tokenizer that makes ids which the model has not.
    """
    if folder is None or not (Path(folder) / "tokenizer.json").exists():
        return None
    folder = Path(folder)
    settings = read_json(folder / "tokenizer_config.json")
    special = read_json(folder / "special_tokens_map.json")
    backend = backend_of(folder / "tokenizer.json")
    size = backend.get_vocab_size(with_added_tokens=True)
    if size > vocab:
        raise ValueError(
            f"{folder}: the tokenizer has {size} tokens, the embedding {vocab} rows; this is the "
            "tokenizer of another model"
        )
    named = {}
    for name in NAMED:
        token = text_of(settings.get(name, special.get(name)))
        if token is not None and backend.token_to_id(token) is not None:
            named[name] = token
    ids = {name: backend.token_to_id(token) for name, token in named.items()}
    ends = []
    for config in ("generation_config.json", "config.json"):
        end = read_json(folder / config).get("eos_token_id")
        end = end if isinstance(end, list) else [] if end is None else [end]
        if any(type(i) is not int for i in end):
            raise UserError(
                f"{folder / config}: eos_token_id is {end!r:.80}; expected whole numbers."
            )
        ends += end
    ends = tuple(dict.fromkeys(i for i in [*ends, ids.get("eos_token")] if i is not None))
    pad = ids.get("pad_token", ends[0] if ends else 0)
    keep = {k: v for k, v in settings.items() if k not in ("chat_template", *NAMED)}
    return Tokenizer(
        backend, ends, ids.get("bos_token"), pad, _template(folder, settings), named, keep
    )


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    alone = folder / "chat_template.jinja"
    if alone.exists():
        return read_text(alone)
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {e.get("name"): e.get("template") for e in template if isinstance(e, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None
