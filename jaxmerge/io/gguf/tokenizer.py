"""A GGUF file's tokenizer as Hugging Face's files, and back.

`tokenizer.ggml.model` says the kind: "gpt2" is byte-level BPE, whose text is first cut as
`tokenizer.ggml.pre` says (`CUTS`); "llama" is SentencePiece's BPE with scores in the place of
merges. Other kinds, and cuts that are not listed, give no tokenizer: the weights can still be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmerge.errors import UserError

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # token_type
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


def _bytes(regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex
    }  # fmt: skip


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def _in_turn(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_DIGITS = {"type": "Digits", "individual_digits": True}
CUTS: Mapping[str, dict[str, Any]] = {
    "smollm": _in_turn(_DIGITS, _bytes(True)),
    "gpt-2": _bytes(True),
    "llama-bpe": _in_turn(_split(LLAMA_3), _bytes(False)),
    "qwen2": _in_turn(_split(QWEN_2), _bytes(False)),
}
ALIASES = {
    "default": "gpt-2",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "smaug-bpe": "llama-bpe",
}
WHOLE_FIRST = ("llama-bpe",)  # a word that is a token is not put together from merges


def files_of(metadata: Mapping[str, Any], context: int | None) -> dict[str, Any]:
    """File name -> content of tokenizer.json and tokenizer_config.json.

    Raises:
        UserError: no tokenizer in the file, or one of a kind that is not rebuilt.
    """
    settings = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    tokens, kinds = settings.get("tokens"), settings.get("token_type")
    if not isinstance(tokens, list) or len(set(tokens)) != len(tokens):
        raise UserError("this GGUF file has no list of distinct tokens")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        kinds = np.ones(len(tokens), np.int32)
    filling = {i for i in np.flatnonzero(kinds == UNUSED).tolist() if tokens[i] == _filling(i)}
    ids = {token: index for index, token in enumerate(tokens) if index not in filling}
    model = {"gpt2": _byte_level, "llama": _sentencepiece}.get(settings.get("model", ""))
    if model is None:
        raise UserError(f"a tokenizer of the kind {settings.get('model')!r} is not rebuilt")
    added = [
        {
            "id": index, "content": tokens[index], "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": bool(kinds[index] == CONTROL),
        }
        for index in np.flatnonzero((kinds == CONTROL) | (kinds == USER_DEFINED)).tolist()
    ]  # fmt: skip
    named = {
        name: tokens[index]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if isinstance(index := settings.get(f"{key}_token_id"), int) and 0 <= index < len(tokens)
    }
    # llama.cpp puts it in front of SentencePiece's texts unless the file says otherwise
    starts = bool(settings.get("add_bos_token", settings["model"] == "llama")) and "bos" in named
    rebuilt = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "post_processor": _template(named["bos"], ids[named["bos"]]) if starts else None,
        **model(settings, ids, named),
    }  # fmt: skip
    config: dict[str, Any] = {f"{name}_token": token for name, token in named.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": starts}
    config |= {"clean_up_tokenization_spaces": False}
    if context:
        config["model_max_length"] = context
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    return {"tokenizer.json": rebuilt, "tokenizer_config.json": config}


def _byte_level(
    settings: Mapping, ids: Mapping[str, int], named: Mapping[str, str]
) -> dict[str, Any]:
    pre = str(settings.get("pre", "default"))
    pre = ALIASES.get(pre, pre)
    if pre not in CUTS:
        raise UserError(
            f"tokenizer.ggml.pre is {pre!r}, a way to cut text that is not known here (known: "
            f"{', '.join(CUTS)})"
        )
    merges = [merge.split(" ") for merge in settings.get("merges", [])]
    if wrong := [m for m in merges if len(m) != 2 or not {*m, "".join(m)} <= ids.keys()]:
        raise UserError(f"{len(wrong)} merges are not of two tokens to a third, as {wrong[0]}")
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": CUTS[pre],
        "decoder": _bytes(True),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": pre in WHOLE_FIRST, "vocab": dict(ids), "merges": merges,
        },
    }  # fmt: skip


def _sentencepiece(settings: Mapping, ids: Mapping[str, int], named: Mapping[str, str]) -> dict:
    scores = settings.get("scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(settings["tokens"]):
        raise UserError("a SentencePiece tokenizer without a score for every token")
    merges = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-float(scores[index]), ids[left], ids[right], left, right))
    prefix = settings.get("add_space_prefix", True)
    space = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*space, replace]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": named.get("unk"),
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False, "vocab": dict(ids),
            "merges": [[left, right] for *_, left, right in sorted(merges)],
        },
    }  # fmt: skip


def _template(token: str, index: int) -> dict[str, Any]:
    """What puts the first token in front of every text."""
    one = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing", "single": one,
        "pair": [*one, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }  # fmt: skip


def _filling(index: int) -> str:
    """What llama.cpp's converter calls an id that no token has; embeddings have more rows."""
    return f"[PAD{index}]"


