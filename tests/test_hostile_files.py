"""Nobody gets in: files that wait, lead elsewhere, unpack without end, change while being read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import yaml
from leaves import family, saved
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.cli import merge as command
from jaxmerge.core.patterns import PatternError, compile_pattern
from jaxmerge.drivers.files.api import merge_jobs
from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError
from jaxmerge.io import header, places, writer
from jaxmerge.io.install import keep_apart
from jaxmerge.io.pickle_machine import Machine, PickleRefused
from jaxmerge.io.sources import open_source
from jaxmerge.io.untrusted import printable, read_json

LEAVES = {"model.layers.0.mlp.up.weight": np.ones((4, 4), np.float32)}


def folder(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    save_file(LEAVES, path / "model.safetensors")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def recipe(tmp_path, **more):
    content = {"base": str(tmp_path / "base"), "models": [str(tmp_path / "a")], "method": "average"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content | more))
    return tmp_path / "r.yaml"


@pytest.fixture
def two(tmp_path):
    folder(tmp_path / "base", config={"a": 1})
    folder(tmp_path / "a")
    return tmp_path


# ------------------------------------------------------------ files that wait or lead elsewhere


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_is_refused_and_not_waited_for(two, name):
    (two / "base" / name).unlink(missing_ok=True)
    os.mkfifo(two / "base" / name)
    with pytest.raises(UserError, match=f"{name} is a pipe"):
        command.run(recipe(two, tokenizer="base"), two / "out", quiet=True)
    assert not (two / "out").exists()


@pytest.mark.parametrize("how, says", [(os.mkfifo, "is a pipe"), (os.mkdir, "is a folder")])
@pytest.mark.parametrize("name", ["r.yaml", "r.py", "t.csv", "e.py", "m.safetensors"])
def test_what_lies_in_place_of_a_file_is_said(tmp_path, name, how, says):
    from jaxmerge.cli.run import load as load_experiment
    from jaxmerge.data.tables import table
    from jaxmerge.recipes.native import load

    read = {"t.csv": table, "e.py": load_experiment, "m.safetensors": open_source}.get(name, load)
    how(tmp_path / name)
    if name == "m.safetensors" and how is os.mkdir:
        says = "holds no weights"  # a folder is a model
    with pytest.raises(UserError, match=f"{name} {says}"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_link_out_of_a_models_folder_is_not_followed(two, name):
    secret = two / "secret"
    secret.write_bytes((two / "a" / "model.safetensors").read_bytes())
    (two / "base" / name).unlink(missing_ok=True)
    (two / "base" / name).symlink_to(secret)
    with pytest.raises(UserError, match="out of its folder"):
        command.run(recipe(two), two / "out", quiet=True)
    assert not (two / "out").exists()


def test_links_within_a_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file(LEAVES, blobs / "1")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    assert list(open_source(snapshot)) == list(LEAVES)


@pytest.mark.parametrize("where", [".out.old", ".out.partial", "out"])
def test_inputs_in_the_way_of_an_output_are_kept(tmp_path, where):
    inside = folder(tmp_path / where / "m")
    folder(tmp_path / "base")
    folder(tmp_path / "a")
    content = {"base": str(tmp_path / "base"), "models": [str(inside)], "method": "average"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="input"):
        command.run(tmp_path / "r.yaml", tmp_path / "out", force=True, quiet=True)
    assert (inside / "model.safetensors").exists()


def test_a_linked_input_in_the_way_is_kept_too(tmp_path):
    (tmp_path / "out").mkdir()
    real = folder(tmp_path / "real")
    (tmp_path / "out" / "m").symlink_to(real)
    with pytest.raises(UserError, match="take the place"):
        keep_apart(tmp_path / "out", [tmp_path / "out" / "m" / "model.safetensors"])


# ------------------------------------------------------------ what lies where we write


def planted(tmp_path, name, how):
    """An interrupted merge in whose folder somebody left a link to a file of another's."""
    files = saved(tmp_path, family())
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".out.partial").mkdir()
    if how == "symbolic":
        (tmp_path / ".out.partial" / name).symlink_to(victim)
    else:
        os.link(victim, tmp_path / ".out.partial" / name)
    return Job(jm.mean(), files[1:], files[0]), victim


@pytest.mark.parametrize("how", ["symbolic", "hard"])
@pytest.mark.parametrize("name", ["model.safetensors", "journal.jsonl"])
def test_a_planted_link_does_not_lead_a_resume_elsewhere(tmp_path, name, how):
    job, victim = planted(tmp_path, name, how)
    with pytest.raises(UserError, match="link, or has a second name"):
        merge_jobs([job], tmp_path / "out", resume=True)
    assert victim.read_text() == "mine"
    merge_jobs([job], tmp_path / "out", force=True)  # nothing is left that blocks the next try
    assert victim.read_text() == "mine"
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_further_files_are_written_in_place_of_links(tmp_path):
    job, victim = planted(tmp_path, "config.json", "symbolic")
    merge_jobs([job], tmp_path / "out", resume=True, files=lambda report: {"config.json": b"{}"})
    assert victim.read_text() == "mine"
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_a_link_in_place_of_the_partial_folder(tmp_path):
    files = saved(tmp_path, family())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("mine")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "elsewhere")
    job = Job(jm.mean(), files[1:], files[0])
    with pytest.raises(UserError, match="not a folder"):
        merge_jobs([job], tmp_path / "out", resume=True)
    merge_jobs([job], tmp_path / "out", force=True)
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["kept"]


