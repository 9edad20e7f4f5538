"""A statistic of a model on data, and its file: a safetensors file beside the checkpoint.

Statistics are computed once, where the data are; merging then needs no data.  The file says what
was computed, from how many samples, and for **which weights**: a hash of the weights is stored and
compared, so that a Fisher of another checkpoint is refused instead of merged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.core import Leaves
from jaxmerge.errors import UserError

FORMAT = "jaxmerge-statistic-1"


class Statistic(NamedTuple):
    """One array a leaf, measured on data.

    Attributes:
        kind: "fisher" or "gram".
        values: leaf name -> array (fisher: like the leaf; gram: [in, in]).
        samples: how many examples it was measured on.
        weights: `weights_hash` of the model it belongs to.
        about: further facts, strings: the data, the variant, which axis a kernel meets.
    """

    kind: str
    values: Leaves
    samples: int
    weights: str
    about: dict[str, Any]


def weights_hash(params: Leaves) -> str:
    """A sha256 of all leaves, by name, dtype, shape and bytes.

    >>> a = weights_hash({"w": np.ones(2), "b": np.zeros(1)})
    >>> a == weights_hash({"b": np.zeros(1), "w": np.ones(2)})
    True
    """
    whole = hashlib.sha256()
    for name in sorted(params):
        leaf = np.ascontiguousarray(params[name])
        whole.update(f"{name}:{leaf.dtype.name}:{leaf.shape};".encode())
        whole.update(leaf.view(np.uint8).reshape(-1).data)
    return whole.hexdigest()


def save(statistic: Statistic, path: str | Path) -> None:
    """Write a statistic; the file appears whole or not at all."""
    from safetensors.numpy import save_file

    path = Path(path)
    about = {
        "format": FORMAT,
        "kind": statistic.kind,
        "samples": str(statistic.samples),
        "weights": statistic.weights,
        "about": json.dumps(statistic.about),
    }
    values = {n: np.ascontiguousarray(v) for n, v in statistic.values.items()}
    partial = path.with_name(path.name + ".partial")
    save_file(values, str(partial), metadata=about)
    partial.replace(path)


def load(path: str | Path, params: Leaves | None = None) -> Statistic:
    """Read a statistic; with `params`, refuse it if it belongs to other weights.

    Raises:
        UserError: not a statistic's file, or measured for other weights.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            meta = file.metadata() or {}
            values = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as a statistic: {error}.") from None
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path} is no statistic of jaxmerge (format {meta.get('format')!r}, expected "
            f"{FORMAT!r}); make one with `jaxmerge stats`."
        )
    found = Statistic(
        meta["kind"], values, int(meta["samples"]), meta["weights"], json.loads(meta["about"])
    )
    if params is not None:
        check_weights(found, params, str(path))
    return found


def check_weights(statistic: Statistic, params: Leaves, where: str = "the statistic") -> None:
    """Raise UserError unless the statistic was measured for these very weights."""
    expected = weights_hash(params)
    if statistic.weights != expected:
        raise UserError(
            f"{where} ({statistic.kind}, {statistic.samples} samples) was measured for weights "
            f"{statistic.weights[:12]}, but the model to merge has {expected[:12]}. Compute it "
            "again for this model with `jaxmerge stats`."
        )


def normalised(statistic: Statistic) -> Statistic:
    """The statistic divided by its Euclidean norm over the whole model.

    Fisher merging with it weighs the models alike, however sure of their data they are (the
    model-level normalisation of Matena & Raffel's released code).
    """
    square = sum(float(np.vdot(v, v)) for v in statistic.values.values())
    norm = max(square**0.5, float(np.finfo(np.float32).tiny))
    return statistic._replace(values={n: v / norm for n, v in statistic.values.items()})


def extras(*statistics: Statistic) -> Mapping[str, Leaves]:
    """Side information for `jm.merge(..., extras=[...])` from the statistics of one model."""
    return {s.kind: s.values for s in statistics}
