"""Safetensors files: read as others write them, refused where they are broken or hostile."""

from __future__ import annotations

import itertools
import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxmerge.io import header
from jaxmerge.io.header import HeaderError
from jaxmerge.io.safetensors import File, pack
from jaxmerge.io.writer import Writer

RNG = np.random.default_rng(0)


def write(path, table, data=b""):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2,), span=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def test_reads_what_others_write(tmp_path):
    kinds = [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_, np.float64]
    model = {f"m.{np.dtype(k).name}": RNG.normal(size=(5, 3)).astype(k) for k in kinds}
    model |= {"empty": np.zeros((0, 3), np.float32), "scalar": np.asarray(np.float32(2.5))}
    save_file(model, tmp_path / "m.safetensors", metadata={"format": "pt"})
    file = File(tmp_path / "m.safetensors")
    assert file.metadata == {"format": "pt"}
    assert set(file) == set(model)
    for n, x in model.items():
        assert file[n].dtype == x.dtype
        assert file[n].shape == x.shape
        assert file[n].tobytes() == x.tobytes()
    np.testing.assert_array_equal(
        file.read("m.float32", 4, 11), model["m.float32"].reshape(-1)[4:11]
    )


@pytest.mark.parametrize("code", sorted(header.DTYPES))
def test_every_dtype_comes_back(tmp_path, code):
    dtype, bits = header.DTYPES[code]
    count = 2 if code == "BOOL" else 2 ** min(bits, 8)
    values = np.arange(count, dtype=np.uint8)
    if bits == 4:
        x = values[:15].view(dtype) if code == "F4" else values[:7].astype(dtype)
    else:
        x = np.frombuffer(np.repeat(values, dtype.itemsize).tobytes(), dtype)
    writer = Writer(tmp_path / "out", {"x": (code, x.shape)}, digest="")
    writer.write("x", x)
    writer.finish_leaf("x")
    writer.commit({})
    file = File(tmp_path / "out" / "model.safetensors")
    assert file["x"].dtype == dtype
    assert file["x"].tobytes() == x.tobytes()
    assert pack(file["x"]).tobytes() == pack(x).tobytes()


def test_others_read_what_we_write(tmp_path):
    model = {"a": RNG.normal(size=(4, 3)).astype(np.float32), "é/ü": np.arange(3), "z": np.ones(0)}
    tensors = {n: (header.CODES[x.dtype], x.shape) for n, x in model.items()}
    writer = Writer(tmp_path / "out", tensors, digest="", metadata={"format": "pt"})
    for n, x in model.items():
        writer.write(n, x)
        writer.finish_leaf(n)
    writer.commit({})
    read = load_file(tmp_path / "out" / "model.safetensors")
    for n, x in model.items():
        np.testing.assert_array_equal(read[n], x)


BROKEN = {
    "overlap": ({"a": entry(), "b": entry(span=(4, 12))}, 12, "overlaps"),
    "hole": ({"a": entry(), "b": entry(span=(12, 20))}, 20, "hole"),
    "hole at the start": ({"a": entry(span=(4, 12))}, 12, "hole"),
    "outside": ({"a": entry(span=(0, 800), shape=(200,))}, 8, "outside"),
    "negative": ({"a": entry(span=(-8, 0))}, 8, "outside"),
    "backwards": ({"a": entry(span=(8, 0))}, 8, "outside"),
    "bytes left over": ({"a": entry()}, 9, "cover"),
    "wrong size": ({"a": entry(shape=(3,))}, 8, "needs 12"),
    "unknown dtype": ({"a": entry("F23")}, 8, "unknown dtype"),
    "lower case dtype": ({"a": entry("f32")}, 8, "unknown dtype"),
    "dtype is no string": ({"a": entry(7)}, 8, "unknown dtype"),
    "negative shape": ({"a": entry(shape=(-2,))}, 8, "no valid shape"),
    "huge shape": ({"a": entry(shape=(2**62, 2**62))}, 8, "needs"),
    "fractional shape": ({"a": entry(shape=(2.0,))}, 8, "no valid shape"),
    "boolean shape": ({"a": entry(shape=(True, 2))}, 8, "no valid shape"),
    "too many axes": ({"a": entry(shape=(1,) * 40, span=(0, 4))}, 4, "axes"),
    "three offsets": ({"a": entry(span=(0, 4, 8))}, 8, "data_offsets"),
    "a key too many": ({"a": {**entry(), "x": 1}}, 8, "no more"),
    "a key too few": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "must have"),
    "not a mapping": ({"a": [1]}, 8, "must have"),
    "metadata": ({"__metadata__": {"x": 1}}, 0, "strings"),
    "duplicate": (b'{"a":' + json.dumps(entry()).encode() + b',"a":{}}', 8, "twice"),
    "no object": (b"[1]", 0, "not a JSON object"),
    "no JSON": (b"{nonsense", 0, "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "not UTF-8 text"),
    "deep": (b'{"a":' + b"[" * 100_000, 0, "not JSON"),
    "long number": (b'{"a":' + b"9" * 100_000 + b"}", 0, "not JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_refused(tmp_path, name):
    table, data, says = BROKEN[name]
    path = write(tmp_path / "x.safetensors", table, bytes(data))
    with pytest.raises(HeaderError, match=says) as error:
        File(path)
    assert len(str(error.value)) < 500 + len(str(path))


@pytest.mark.parametrize("size", [0, 1, 7, 8])
def test_short_files_are_refused(tmp_path, size):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 40)[:size])
    with pytest.raises(HeaderError):
        File(path)


@pytest.mark.parametrize("length", [10**8, 2**63, 2**64 - 1])
def test_headers_longer_than_the_file_are_refused(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(HeaderError, match="truncated"):
        File(path)


def test_a_header_of_100_megabytes_is_refused_without_being_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100_000_000))
        file.truncate(8 + 100_000_000)
    tracemalloc.start()
    with pytest.raises(HeaderError, match="refused"):
        File(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_file_cut_while_it_is_read(tmp_path):
    save_file({"w": np.ones(1000, np.float32)}, tmp_path / "x.safetensors")
    file = File(tmp_path / "x.safetensors")
    with open(tmp_path / "x.safetensors", "r+b") as handle:
        handle.truncate(2000)
    with pytest.raises(OSError, match="was cut"):
        file["w"]


def test_bytes_that_are_no_bool(tmp_path):
    path = write(tmp_path / "x.safetensors", {"a": entry("BOOL", (2,), (0, 2))}, b"\x01\x07")
    with pytest.raises(HeaderError, match="beside 0 and 1"):
        File(path)["a"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*header.DTYPES, "F23", ""]) | json_values,
        "shape": st.lists(st.integers(-1, 2**40), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-1, 80), min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=300, deadline=2000)
@given(
    st.dictionaries(st.text(max_size=6), entries | json_values, max_size=4).map(json.dumps)
    | st.binary(max_size=60).map(lambda b: b.decode("latin1")),
    st.integers(0, 64),
)
def test_any_header_is_read_or_refused(text, data):
    try:
        read_entries, _ = header.parse(text.encode("latin1", "replace"), data)
    except HeaderError:
        return
    spans = sorted((e.start, e.stop) for e in read_entries.values())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert (spans[-1][1] if spans else 0) == data


@settings(max_examples=200, deadline=2000)
@given(st.data())
def test_a_sound_file_with_bytes_changed_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.arange(4)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        file = File(path)
        for n in file:
            assert file[n].nbytes == file.like[n].nbytes
    except HeaderError:
        pass
