"""Which file of a folder holds its weights: one file, or an index of shards.

The names that libraries give come first (`model`, `diffusion_pytorch_model`, and `merged` of our
own run folders), variants such as ``model.fp16.safetensors`` and Mistral's ``consolidated`` last.
Where two complete models lie side by side neither is taken.
"""

from __future__ import annotations

from pathlib import Path

from jaxmerge.errors import UserError
from jaxmerge.io.untrusted import check_inside, read_json

NAMES = ("model", "diffusion_pytorch_model", "merged")
INDEX = ".safetensors.index.json"
OTHERS = ("adapter_model", "optimizer", "fisher", "gram", "mask", "random_states", "scheduler")


def weights_file(folder: Path) -> Path | None:
    """The file or the index that holds the folder's weights; None if it has no safetensors.

    Raises:
        UserError: there are two, and nothing says which is meant.
    """
    indices = _preferred([p for p in folder.glob(f"*{INDEX}")], INDEX)
    check_inside(folder, [p.name for p in (*indices, *folder.glob("*.safetensors"))])
    files = [p for p in folder.glob("*.safetensors") if p.stem.partition("-")[0] not in OTHERS]
    shards = {f for i in indices for f in shards_of(i)}
    singles = _preferred([p for p in files if p.name not in shards], ".safetensors")
    if len(indices) > 1 or (len(singles) > 1 and not indices):
        names = sorted(indices or singles)
        raise UserError(
            f"{folder} holds {len(names)} {'indices' if indices else 'safetensors files'}, "
            f"{_list(names)}; name the one you mean, for example {names[0]}."
        )
    if indices and singles and singles[0].stem in NAMES:
        missing = [f for f in shards_of(indices[0]) if not (folder / f).is_file()]
        if missing:  # what is left of an earlier model
            return singles[0]
        raise UserError(
            f"{folder} holds two models, {singles[0].name} and the shards of {indices[0].name}; "
            f"remove one of them, or name the file you mean: {singles[0]} or {indices[0]}."
        )
    return next(iter([*indices, *singles]), None)


def _preferred(paths: list[Path], end: str) -> list[Path]:
    """Those with the best kind of name."""
    stems = {p: p.name.removesuffix(end) for p in paths}
    for name in NAMES:
        if preferred := [p for p, s in stems.items() if s == name]:
            return preferred
    plain = [p for p, s in stems.items() if s.rpartition(".")[0] not in stems.values()]
    return [p for p in plain if not stems[p].startswith("consolidated")] or plain


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index speaks of; nothing where it is no index."""
    try:
        table = read_json(index).get("weight_map")
    except UserError:
        return []
    sound = isinstance(table, dict)
    return sorted({f for f in table.values() if isinstance(f, str)}) if sound else []


def _list(paths: list[Path]) -> str:
    names = [p.name for p in paths[:4]]
    return ", ".join(names) + (" ..." if len(paths) > 4 else "")
