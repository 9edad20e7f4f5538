"""Checkpoints that `experiments/fuzz.py` damages: what writes a sound one, and what reads it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

WORDS = {"model.embed_tokens.weight": (6, 4), "model.layers.0.mlp.up.weight": (4, 4),
         "model.layers.1.mlp.up.weight": (4, 4), "norm.weight": (4,)}  # fmt: skip


class Wrong(Exception):
    """Accepted, and not what it should be."""


def model(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in WORDS.items()}


def folder(path: Path, seed: int, **files: Any) -> None:
    """A model's folder with further JSON files: config=..., tokenizer=..."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(model(seed), path / "model.safetensors")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))


def same(leaves: Any, want: dict[str, np.ndarray]) -> None:
    got = {n: np.asarray(leaves[n]) for n in leaves}
    for n, x in want.items():
        if n in got and (got[n].shape != x.shape or got[n].tobytes() != x.tobytes()):
            raise Wrong(f"leaf {n!r} differs")


def read_file(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(path / "m.safetensors")
    got = {n: source[n] for n in source}
    same(got, load_file(path / "m.safetensors"))


def write_shards(path: Path) -> None:
    (path / "m").mkdir()
    where, leaves = {}, list(model(0).items())
    for i, shard in enumerate((leaves[:2], leaves[2:])):
        save_file(dict(shard), path / "m" / f"s{i}.safetensors")
        where |= dict.fromkeys(dict(shard), f"s{i}.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))


def read_shards(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    same(open_source(path / "m"), model(0))


def write_torch(path: Path) -> None:
    """A torch archive without torch: protocol 2, two tensors, one a view."""
    text = lambda s: b"X" + len(s).to_bytes(4, "little") + s.encode()
    number = lambda n: b"K" + bytes([n])

    def tensor(key: str, kind: str, size: int, shape: tuple, strides: tuple, at: int) -> bytes:
        storage = (
            b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
            + number(size) + b"tQ"
        )  # fmt: skip
        tuples = b"".join(b"(" + b"".join(map(number, t)) + b"t" for t in (shape, strides))
        more = b"\x89ccollections\nOrderedDict\n)R"
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(at) + tuples + more + b"tR"
        )

    program = (
        b"\x80\x02}q\x00(" + text("a") + tensor("0", "FloatStorage", 6, (2, 3), (3, 1), 0)
        + text("b") + tensor("1", "BFloat16Storage", 8, (2, 2), (1, 4), 1) + b"u."
    )  # fmt: skip
    with zipfile.ZipFile(path / "m.bin", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", np.arange(6, dtype=np.float32).tobytes())
        archive.writestr("a/data/1", bytes(range(16)))


def read_torch(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(path / "m.bin", allow_pickle=True)
    for n in source:
        if source[n].shape != source.like[n].shape or source[n].dtype != source.like[n].dtype:
            raise Wrong(f"leaf {n!r} is not what was said of it")


def write_gguf(path: Path) -> None:
    tiny = Path(__file__).parents[1] / "tests/golden/gguf_tiny/tiny_llama.gguf"
    (path / "m.gguf").write_bytes(tiny.read_bytes())


def read_gguf(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(path / "m.gguf")
    source.config()
    for n in source:
        if source[n].shape != source.like[n].shape:
            raise Wrong(f"leaf {n!r} is not what was said of it")
    source.close()


def write_orbax(path: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as writer:
        writer.save((path / "m").resolve(), {"a": np.arange(6.0), "b": {"c": np.ones(3)}})


def read_orbax(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(path / "m")
    for n in source:
        if source[n].shape != source.like[n].shape:
            raise Wrong(f"leaf {n!r} is not what was said of it")
    source.close()


def write_archive(path: Path) -> None:
    np.savez(path / "m.npz", **{n.replace(".", "/"): x for n, x in model(0).items()})


def write_msgpack(path: Path) -> None:
    from flax.serialization import to_bytes

    (path / "m.msgpack").write_bytes(to_bytes({"params": model(0), "step": 3}))


def read_whole(path: Path) -> None:
    """A model of a format that says no shapes twice: every leaf is as large as it was said."""
    from jaxmerge.io.sources import open_source

    source = open_source(next(path.glob("m.*")))
    for n in source:
        if source[n].shape != source.like[n].shape:
            raise Wrong(f"leaf {n!r} is not what was said of it")


def interrupted(path: Path, resume: bool) -> Any:
    """The writer of an output of six leaves, in two shards."""
    from jaxmerge.io.writer import Writer

    tensors = {f"w{i}": ("F32", (8, 8)) for i in range(6)}
    return Writer(path / "out", tensors, digest="d", shard_size=800, resume=resume)


def write_journal(path: Path) -> None:
    writer = interrupted(path, resume=False)
    for name in ("w0", "w3"):
        writer.write(name, np.ones(64, np.float32))
        writer.finish_leaf(name)
    writer.journal.append({"synced": 1})
    writer.close()


def read_journal(path: Path) -> None:
    writer = interrupted(path, resume=True)
    try:
        if not writer.done <= set(writer.tensors):
            raise Wrong(f"leaves are done that the output has not: {sorted(writer.done)[:3]}")
        for name in set(writer.tensors) - writer.done:
            writer.write(name, np.ones(64, np.float32))
            writer.finish_leaf(name)
        writer.commit({})
    finally:
        writer.close()
