"""A decoder as a GGUF file that llama.cpp and transformers read.

Norms, biases and what has one axis stay float32, as llama.cpp has them; matrices become the type
asked for (rows that are no multiple of 32 stay float16 under q8_0). Leaves are read, turned and
written one at a time; the file appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.gguf import config as configs
from jaxmerge.io.gguf import heads_of
from jaxmerge.io.gguf.names import Kind, place_of, to_theirs
from jaxmerge.io.gguf.tensors import require
from jaxmerge.io.gguf.tokenizer import metadata_of
from jaxmerge.io.safetensors import Leaves
from jaxmerge.io.untrusted import member, read_json, read_text

DTYPES = ("f32", "f16", "bf16", "q8_0")
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # llama.cpp's numbers


def write(
    source: Leaves,
    config: Mapping[str, Any],
    folder: Path | None,
    out: Path,
    dtype: str = "f16",
    *,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> int:
    """Write a model under Hugging Face's names as a GGUF file.

    Args:
        source: its leaves.
        config: config.json.
        folder: with the tokenizer, or None.
        out: the file that shall appear.
        dtype: of matrices, one of `DTYPES`.
        force: replace a file that is there.

    Returns:
        How many tensors were written.

    Raises:
        UserError: the file exists, the family or the tokenizer has no form in a GGUF file, or a
            leaf has no place in it.

    Memory: one leaf in float32, or the experts of one layer.
    """
    require()
    import gguf

    if dtype not in DTYPES:
        raise UserError(f"--dtype of a GGUF file: found {dtype!r}, expected {', '.join(DTYPES)}.")
    if out.exists() and not force:
        raise UserError(f"{out} exists; choose another output, or --force replaces it.")
    name, kind, metadata = configs.metadata_of(config)
    names = [n for n in source if not n.endswith(".rotary_emb.inv_freq")]
    if config.get("tie_word_embeddings") and "lm_head.weight" in names:
        names.remove("lm_head.weight")
    groups: dict[str, list[str]] = {}
    for key in names:
        groups.setdefault(place_of(key, kind).name, []).append(key)
    if "token_embd.weight" not in groups:
        raise UserError("A GGUF file needs an embedding, model.embed_tokens.weight; found none.")
    rows = source.like[groups["token_embd.weight"][0]].shape[0]
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(partial, name)
    try:
        writer.add_file_type(FILE_TYPES[dtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in metadata.items():
            _add(writer, f"{name}.{key}", value)
        for key, value in _tokenizer(folder, out, rows).items():
            _add(writer, key, value)
        freqs = configs.scaling_tensor(config)
        kinds = {}
        for tensor, keys in groups.items():
            shape = _shape(source, keys, kind)
            kinds[tensor] = _kind(tensor, shape, dtype)
            _announce(writer, tensor, shape, kinds[tensor])
        if freqs is not None:
            _announce(writer, "rope_freqs.weight", freqs.shape, "F32")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(source.like[n].nbytes for n in names)
        for tensor, keys in groups.items():
            values = _values(source, keys, kind, config)
            quantised = gguf.quantize(values, gguf.GGMLQuantizationType[kinds[tensor]])
            writer.write_tensor_data(quantised)
            done += sum(source.like[n].nbytes for n in keys)
            progress("write", done, total)
        if freqs is not None:
            writer.write_tensor_data(freqs)
        writer.close()
        partial.replace(out)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return len(groups) + (freqs is not None)


def _tokenizer(folder: Path | None, out: Path, rows: int) -> dict[str, Any]:
    path = member(folder, "tokenizer.json")
    if path is None or folder is None:
        return {"tokenizer.ggml.model": "none"}
    config_file = member(folder, "tokenizer_config.json")
    config = read_json(config_file) if config_file is not None else {}
    template = member(folder, "chat_template.jinja")
    if template is not None:
        config["chat_template"] = read_text(template)
    try:
        return metadata_of(read_json(path), config, rows)
    except UserError as error:
        raise UserError(f"{out} cannot be written: {error}.") from None


def _add(writer, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif key.endswith(configs.FLOATS):
        writer.add_float32(key, float(value))
    else:
        writer.add_uint32(key, value)


def _shape(source: Leaves, keys: list[str], kind: Kind) -> tuple[int, ...]:
    place, shape = place_of(keys[0], kind), source.like[keys[0]].shape
    if place.kind == "expert":
        return (len(keys), *shape)
    return (int(np.prod(shape)),) if place.kind == "column" else shape


def _kind(tensor: str, shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) == 1 or tensor.endswith(("ffn_gate_inp.weight", ".bias")):
        return "F32"
    return "F16" if dtype == "q8_0" and shape[-1] % 32 else dtype.upper()


def _announce(writer, name: str, shape: tuple[int, ...], kind: str) -> None:
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    stored = gguf.quant_shape_to_byte_shape(shape, number) if kind in ("Q8_0", "BF16") else shape
    plain = {"F32": np.float32, "F16": np.float16}
    dtype = np.dtype(plain.get(kind, np.uint8))
    size = int(np.prod(stored, dtype=np.int64)) * dtype.itemsize
    writer.add_tensor_info(name, stored, dtype, size, raw_dtype=number)


def _values(source: Leaves, keys: list[str], kind: Kind, config: Mapping[str, Any]) -> np.ndarray:
    parts = []
    for key in sorted(keys, key=lambda key: place_of(key, kind).index):
        leaf = np.asarray(source[key]).astype(np.float32)
        parts.append(to_theirs(place_of(key, kind), leaf, heads_of(key, dict(config))))
    if place_of(keys[0], kind).kind == "expert":
        return np.stack(parts)
    return np.ascontiguousarray(parts[0])