def metadata_of(
    tokenizer: Mapping[str, Any], config: Mapping[str, Any], rows: int
) -> dict[str, Any]:
    """The metadata for tokenizer.json and tokenizer_config.json, byte-level BPE only.

    Args:
        tokenizer, config: what the files hold.
        rows: of the embedding; a GGUF file lists as many tokens.

    Raises:
        UserError: a tokenizer that has no form in a GGUF file here, or of another model.
    """
    model, cut = tokenizer.get("model", {}), tokenizer.get("pre_tokenizer")
    pre = next((name for name, steps in CUTS.items() if _same(steps, cut)), None)
    if model.get("type") != "BPE" or pre is None:
        raise UserError(
            f"its tokenizer ({model.get('type')}, cut by {str(cut)[:80]}) has no form in a GGUF "
            f"file here; those of {', '.join(CUTS)} have"
        )
    ids = dict(model["vocab"])
    kinds = dict.fromkeys(ids, 1)
    for token in tokenizer.get("added_tokens", []):
        ids[token["content"]] = token["id"]
        kinds[token["content"]] = CONTROL if token["special"] else USER_DEFINED
    by_id = {index: token for token, index in ids.items()}
    if len(by_id) != len(ids) or not 0 <= min(by_id) <= max(by_id) < rows:
        raise UserError(
            f"its tokenizer has {len(ids)} tokens with {len(by_id)} ids up to {max(by_id)}, the "
            f"embedding {rows} rows: it is the tokenizer of another model"
        )
    tokens = [by_id.get(index, _filling(index)) for index in range(rows)]
    kinds |= {_filling(index): UNUSED for index in range(rows) if index not in by_id}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    entries: dict[str, Any] = {
        "model": "gpt2", "pre": pre, "tokens": tokens, "token_type": [kinds[t] for t in tokens],
        "merges": merges,
        "add_bos_token": bool(config.get("add_bos_token", False)),
    }  # fmt: skip
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token = config.get(f"{name}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token in ids:
            entries[f"{key}_token_id"] = ids[token]
    metadata = {f"tokenizer.ggml.{key}": value for key, value in entries.items()}
    if isinstance(config.get("chat_template"), str):
        metadata["tokenizer.chat_template"] = config["chat_template"]
    return metadata


def _same(steps: Any, cut: Any) -> bool:
    """Whether two cuts do the same: `trim_offsets` changes no token."""
    if isinstance(steps, Mapping) and isinstance(cut, Mapping):
        keys = (set(steps) | set(cut)) - {"trim_offsets"}
        return all(_same(steps[k], cut[k]) if k in steps and k in cut else False for k in keys)
    if isinstance(steps, list) and isinstance(cut, list):
        return len(steps) == len(cut) and all(map(_same, steps, cut))
    return steps == cut
