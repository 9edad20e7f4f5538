"""Which leaf goes into which file: shards up to a size, components of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping

from jaxmerge.io import header

INDEX = "model.safetensors.index.json"
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> (dtype code, shape)


def plan_shards(
    tensors: Tensors, shard_size: int, single: str = "model.safetensors", stem: str = "model"
) -> dict[str, list[str]]:
    """File name -> leaves, in order; a shard is closed before it would exceed `shard_size` bytes.

    >>> plan_shards({"a": ("U8", (6,)), "b": ("U8", (6,))}, 10)
    {'model-00001-of-00002.safetensors': ['a'], 'model-00002-of-00002.safetensors': ['b']}
    """
    groups: list[list[str]] = [[]]
    used = 0
    for name, (code, shape) in tensors.items():
        need = header.nbytes(code, shape)
        if groups[-1] and used + need > shard_size:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += need
    if len(groups) == 1:
        return {single: groups[0]}
    n = len(groups)
    return {f"{stem}-{i:05d}-of-{n:05d}.safetensors": g for i, g in enumerate(groups, 1)}


def plan_parts(tensors: Tensors, shard_size: int, parts: Mapping[str, str]) -> dict[str, list[str]]:
    """The same for a pipeline: the leaves of every component in a sub-folder of its own.

    >>> plan_parts({"vae/a": ("U8", (6,))}, 10, {"vae": "model.safetensors"})
    {'vae/model.safetensors': ['vae/a']}
    """
    out: dict[str, list[str]] = {}
    for part, single in parts.items():
        own = {n: t for n, t in tensors.items() if n.startswith(f"{part}/")}
        stem = single.removesuffix(".safetensors")
        files = plan_shards(own, shard_size, single, stem) if own else {}
        out |= {f"{part}/{file}": leaves for file, leaves in files.items()}
    return out
