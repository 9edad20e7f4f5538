"""The tokenizer of the glyph world: whole words, and single characters for what is unknown.

A WordPiece vocabulary of every word that captions and everyday prompts use, of all
printable ASCII, of the Greek letters and signs, and of the same characters as continuations
("##x"). A word outside the vocabulary falls apart into characters; only a
character outside it becomes ``<unk>``. Upper and lower case differ ("the letter A").
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from jaxmerge.data.glyphs import concepts

CONTEXT = 24
PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<|startoftext|>", "<|endoftext|>"
_FRAME_WORDS = "on background in with of this is the a an not and or style color grey colored"
_SPLIT = re.compile(r"\w+|[^\w\s]+")


def words() -> list[str]:
    """The whole words of the vocabulary, sorted."""
    texts = [_FRAME_WORDS, *concepts.STYLES, *concepts.COLOURS, *concepts.NUMBERS]
    texts += [head for concept in concepts.CONCEPTS for head in concept.heads]
    texts += [frame.replace("{}", "") for frame in concepts.FRAMES]
    texts += [word for options in concepts.DOMAIN_WORDS.values() for word in options]
    texts += [word for options in concepts.KIND_PHRASES.values() for word in options]
    return sorted({word for text in texts for word in _SPLIT.findall(text)})


def build_tokenizer():
    """The tokenizer (a ``tokenizers.Tokenizer``), without training: its vocabulary is a list.

    >>> tokenizer = build_tokenizer()
    >>> tokenizer.encode("the digit 7").tokens[:6]
    ['<|startoftext|>', 'the', 'digit', '7', '<|endoftext|>', '<pad>']
    >>> tokenizer.encode("zebu", add_special_tokens=False).tokens[:4]
    ['z', '##e', '##b', '##u']
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    characters = [chr(i) for i in range(33, 127)]
    characters += [c.char for c in concepts.CONCEPTS if c.char and ord(c.char) > 126]
    pieces = [PAD, UNKNOWN, *dict.fromkeys([*characters, *words()])]
    pieces += [f"##{c}" for c in characters] + [BEGIN, END]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(BEGIN, vocabulary[BEGIN]), (END, vocabulary[END])],
    )
    tokenizer.add_special_tokens([PAD, UNKNOWN, BEGIN, END])
    tokenizer.enable_truncation(CONTEXT)
    tokenizer.enable_padding(length=CONTEXT, pad_id=vocabulary[PAD], pad_token=PAD)
    return tokenizer


def encode(tokenizer, texts: list[str]) -> np.ndarray:
    """Token numbers int32 [texts, 24]."""
    return np.array([e.ids for e in tokenizer.encode_batch(texts)], np.int32)


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    build_tokenizer().save(str(Path(folder) / "tokenizer.json"))
    special = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": BEGIN, "eos_token": END}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT}
    for name, content in (
        ("special_tokens_map.json", special),
        ("tokenizer_config.json", {**settings, **special}),
    ):
        (Path(folder) / name).write_text(json.dumps(content, indent=2) + "\n")