def test_files_of_sub_folders_stay_inside(tmp_path):
    place = places.Place(tmp_path / "p")
    place.write("a/b/c.json", b"1")
    assert (tmp_path / "p" / "a" / "b" / "c.json").read_bytes() == b"1"
    (tmp_path / "p" / "l").symlink_to(tmp_path)
    for name in ("../x", "l/x", "/x", "a/../../x"):
        with pytest.raises(ValueError, match=r"not the name|not a folder"):
            place.write(name, b"1")
    place.close()


def test_a_shard_that_somebody_deleted_is_written_again(tmp_path):
    tensors = {n: ("F32", (2,)) for n in "ab"}
    first = writer.Writer(tmp_path / "out", tensors, digest="x")
    first.write("a", np.ones(2, np.float32))
    first.finish_leaf("a")
    first.close()
    (first.folder / "model.safetensors").unlink()
    again = writer.Writer(tmp_path / "out", tensors, digest="x", resume=True)
    assert again.done == set()
    again.close()


# ------------------------------------------------------------ one at a time


def test_a_lock_names_its_owner_and_goes(tmp_path):
    lock = places.Lock(tmp_path / ".out.lock", "out")
    with pytest.raises(UserError, match=f"process {os.getpid()} on "):
        places.Lock(tmp_path / ".out.lock", "out")
    lock.release()
    assert not (tmp_path / ".out.lock").exists()


def test_a_lock_of_another_host_is_believed(tmp_path):
    path = tmp_path / ".out.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "boot": "x"}))
    with pytest.raises(UserError, match=r"Process 7 on elsewhere .* delete"):
        places.Lock(path, "out")
    path.write_text(json.dumps({"host": "a container", "pid": 7, "boot": places.boot()}))
    places.Lock(path, "out").release()  # the same kernel: it would hold the lock if it lived


def test_two_commands_do_not_work_in_one_run_folder(tmp_path):
    from jaxmerge.cli import run_folder

    lock = places.working(tmp_path / "run")
    with pytest.raises(UserError, match="Another process"), run_folder.alone(tmp_path / "run"):
        pass
    lock.release()
    with run_folder.alone(tmp_path / "run"):
        assert (tmp_path / ".run.lock").exists()
    assert not (tmp_path / ".run.lock").exists()


@pytest.mark.parametrize("how", ["link", "pipe"])
def test_a_planted_lock_is_refused(tmp_path, how):
    path, victim = tmp_path / ".out.lock", tmp_path / "victim"
    victim.write_text("mine")
    path.symlink_to(victim) if how == "link" else os.mkfifo(path)
    with pytest.raises(UserError, match="no regular file"):
        places.Lock(path, "out")
    assert victim.read_text() == "mine"


# ------------------------------------------------------------ inputs that change


@pytest.mark.parametrize("how", ["in place", "rename", "vanish"])
def test_an_input_that_changes_during_the_merge_is_refused(tmp_path, how):
    files = saved(tmp_path, family())
    before = np.array(files[1]["embed"])

    def change(phase, done, total):
        path = files[1].path
        if how == "in place":
            with open(path, "r+b") as file:
                file.seek(-4, 2)
                file.write(b"\0\0\0\0")
        elif how == "rename":
            save_file({n: np.asarray(x + 1) for n, x in load_file(path).items()}, tmp_path / "new")
            os.replace(tmp_path / "new", path)
        else:
            path.unlink(missing_ok=True)

    with pytest.raises(UserError, match=r"changed while they were merged: .*m1.safetensors"):
        merge_jobs([Job(jm.mean(), files[1:], files[0])], tmp_path / "out", progress=change)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
    assert before.shape == (60, 20)


# ------------------------------------------------------------ pickles


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


# ------------------------------------------------------------ words


