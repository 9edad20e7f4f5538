"""Model references: every form opens, everything unsound is refused in one message."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmerge.cli import convert, merge
from jaxmerge.errors import UserError
from jaxmerge.io.pickle_machine import PickleRefused
from jaxmerge.io.pickles import Pickle
from jaxmerge.io.sources import open_source

RNG = np.random.default_rng(1)
MODEL = {
    "model.embed_tokens.weight": RNG.normal(size=(12, 4)).astype(np.float32),
    "model.layers.0.q.weight": RNG.normal(size=(6, 4)).astype(np.float32),
    "model.layers.1.q.weight": RNG.normal(size=(6, 4)).astype(np.float32),
}


def sharded(folder, index=None, shards=2):
    folder.mkdir(parents=True, exist_ok=True)
    where = {}
    for i in range(shards):
        part = {n: x for j, (n, x) in enumerate(MODEL.items()) if j % shards == i}
        save_file(part, folder / f"s{i}.safetensors")
        where |= dict.fromkeys(part, f"s{i}.safetensors")
    table = {"weight_map": where} if index is None else index(where)
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return folder


def same(source):
    assert set(source) == set(MODEL)
    for n, x in MODEL.items():
        np.testing.assert_array_equal(source[n], x)


def test_a_file_a_folder_shards_and_a_run_folder(tmp_path):
    save_file(MODEL, tmp_path / "x.safetensors")
    same(open_source(tmp_path / "x.safetensors"))
    for name in ("model.safetensors", "merged.safetensors", "other.safetensors"):
        (tmp_path / name).mkdir()
        save_file(MODEL, tmp_path / name / name)
        same(open_source(tmp_path / name))
    same(open_source(sharded(tmp_path / "shards")))


def test_relative_to_the_working_directory_then_near(tmp_path, monkeypatch):
    save_file(MODEL, tmp_path / "x.safetensors")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    same(open_source("x.safetensors", near=[tmp_path]))
    with pytest.raises(UserError, match="no such path"):
        open_source("x.safetensors")


def test_an_orbax_checkpoint(tmp_path):
    import orbax.checkpoint as ocp

    tree = {"a": {"kernel": np.ones((3, 2), ml_dtypes.bfloat16)}, "b": [np.arange(3.0)]}
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "ck", tree)
    source = open_source(tmp_path / "ck")
    assert {n: like.shape for n, like in source.like.items()} == {"a/kernel": (3, 2), "b/0": (3,)}
    assert source["a/kernel"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(source["b/0"], np.arange(3.0))


def test_a_merge_of_orbax_checkpoints_goes_back_into_their_form(tmp_path):
    """Lists and mappings alike, which flat names do not tell apart."""
    import orbax.checkpoint as ocp

    tree = lambda k: {
        "layers": [{"kernel": np.full((2, 3), k + i, np.float32)} for i in range(2)],
        "by_number": {"0": np.full(2, k, np.float32), "1": np.full(1, k, np.float32)},
    }
    with ocp.StandardCheckpointer() as writer:
        for name, k in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
            writer.save(tmp_path / name, tree(k))
        writer.save(tmp_path / "other", {"x": np.ones(2)})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: base\nmodels: [a, b]\nmethod: average\n")
    merge.run(recipe, tmp_path / "merged", quiet=True)
    back = partial(convert.run, str(tmp_path / "merged"), to="orbax", quiet=True)
    back(tmp_path / "again", like=tmp_path / "a")
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore(tmp_path / "again")
    assert jax.tree.structure(found) == jax.tree.structure(tree(2.0))
    jax.tree.map(np.testing.assert_array_equal, found, tree(2.0))
    with pytest.raises(
        UserError, match=r"--like .*other: .*same leaves.*by_number/0; by_number/1; .*; x\.$"
    ):
        back(tmp_path / "third", like=tmp_path / "other")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "", ".", "..", "a/b.safetensors", "x\0y"]
)
def test_an_index_names_files_outside(tmp_path, name):
    save_file(MODEL, tmp_path / "x.safetensors")
    folder = sharded(tmp_path / "m", lambda where: {"weight_map": where | {"evil": name}})
    with pytest.raises(UserError, match=r"out(side)? of its folder"):
        open_source(folder)


def test_a_link_out_of_the_folder(tmp_path):
    save_file({"evil": np.ones(2)}, tmp_path / "secret.safetensors")
    index = lambda where: {"weight_map": where | {"evil": "link.safetensors"}}
    folder = sharded(tmp_path / "m", index)
    os.symlink(tmp_path / "secret.safetensors", folder / "link.safetensors")
    with pytest.raises(UserError, match=r"out(side)? of its folder"):
        open_source(folder)


def test_links_inside_the_hub_cache_are_followed(tmp_path):
    folder = sharded(tmp_path / "models--a--b" / "snapshots" / "rev")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for i in range(2):
        os.rename(folder / f"s{i}.safetensors", blobs / f"hash{i}")
        os.symlink(f"../../blobs/hash{i}", folder / f"s{i}.safetensors")
    same(open_source(folder))


INDICES = {
    "missing shard": (lambda w: {"weight_map": w | {"x": "s9.safetensors"}}, "missing"),
    "leaf not in its shard": (lambda w: {"weight_map": w | {"x": "s0.safetensors"}}, "disagree"),
    "leaf in another shard": (
        lambda w: {"weight_map": dict.fromkeys(w, "s0.safetensors")}, "disagree",
    ),
    "leaf left out": (lambda w: {"weight_map": dict(list(w.items())[1:])}, "disagree|not in"),
    "no map": (lambda w: {}, "no index"),
    "map of lists": (lambda w: {"weight_map": {"a": [1]}}, "names to file names"),
    "not a mapping": (lambda w: [1], "expected an object"),
}  # fmt: skip


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_disagrees(tmp_path, name):
    index, says = INDICES[name]
    with pytest.raises(UserError, match=says):
        open_source(sharded(tmp_path / "m", index))


def test_what_is_no_model(tmp_path):
    with pytest.raises(UserError, match="no weights"):
        open_source(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter"):
        open_source(tmp_path)
    for name in ("a", "b"):
        save_file(MODEL, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="name the"):
        open_source(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UserError, match="expected a folder"):
        open_source(tmp_path / "x.txt")


def test_the_hub_without_a_connection(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="could not be downloaded from the hub") as error:
        open_source("org/name@main")
    assert "\n" not in str(error.value)


def test_the_hub_with_a_connection(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    save_file(MODEL, tmp_path / "model.safetensors")
    asked = {}
    monkeypatch.setattr(
        hub, "snapshot_download", lambda name, **kw: asked.update(kw, name=name) or str(tmp_path)
    )
    same(open_source("org/name@v1"))
    assert (asked["name"], asked["revision"]) == ("org/name", "v1")
    assert not any("bin" in p or "pt" in p for p in asked["allow_patterns"])


# ---------------------------------------------------------------- adapters


def adapter(folder, tensors, **config):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def lora(module, out, into, r=2):
    key = f"base_model.model.{module}"
    a, b = RNG.normal(size=(r, into)), RNG.normal(size=(out, r))
    return {
        f"{key}.lora_A.weight": a.astype(np.float32), f"{key}.lora_B.weight": b.astype(np.float32),
    }, b @ a  # fmt: skip


@pytest.mark.parametrize(
    ("config", "factor"),
    [({}, 4), ({"use_rslora": True}, 8 / 2**0.5), ({"alpha_pattern": {"0.q": 2}}, 1)],
)
def test_an_adapter(tmp_path, config, factor):
    save_file(MODEL, tmp_path / "base.safetensors")
    tensors, product = lora("model.layers.0.q", 6, 4)
    adapter(tmp_path / "ad", tensors, **config)
    source = open_source(f"{tmp_path / 'base.safetensors'}+{tmp_path / 'ad'}")
    want = MODEL["model.layers.0.q.weight"] + factor * product
    np.testing.assert_allclose(source["model.layers.0.q.weight"], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        source["model.layers.1.q.weight"], MODEL["model.layers.1.q.weight"]
    )
    np.testing.assert_allclose(
        source.read("model.layers.0.q.weight", 5, 9), want.reshape(-1)[5:9], rtol=1e-5, atol=1e-5
    )


def test_an_adapter_with_everything(tmp_path):
    save_file(MODEL, tmp_path / "base.safetensors")
    name = "base_model.model.model.embed_tokens"
    a, b = RNG.normal(size=(2, 12)), RNG.normal(size=(4, 2))
    tensors, product = lora("model.layers.0.q", 6, 4)
    magnitude = RNG.uniform(1, 2, size=6)
    tensors |= {
        f"{name}.lora_embedding_A": a.astype(np.float32),
        f"{name}.lora_embedding_B": b.astype(np.float32),
        "base_model.model.model.layers.0.q.lora_magnitude_vector": magnitude.astype(np.float32),
        "base_model.model.model.layers.1.q.weight": np.ones((6, 4), np.float32),
    }
    adapter(tmp_path / "ad", tensors)
    source = open_source(f"{tmp_path / 'base.safetensors'}+{tmp_path / 'ad'}")
    embed = "model.embed_tokens.weight"
    np.testing.assert_allclose(source[embed], MODEL[embed] + 4 * (b @ a).T, rtol=1e-5, atol=1e-4)
    q = MODEL["model.layers.0.q.weight"] + 4 * product
    q *= (magnitude / np.linalg.norm(q, axis=1))[:, None]
    np.testing.assert_allclose(source["model.layers.0.q.weight"], q, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(source["model.layers.1.q.weight"], np.ones((6, 4)))


def test_an_adapter_of_another_model(tmp_path):
    save_file(MODEL, tmp_path / "base.safetensors")
    adapter(tmp_path / "ad", lora("model.layers.7.q", 6, 4)[0])
    with pytest.raises(ValueError, match="does not fit its base"):
        open_source(f"{tmp_path / 'base.safetensors'}+{tmp_path / 'ad'}")
    adapter(tmp_path / "ia", lora("model.layers.0.q", 6, 4)[0], peft_type="IA3")
    with pytest.raises(ValueError, match="IA3"):
        open_source(f"{tmp_path / 'base.safetensors'}+{tmp_path / 'ia'}")


# ---------------------------------------------------------------- pickles


def torch_archive(path, program: bytes, storages, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def program_of(tensors):
    """The program torch.save writes for a state dict, written by hand: opcodes of protocol 2."""
    out = io.BytesIO()
    text = lambda s: b"X" + len(s.encode()).to_bytes(4, "little") + s.encode()
    number = lambda n: b"J" + int(n).to_bytes(4, "little", signed=True)
    tup = lambda *items: b"(" + b"".join(items) + b"t"
    out.write(b"\x80\x02" + b"}" + b"(")
    for name, (kind, key, size, offset, shape, strides) in tensors.items():
        storage = b"ctorch\n" + kind.encode() + b"\n"
        pid = tup(text("storage"), storage, text(key), text("cpu"), number(size)) + b"Q"
        ints = lambda values: tup(*map(number, values))
        arguments = tup(pid, number(offset), ints(shape), ints(strides), b"\x89", b"}")
        out.write(text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R")
    out.write(b"u.")
    return out.getvalue()


def test_a_pickle_is_refused_by_default_and_read_when_allowed(tmp_path):
    x = np.arange(6, dtype=np.float32)
    program = program_of({
        "w": ("FloatStorage", "0", 6, 0, (2, 3), (3, 1)),
        "t": ("FloatStorage", "0", 6, 1, (2, 2), (1, 3)),
    })  # fmt: skip
    path = torch_archive(tmp_path / "pytorch_model.bin", program, {"0": x.tobytes()})
    with pytest.raises(UserError, match="--allow-pickle"):
        open_source(path)
    with pytest.raises(UserError, match="--allow-pickle"):
        open_source(tmp_path)
    source = open_source(tmp_path, allow_pickle=True)
    np.testing.assert_array_equal(source["w"], x.reshape(2, 3))
    np.testing.assert_array_equal(source["t"], [[1, 4], [2, 5]])


@pytest.mark.parametrize(
    "tensor",
    [
        ("FloatStorage", "0", 6, 0, (2, 4), (4, 1)),
        ("FloatStorage", "0", 6, 5, (2,), (1,)),
        ("FloatStorage", "0", 6, -1, (2,), (1,)),
        ("FloatStorage", "0", 6, 0, (2**30, 2**30), (0, 0)),
        ("FloatStorage", "9", 6, 0, (2,), (1,)),
        ("FloatStorage", "0", 6, 0, (2, 2), (1,)),
        ("DoubleStorage", "0", 6, 0, (6,), (1,)),
    ],
)
def test_views_outside_of_their_storage(tmp_path, tensor):
    path = torch_archive(tmp_path / "x.pt", program_of({"w": tensor}), {"0": bytes(24)})
    with pytest.raises(PickleRefused, match="outside of its storage"):
        Pickle(path)


def test_a_pickle_that_would_run_code(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {ran}",)

    for evil in (Evil(), {"w": Evil()}, [Evil()]):
        path = torch_archive(tmp_path / "x.pt", pickle.dumps(evil), {})
        with pytest.raises(PickleRefused, match="only tensors are read"):
            Pickle(path)
    assert not ran.exists()


def test_archives_that_are_none(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(PickleRefused, match="no torch archive"):
        Pickle(tmp_path / "x.pt")
    program = program_of({"w": ("FloatStorage", "0", 6, 0, (6,), (1,))})
    path = torch_archive(tmp_path / "y.pt", program, {"0": bytes(24)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(PickleRefused, match="compressed"):
        Pickle(path)
    path = torch_archive(tmp_path / "z.pt", program[:20], {"0": bytes(24)})
    with pytest.raises(PickleRefused, match="damaged"):
        Pickle(path)


def test_an_npz_as_big_vision_saves_it(tmp_path):
    tree = {f"params/{n}": x for n, x in MODEL.items()} | {"opt/0/count": np.int32(3)}
    half = MODEL["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", **tree, **{"params/half": half})
    source = open_source(f"{tmp_path}/x.npz#params")
    assert source.like["half"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(source["half"], half)
    same({n: source[n] for n in source if n != "half"})
    np.testing.assert_array_equal(source.read("half", 3, 7), half.reshape(-1)[3:7])
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"objects.npz: x.npy: an array of Python objects"):
        open_source(tmp_path / "objects.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:300])
    with pytest.raises(UserError, match=r"cut.npz is no .npz file of arrays, or is damaged"):
        open_source(tmp_path / "cut.npz")


def test_parameters_that_flax_serialized(tmp_path):
    from flax import serialization

    tree = {"params": {"a": {"kernel": MODEL["model.layers.0.q.weight"]},
                       "half": np.ones(3, ml_dtypes.bfloat16)}, "step": 3}  # fmt: skip
    (tmp_path / "x.msgpack").write_bytes(serialization.to_bytes(tree))
    source = open_source(tmp_path / "x.msgpack")
    assert set(source) == {"params/a/kernel", "params/half"}
    np.testing.assert_array_equal(source["params/a/kernel"], MODEL["model.layers.0.q.weight"])
    assert source.like["params/half"].dtype == ml_dtypes.bfloat16
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    os.rename(tmp_path / "x.msgpack", tmp_path / "hub" / "flax_model.msgpack")
    assert set(open_source(f"{tmp_path}/hub#params")) == {"a/kernel", "half"}
    (tmp_path / "cut.msgpack").write_bytes(serialization.to_bytes(tree)[:40])
    with pytest.raises(UserError, match=r"cut.msgpack is no msgpack file of Flax, or is damaged"):
        open_source(tmp_path / "cut.msgpack")
    (tmp_path / "none.msgpack").write_bytes(serialization.to_bytes({"step": 3}))
    with pytest.raises(UserError, match="holds no arrays"):
        open_source(tmp_path / "none.msgpack")
