"""Texts to token ids: byte-pair encoding with a start and an end token, padded to the context.

The work is done by the `tokenizers` package. A `Tokenizer` is read from a folder that holds
either `tokenizer.json` or `vocab.json` and `merges.txt` (OpenAI's vocabulary in Hugging Face's
form), and is written as `tokenizer.json`, which transformers reads as well.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmerge.io.untrusted import read_json, read_text
from jaxmerge.models.tokens import backend_of, refuse_long, special_tokens, token_ids

if TYPE_CHECKING:
    import tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"

# OpenAI's rule for words: contractions, runs of letters, single digits, runs of anything else.
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclass(frozen=True)
class Tokenizer:
    """`tokenizer(texts)` -> int32 `[texts, context]`.

    Attributes:
      backend: a `tokenizers.Tokenizer`.
      context: length of every row.
      start, end, pad: token ids.

    >>> import jaxmerge
    >>> folder = Path(jaxmerge.__file__).parent / "assets" / "mini-2k"
    >>> tokenizer = load_tokenizer(folder, 16)
    >>> tokenizer.decode(tokenizer("a photo of a")[0])
    'a photo of a'
    """

    backend: Any
    context: int
    start: int
    end: int
    pad: int

    def __call__(self, texts: str | Iterable[str], truncate: bool = False) -> np.ndarray:
        """Encodes texts.

        Args:
          texts: one text or several.
          truncate: cut texts that are too long (keeping the end token) instead of raising.

        Raises:
          ValueError: texts longer than the context, unless `truncate`.
        """
        texts = [tidy(text) for text in ([texts] if isinstance(texts, str) else texts)]
        encoded = self.backend.encode_batch(texts, add_special_tokens=False)
        room = self.context - 2
        if not truncate:
            lengths = [len(code.ids) for code in encoded]
            refuse_long(texts, lengths, room, f"the context of {self.context}")
        rows = np.full((len(texts), self.context), self.pad, np.int32)
        for row, code in zip(rows, encoded, strict=True):
            ids = [self.start, *code.ids[:room], self.end]
            row[: len(ids)] = ids
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        """The text of one row, without the special tokens.

        Args:
          ids: of one row.
        """
        keep = [int(i) for i in ids if i not in (self.start, self.end, self.pad)]
        text = self.backend.decode(keep, skip_special_tokens=True)
        return text.replace("</w>", " ").strip()

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`.

        Args:
          folder: there already.
        """
        folder = Path(folder)
        self.backend.save(str(folder / "tokenizer.json"))
        names = {which: self.backend.id_to_token(getattr(self, which)) for which in _SPECIAL}
        model = json.loads(self.backend.to_str())["model"]
        pairs = model["type"] == "BPE"  # CLIP's own; transformers would read others as that
        config = {
            "tokenizer_class": "CLIPTokenizer" if pairs else "PreTrainedTokenizerFast",
            "model_max_length": self.context,
            **{theirs: names[ours] for ours, theirs in _SPECIAL.items()},
            "unk_token": names["end"] if pairs else model.get("unk_token") or names["end"],
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def tidy(text: str) -> str:
    """Straight quotes for curly ones, characters for HTML entities, as OpenAI cleans its texts.

    Differs: OpenAI repairs broken encodings too (ftfy); transformers does none of this.

    >>> tidy("the cat\u2019s fish &amp;amp; chips")
    "the cat's fish & chips"
    """
    return html.unescape(html.unescape(text)).translate(_STRAIGHT)


_STRAIGHT = {
    **dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}
_SPECIAL = {"start": "bos_token", "end": "eos_token", "pad": "pad_token"}


def from_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """The `tokenizers` object of CLIP's byte-pair encoding, from its vocabulary and merges.

    Args:
      vocab: token -> id, START and END among them.
      merges: pairs of tokens, in the order in which they are merged.

    >>> vocab = {token: i for i, token in enumerate(["a", "a</w>", "aa</w>", START, END])}
    >>> from_bpe(vocab, [("a", "a</w>")]).encode("aa a").ids
    [3, 2, 1, 4]
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=END,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([START, END])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (START, END)],
    )
    return backend


def load_tokenizer(folder: str | Path, context: int) -> Tokenizer | None:
    """Reads the tokenizer of a folder; None when the folder has none.

    Args:
      folder: with ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.
      context: length of the rows of ids.

    Raises:
      ValueError: half a tokenizer, or one without the special tokens it names.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> load_tokenizer(folder, 8) is None
    True
    >>> vocab = {token: i for i, token in enumerate(["a", "a</w>", START, END])}
    >>> Tokenizer(from_bpe(vocab, []), 8, start=2, end=3, pad=3).save(folder)
    >>> load_tokenizer(folder, 5)("a")
    array([[2, 1, 3, 3, 3]], dtype=int32)
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").exists():
        backend = backend_of(folder / "tokenizer.json")
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        vocab = read_json(folder / "vocab.json")
        lines = read_text(folder / "merges.txt").split("\n")
        pairs = (line.split() for line in lines if line and not line.startswith("#version"))
        merges = [(left, right) for left, right in pairs]
        backend = from_bpe(vocab, merges)
    elif (folder / "vocab.json").exists() or (folder / "merges.txt").exists():
        raise ValueError(f"{folder}: a tokenizer needs both vocab.json and merges.txt")
    else:
        return None
    defaults = {"bos_token": START, "eos_token": END, "pad_token": END}
    ids = token_ids(backend, folder, special_tokens(folder, defaults))
    return Tokenizer(backend, context, **{ours: ids[key] for ours, key in _SPECIAL.items()})
