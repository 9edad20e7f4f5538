"""Nobody gets in: contents that claim more than they hold, unpack or match without end."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hostile import LEAVES, recipe, two_models
from safetensors.numpy import save_file

import jaxmerge as jm
from jaxmerge.cli import merge as command
from jaxmerge.core.patterns import PatternError, compile_pattern
from jaxmerge.errors import UserError
from jaxmerge.io import header
from jaxmerge.io.pickle_machine import Machine, PickleRefused
from jaxmerge.io.sources import open_source


@pytest.fixture
def two(tmp_path):
    return two_models(tmp_path)


def archive(path, program, data=b"\0\0\0\0"):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/data/0", data)
    return path


HOSTILE = {
    "BUILD on a dtype": b"\x80\x02ctorch\nBFloat16Storage\n(K\x03X\x01\0\0\0<NNNK\x10K\x01K\x00tb.",
    "BUILD on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\0\0\0ab.",
    "a class": b"cos\nsystem\n(S'ls'\ntR.",
    "a stack of marks": b"(" * 1000 + b".",
    "an empty stack": b"tR.",
    "a number of four gigabytes": b"\x8b\xff\xff\xff\x7f.",
    "an instance": b"ios\nsystem\n.",
    "a persistent name": b"Pxxx\n.",
    "an extension": b"\x82\x01.",
    "a set": b"\x8f.",
    "no end": b"}",
    "itself": b"}q\x00X\x05\0\0\0modelh\x00s.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_programs_that_no_state_dict_needs(tmp_path, name):
    before = np.dtype(ml_dtypes.bfloat16).itemsize
    with pytest.raises(PickleRefused, match=r"x.bin"):
        open_source(archive(tmp_path / "x.bin", HOSTILE[name]), allow_pickle=True)
    assert np.dtype(ml_dtypes.bfloat16).itemsize == before == 2


def test_a_memo_index_takes_no_memory():
    assert Machine(b"}r\xff\xff\xff\x0f.").run() == {}


def test_a_mapping_that_contains_itself_many_times(tmp_path):
    """Sixteen levels of a mapping with sixteen times the next would be 2^64 values."""
    text = lambda s: b"X" + len(s).to_bytes(4, "little") + s.encode()
    program, inner = b"\x80\x02}q\x00", 0
    for level in range(1, 17):
        entries = b"".join(text(str(i)) + b"h" + bytes([inner]) for i in range(16))
        program, inner = program + b"}q" + bytes([level]) + b"(" + entries + b"u", level
    with pytest.raises(PickleRefused, match="values"):
        open_source(archive(tmp_path / "x.bin", program + b"."), allow_pickle=True)


def test_an_entry_that_claims_more_than_the_file_has(tmp_path):
    path = archive(tmp_path / "x.bin", b"}.", b"\0" * 8)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")  # the central directory's record of a/data/0
    data[at + 20 : at + 28] = (1 << 31).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(PickleRefused, match="beyond the end"):
        open_source(path, allow_pickle=True)


# ------------------------------------------------------------ bombs


@pytest.mark.parametrize("wrong", [60_000_000, -1, True, 1.5, "7"])
def test_token_numbers_are_bounded(two, wrong):
    for m, number in (("base", wrong), ("a", 1)):
        table = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": number, "content": "b"}]}
        (two / m / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"tokenizer.json: 'b' has the number"):
        command.run(recipe(two, tokenizer="base"), None, check=True)


@pytest.mark.parametrize("pad", [1 << 40, -8, "8", 2.0])
def test_padding_is_bounded(two, pad):
    for m in ("base", "a"):
        (two / m / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    setting = {"source": "base", "pad_to_multiple_of": pad}
    with pytest.raises(UserError, match="pad_to_multiple_of"):
        command.run(recipe(two, tokenizer=setting), None, check=True)


def npz_member(dtype, shape, size):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False,
               "shape": shape},
    )  # fmt: skip
    return head.getvalue() + b"\0" * size


def test_an_npz_whose_header_claims_more_than_it_holds(tmp_path):
    from jaxmerge.data.npz import npz

    for split in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"d_{split}.npz", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("images.npy", npz_member("u1", (1 << 40, 4, 4), 64))
    with pytest.raises(UserError, match=r"d_train.npz: images.npy: .* needs .* bytes, it holds 64"):
        npz(tmp_path, "d")


def test_an_npz_that_unpacks_without_bound(tmp_path, monkeypatch):
    from jaxmerge.data.npz import npz
    from jaxmerge.io import npz as archives

    monkeypatch.setattr(archives, "MOST_UNPACKED", 1 << 20)
    for split in ("train", "test"):
        np.savez_compressed(tmp_path / f"d_{split}.npz", images=np.zeros((2048, 64, 64), np.uint8))
    with pytest.raises(UserError, match="unpack to 8,388"):
        npz(tmp_path, "d")


def test_a_msgpack_file_of_mappings_without_end(tmp_path):
    count = 4_000_000
    (tmp_path / "m.msgpack").write_bytes(b"\xdd" + count.to_bytes(4, "big") + b"\x80" * count)
    with pytest.raises(UserError, match=r"m\.msgpack unpacks to more than 79,108,879 bytes"):
        open_source(tmp_path / "m.msgpack")


@pytest.mark.parametrize("name", ["m.npz", "m.msgpack"])
def test_leaves_that_no_model_has(tmp_path, name):
    from flax.serialization import to_bytes

    odd = np.zeros(3, "S5")
    if name == "m.npz":
        np.savez(tmp_path / name, a=odd)
    else:
        (tmp_path / name).write_bytes(to_bytes({"a": odd}))
    with pytest.raises(UserError, match=rf"{name}.*(no leaf of a model|no msgpack file)"):
        open_source(tmp_path / name)


def test_a_picture_of_too_many_pixels(tmp_path):
    from PIL import Image

    from jaxmerge.data.folders import folder as images

    (tmp_path / "d" / "a").mkdir(parents=True)
    for name in ("0", "1"):
        Image.new("1", (9000, 9000)).save(tmp_path / "d" / "a" / f"{name}.png")
    source = images(tmp_path / "d", val=0.0)
    with pytest.raises(UserError, match=r"9000 x 9000 pixels, more than 64,000,000"):
        source.inputs[[0]]


def test_a_parquet_file_of_a_million_rows_in_a_few_bytes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    from jaxmerge.studies import result_store

    schema = result_store._schema()
    column = lambda kind: pa.nulls(2_000_000, kind)
    table = pa.table([column(f.type) for f in schema], schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(UserError, match=r"2,000,000 rows"):
        result_store.read(tmp_path / "r.parquet")


BOMBS = [r"([a-z.0-9_]+)+Z$", r"(a|a)*b", r"^(\w+\s?)*$", r"(.*a){20}"]


@pytest.mark.parametrize("pattern", [r"((a{1,1000}){1,1000}){1,1000}b"])
def test_patterns_that_would_never_end(pattern, monkeypatch):
    from jaxmerge.core import patterns

    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    compile_pattern.cache_clear()
    search = compile_pattern(pattern).search
    with pytest.raises(PatternError, match=r"takes more than"):
        list(map(search, ["a" * 60 + str(i) for i in range(100)]))
    compile_pattern.cache_clear()


@pytest.mark.parametrize("where", ["recipe", "adapter"])
def test_bombs_in_recipes_and_adapters_end(two, where):
    name = next(iter(LEAVES)).removesuffix(".weight")
    created = two / "l"
    created.mkdir()
    config = {"peft_type": "LORA", "lora_alpha": 2, "r": 2, "alpha_pattern": {BOMBS[0]: 4}}
    (created / "adapter_config.json").write_text(json.dumps(config))
    parts = {f"base_model.model.{name}.lora_A.weight": np.ones((2, 4), np.float32),
             f"base_model.model.{name}.lora_B.weight": np.ones((4, 2), np.float32)}  # fmt: skip
    save_file(parts, created / "adapter_model.safetensors")
    if where == "adapter":
        assert len(open_source(f"{two}/base+{created}")) == 1
    else:
        for pattern in BOMBS:
            with pytest.raises(UserError, match=r"r.yaml: rules"):
                command.run(recipe(two, rules={"only": pattern + "Q"}), None, check=True)


@pytest.mark.parametrize("samples", ["NaN", "", "-1", "9" * 40, None])
def test_a_statistics_header_is_checked(tmp_path, samples):
    from safetensors import safe_open

    from jaxmerge.statistics import store

    store.save(store.Statistic("fisher", LEAVES, 4, "0", {}), tmp_path / "f.safetensors")
    with safe_open(tmp_path / "f.safetensors", "np") as opened:
        about = opened.metadata()
    about.pop("samples")
    save_file(LEAVES, tmp_path / "f.safetensors", about | ({"samples": samples} if samples else {}))
    with pytest.raises(UserError, match="header of this statistic is damaged") as caught:
        store.load(tmp_path / "f.safetensors")
    assert "invalid literal" not in str(caught.value)


def test_a_leaf_of_orbax_larger_than_memory(tmp_path):
    import orbax.checkpoint as ocp

    folder = tmp_path / "bomb"
    writer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))
    writer.save(folder, {"w": np.ones((8, 8), np.float32)})
    header = folder / "w" / ".zarray"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"shape": [1 << 21, 1 << 21]}))
    with (
        contextlib.closing(open_source(folder)) as source,
        pytest.raises(ValueError, match=r"bomb: leaf 'w' is float32\[2097152,2097152\], 1.76e"),
    ):
        source.read("w")


def test_what_orbax_stumbles_over_is_not_repeated(tmp_path):
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer().save(tmp_path / "m", {"w": np.ones(4, np.float32)})
    place = next((tmp_path / "m").rglob("_METADATA"))
    for wrong in ("3", '"x"', "[]", '{"tree_metadata": 3}', '{"tree_metadata": {"w": null}}'):
        place.write_text(wrong)
        with pytest.raises(UserError) as caught:
            open_source(tmp_path / "m")
        assert "object" not in str(caught.value)


def test_no_array_has_such_a_shape(tmp_path):
    head, _ = header.build({"w": ("F32", (0, 2**62, 2**62))})
    (tmp_path / "m.safetensors").write_bytes(head)
    with pytest.raises(
        ValueError, match=r"m\.safetensors: tensor 'w' has a shape that no array has"
    ):
        open_source(tmp_path / "m.safetensors")


def test_imaginary_parts_are_looked_at(tmp_path):
    from jaxmerge.cli import diff, inspect

    for name, value in (("a", 3 + 4j), ("b", 3 - 4j)):
        save_file({"w": np.full(4, value, np.complex64)}, tmp_path / f"{name}.safetensors")
    a, b = (open_source(tmp_path / f"{n}.safetensors") for n in "ab")
    assert inspect.values_of(b, "w") == {"norm": 10, "min": -4, "max": 3, "nonfinite": 0}
    (only,) = diff.compare(a, b)["changed"]
    assert (only["largest"], only["relative"], only["entries"]) == (8, 1.6, 4)
    assert jm.diagnose(a, [b, b]).leaves["w"].size == 8


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_complex_entries_rank_by_their_magnitude(scope):
    base = {"w": np.zeros(4, np.complex64)}
    model = {"w": np.complex64([1, 5j, -2, 3 - 3j])}
    method = jm.chain(jm.trim(0.5, scope=scope, inclusive=False), jm.add())
    np.testing.assert_array_equal(jm.merge(method, base, [model])["w"], [0, 5j, 0, 3 - 3j])