def test_json_of_another_kind_is_one_line(tmp_path):
    for text, says in (("[1]", "holds a list; expected an object"), ("{", "not JSON"),
                       ("[" * 100_000, "not JSON|nested"), ("\udce9", "UTF-8")):  # fmt: skip
        (tmp_path / "x.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=says) as caught:
            read_json(tmp_path / "x.json")
        assert str(caught.value).startswith(str(tmp_path / "x.json"))
        assert len(str(caught.value)) < 400


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    assert printable("a\x1b[2Jb\x07") == "a\\x1b[2Jb\\x07"
    save_file({"a\x1b[2Jb": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="control characters"):
        open_source(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_control_characters_of_results_are_refused(tmp_path, suffix, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    import fuzz_data

    from jaxmerge.studies import cells, result_store

    results = fuzz_data.results()
    results.seeds[0].entries[0].label = "a\x1b[2Jb"
    if suffix == "json":
        results.to_json(tmp_path / "r.json")
    else:
        pytest.importorskip("pyarrow")
        result_store.write(tmp_path, cells.cells(results), "r")
    with pytest.raises(UserError, match=r"control characters: 'a\\x1b\[2Jb'"):
        result_store.read(tmp_path / f"r.{suffix}")


def test_names_are_no_markup_of_the_terminal(tmp_path, capsys):
    from jaxmerge.cli.inspect import run as inspect

    name = "model.layers.0.mlp.[red]up[/blue].weight"
    save_file({name: np.ones((2, 2), np.float32)}, tmp_path / "m.safetensors")
    inspect(str(tmp_path / "m.safetensors"))
    assert name in capsys.readouterr().out


def test_headings_and_cards_are_quoted():
    from jaxmerge.recipes.card import _code, longest_run
    from jaxmerge.report.tables import plain_line, plain_markdown

    assert plain_line("a\n\\input{x}\x1b") == "a \\input{x}\\x1b"
    assert plain_markdown("# <b>[x](y)") == r"\# \<b\>\[x\](y)"
    assert _code("a``b") == "``` a``b ```"
    assert longest_run("x````y", "`") == 4


def test_messages_do_not_repeat_what_fills_a_screen(two):
    for more in ({"method": "a" * 5000}, {"models": ["b" * 5000]}, {"dtype": "c d " * 3000}):
        with pytest.raises(UserError) as caught:
            command.run(recipe(two, **more), None, check=True)
        assert len(str(caught.value)) < 3600
        assert "characters)" in str(caught.value)


@pytest.mark.parametrize("models", [None, "a", 3, {"a": 1}, [["a"]], [None]])
def test_models_of_another_kind_are_one_line(two, models):
    with pytest.raises(UserError, match=r"r.yaml: models must be a list"):
        command.run(recipe(two, models=models), None, check=True)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"rules": {"only": [None]}, "method": "average"}, "regular expression must be text"),
        ({"rules": [{"match": 3, "method": "average"}]}, "regular expression must be text"),
        ({"merge_method": "slerp", "slices": 7}, "slices must be a list"),
        ({"merge_method": "linear", "slices": "x"}, "slices must be a list"),
        ({"rules": {"only": "mlp"}, "method": {"scale": {"factor": 10**400}}}, "must be a number"),
    ],
)
def test_parts_of_another_kind_are_one_line(two, wrong, says):
    both = {"base": "base", "models": ["a"]} if "rules" in wrong else {"base_model": "base"}
    (two / "r.yaml").write_text(yaml.safe_dump(both | wrong))
    with pytest.raises(UserError, match=f"r.yaml: .*{says}"):
        command.run(two / "r.yaml", None, check=True)


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


# ------------------------------------------------------------ what takes long to refuse


@pytest.mark.parametrize(
    "text, says",
    [
        ("[" + "1," * 500_000 + "1]", "more than 200,000 values"),
        ("".join(f"k{i}: 1\n" for i in range(90_000)), "and 89,992 more"),
        ("#" * (1 << 20) + "\n", "a recipe has at most 1,048,576"),
    ],
)
def test_a_recipe_of_a_megabyte_is_refused_at_once(tmp_path, text, says, monkeypatch):
    from jaxmerge import errors
    from jaxmerge.recipes.native import load

    looked_up = []
    nearest = errors.difflib.get_close_matches
    count = lambda *a, **k: looked_up.append(a) or nearest(*a, **k)
    monkeypatch.setattr(errors.difflib, "get_close_matches", count)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        load(tmp_path / "r.yaml")
    assert len(looked_up) < 10  # a hint for every one of 90,000 keys took ten seconds


def test_a_journal_is_bounded(tmp_path):
    place = places.Place(tmp_path / ".out.partial")
    with open(tmp_path / ".out.partial" / "journal.jsonl", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"journal\.jsonl has 1,099,511,627,776 bytes"):
        place.read("journal.jsonl")
    place.close()


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("t.jsonl", "[" * 100_000, "line 1 is nested too deeply"),
        ("t.jsonl", "[1]", "line 1 holds a list"),
        ("t.csv", "text,label\n" + '"' + "a\n" * 10, "lack|no rows"),
    ],
)
def test_tables_that_are_none(tmp_path, name, text, says):
    from jaxmerge.data.tables import table

    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}.*({says})"):
        table(tmp_path / name)


def test_tables_of_long_texts_and_lines_of_unicode(tmp_path):
    from jaxmerge.data.tables import table

    texts = ["x " * 100_000, *(f"a\u2028b {i}" for i in range(19))]
    rows = [json.dumps({"text": t, "label": str(i % 2)}, ensure_ascii=False)
            for i, t in enumerate(texts)]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "t.csv").write_text(
        "\n".join(["text,label", *(f'"{t}",{i % 2}' for i, t in enumerate(texts))]),
        encoding="utf-8",
    )
    for name in ("t.jsonl", "t.csv"):
        assert len(table(tmp_path / name).labels) == 20
