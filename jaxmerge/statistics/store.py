"""A statistic of a model on data, and its file: a safetensors file beside the checkpoint.

Statistics are computed once, where the data are; merging then needs no data.  The file says what
was computed, from how many samples, and for **which weights**: a hash of the weights is stored and
compared, so that a Fisher of another checkpoint is refused instead of merged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.core.types import Leaves
from jaxmerge.errors import UserError
from jaxmerge.io.header import HeaderError
from jaxmerge.io.safetensors import File, save_file
from jaxmerge.io.safetensors import Leaves as LazyLeaves
from jaxmerge.io.untrusted import parse_json

FORMAT = "jaxmerge-statistic-1"


class Statistic(NamedTuple):
    """One array a leaf, measured on data.

    Attributes:
        kind: "fisher" or "gram".
        values: leaf name -> array (fisher: like the leaf; gram: [in, in]); may be lazy.
        samples: how many examples it was measured on.
        weights: `weights_hash` of the model's leaves that `values` names.
        about: further facts, strings: the data, the variant, which axis a kernel meets.
    """

    kind: str
    values: Leaves
    samples: int
    weights: str
    about: dict[str, Any]


BLOCK = 1 << 22  # entries of a leaf that are read at once


def weights_hash(params: Leaves, names: Iterable[str] | None = None) -> str:
    """A sha256 of all leaves, or of those of these names, by name, dtype, shape and bytes.

    Args:
        params: name -> array, lazy or not.
        names: the leaves that count; None for all.

    >>> a = weights_hash({"w": np.ones(2), "b": np.zeros(1)})
    >>> a == weights_hash({"b": np.zeros(1), "w": np.ones(2)})
    True
    """
    whole = hashlib.sha256()
    for name in sorted(params if names is None else names):
        if isinstance(params, LazyLeaves):
            leaf, read = params.like[name], partial(params.read, name)
        else:
            leaf = np.asarray(params[name])
            read = lambda start, stop, flat=leaf.reshape(-1): flat[start:stop]
        shape = tuple(leaf.shape) or (1,)  # as files on disk have it for scalars
        whole.update(f"{name}:{np.dtype(leaf.dtype).name}:{shape};".encode())
        for start in range(0, leaf.size, BLOCK):
            part = read(start, min(leaf.size, start + BLOCK))
            whole.update(np.ascontiguousarray(part).view(np.uint8).data)
    return whole.hexdigest()


def save(statistic: Statistic, path: str | Path) -> None:
    """Write a statistic; the file appears whole or not at all.

    Args:
        statistic: of one model.
        path: of the file, ``.safetensors``.

    Example:
        >>> import tempfile
        >>> weights = {"w": np.ones(2, np.float32)}
        >>> own = Statistic("fisher", {"w": np.float32([3, 4])}, 10, weights_hash(weights), {})
        >>> path = Path(tempfile.mkdtemp()) / "fisher.safetensors"
        >>> save(own, path)
        >>> load(path, weights).samples
        10
    """
    path = Path(path)
    about = {
        "format": FORMAT,
        "kind": statistic.kind,
        "samples": str(statistic.samples),
        "weights": statistic.weights,
        "about": json.dumps(statistic.about),
    }
    save_file(path, statistic.values, about)


def load(path: str | Path, params: Leaves | None = None) -> Statistic:
    """Read a statistic; with `params`, refuse it if it belongs to other weights.

    Args:
        path: of the file.
        params: the weights to which it must belong, name -> array; None for any.

    Raises:
        UserError: not a statistic's file, or measured for other weights.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "fisher.safetensors"
        >>> save(Statistic("fisher", {"w": np.float32([3, 4])}, 10, "", {"data": "digits"}), path)
        >>> load(path).about
        {'data': 'digits'}
    """
    try:
        file = File(path)
        statistic = of_file(file)
        statistic = statistic._replace(values=dict(file))
    except (HeaderError, OSError) as error:
        raise UserError(f"{error} Such a statistic cannot be read.") from None
    if params is not None:
        check_weights(statistic, params, str(path))
    return statistic


def of_file(file: File) -> Statistic:
    """The statistic in an opened file; its values are read leaf by leaf when asked for.

    Args:
        file: a safetensors file, open.

    Raises:
        UserError: not a statistic's file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "fisher.safetensors"
        >>> save(Statistic("fisher", {"w": np.float32([3, 4])}, 10, "", {}), path)
        >>> of_file(File(path)).kind
        'fisher'
    """
    meta = file.metadata
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{file.path} is no statistic of jaxmerge (format {meta.get('format')!r}, expected "
            f"{FORMAT!r}); make one with `jaxmerge stats`."
        )
    missing = [k for k in ("samples", "about", "kind", "weights") if k not in meta]
    if missing or not re.fullmatch("[0-9]{1,18}", meta["samples"]):
        what = f"it lacks {', '.join(missing)}" if missing else f"samples is {meta['samples']!r}"
        raise UserError(f"{file.path}: the header of this statistic is damaged: {what}.")
    about = parse_json(meta["about"], f"{file.path}: about, in the header of this statistic,")
    return Statistic(meta["kind"], file, int(meta["samples"]), meta["weights"], about)


def check_weights(statistic: Statistic, params: Leaves, where: str = "the statistic") -> None:
    """Raise UserError unless the statistic was measured for these very weights.

    Reads those leaves of `params` that the statistic is about, one at a time.

    Args:
        statistic: of some model.
        params: name -> array, lazy or not.
        where: what the message calls it.

    Example:
        >>> weights = {"w": np.ones(2, np.float32)}
        >>> own = Statistic("fisher", {"w": np.float32([3, 4])}, 10, weights_hash(weights), {})
        >>> check_weights(own, weights)
        >>> check_weights(own, {"w": np.zeros(2, np.float32)})
        Traceback (most recent call last):
        jaxmerge.errors.UserError: the statistic (fisher, 10 samples) was measured for weights ...
    """
    missing = [n for n in statistic.values if n not in params]
    actual = "none" if missing else weights_hash(params, statistic.values)
    if statistic.weights != actual:
        lacks = f" and lacks {len(missing)} of its leaves such as {missing[0]!r}" if missing else ""
        raise UserError(
            f"{where} ({statistic.kind}, {statistic.samples} samples) was measured for weights "
            f"{statistic.weights[:12]}, but the model to merge has {actual[:12]}"
            f"{lacks}. Compute it again for this model with `jaxmerge stats`."
        )


def normalised(statistic: Statistic) -> Statistic:
    """The statistic divided by its Euclidean norm over the whole model.

    Fisher merging with it weighs the models alike, however sure of their data they are (the
    model-level normalisation of Matena & Raffel's released code).

    Args:
        statistic: with values that are real.

    Example:
        >>> normalised(Statistic("fisher", {"w": np.array([3.0, 4.0])}, 10, "", {})).values["w"]
        array([0.6, 0.8])
    """
    square = sum(float(np.vdot(v, v)) for v in statistic.values.values())
    norm = max(square**0.5, float(np.finfo(np.float32).tiny))
    return statistic._replace(values={n: v / norm for n, v in statistic.values.items()})


def extras(*statistics: Statistic, params: Leaves | None = None) -> Mapping[str, Leaves]:
    """Side information for `jm.merge(..., extras=[...])` from the statistics of one model.

    Args:
        params: the model that they belong to; other weights are refused.
        statistics: of this model, one of each kind.

    Raises:
        UserError: two statistics of one kind, or measured for other weights than `params`.

    Example:
        >>> weights = {"w": np.ones(2, np.float32)}
        >>> own = Statistic("fisher", {"w": np.float32([3, 4])}, 10, weights_hash(weights), {})
        >>> sorted(extras(own, params=weights))
        ['fisher']
    """
    kinds = [s.kind for s in statistics]
    if twice := sorted({k for k in kinds if kinds.count(k) > 1}):
        raise UserError(f"Found several statistics of kind {twice[0]!r} for one model; give one.")
    for s in statistics:
        if params is not None:
            check_weights(s, params)
    return {s.kind: s.values for s in statistics}
