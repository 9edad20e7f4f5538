"""`jm.merge_files`: what `jaxmerge merge` does, from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxmerge.core import names
from jaxmerge.core.composition import stochastic
from jaxmerge.core.types import Device, Merge
from jaxmerge.drivers.files.job import Report
from jaxmerge.io.header import CODES
from jaxmerge.io.install import keep_apart
from jaxmerge.io.safetensors import Leaves, Like
from jaxmerge.recipes.execute import execute
from jaxmerge.recipes.native import Recipe
from jaxmerge.recipes.plan import Models

Ref = str | os.PathLike | Leaves


def merge_files(
    method: Merge | str | Mapping[str, Any] | Sequence[Any],
    *,
    models: Sequence[Ref],
    out: str | os.PathLike,
    base: Ref | None = None,
    dtype: DTypeLike | None = None,
    key: jax.Array | None = None,
    seed: int = 0,
    rules: Mapping[str, str] | Sequence[Mapping[str, Any]] | None = None,
    extras: Mapping[str, Sequence[str | os.PathLike]] | None = None,
    tokenizer: str | Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    rename: Mapping[str, Mapping[str, str]] | None = None,
    nonfinite: str = "raise",
    overflow: str = "raise",
    leaves: str = "same",
    near: Sequence[Path] = (),
    allow_pickle: bool = False,
    resume: bool = False,
    force: bool = False,
    shard_size: int = 5_000_000_000,
    devices: Sequence[Device] = (),
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Report:
    """Merge checkpoints from files into a folder, leaf by leaf.

    The same as the command `jaxmerge merge`: tied heads are made to fit, vocabularies checked or
    merged, quantised leaves dequantised; config, tokenizer, remote code, a model card and the
    resolved recipe with the hashes of all inputs are written beside the weights.

    Args:
        method: any registered method, a chain of stages, or a method as recipes write it.
        models: references (see `jaxmerge.io.sources`), or lazy mappings of leaves.
        out: the folder to write; config and tokenizer come from the base or the first model.
        base: theta_0, likewise; left out for methods of the weights themselves (mean, slerp, ...),
            "none" for zeros with any method.
        dtype: of floating leaves; by default each keeps the base's.
        key: PRNG key, for methods that draw.
        seed: of the key of a method that is given as data.
        rules, extras, tokenizer, chat_template, rename: as in recipes
            (`jaxmerge.recipes.native.Recipe`).
        nonfinite: "raise" refuses NaN and Inf of inputs by leaf, "zero" counts them as no change.
        overflow: "raise", "clip" or "allow" values that the output's dtype cannot hold.
        leaves: "same" in all models, or "intersection": merge those that all models have.
        near: folders against which relative references are tried after the working directory.
        allow_pickle: read tensors from pickles too, restricted.
        resume, force, shard_size, devices, progress: see `jaxmerge.drivers.files.api.merge_jobs`.

    Returns:
        A `Report`; with `resume`, of a merge that was finished before, only its folder.

    Raises:
        ValueError: models that do not fit together, NaN or Inf, an output that exists, a method of
            task vectors without a base.

    Example:
        >>> import tempfile, jaxmerge as jm
        >>> from safetensors.numpy import load_file, save_file
        >>> folder = tempfile.mkdtemp()
        >>> for name, value in (("base", 0), ("a", 1), ("b", -3)):
        ...     save_file({"w": np.full(2, value, np.float32)}, f"{folder}/{name}.safetensors")
        >>> models = [f"{folder}/a.safetensors", f"{folder}/b.safetensors"]
        >>> report = jm.merge_files(
        ...     jm.magmax(), base=f"{folder}/base.safetensors", models=models, out=f"{folder}/out"
        ... )
        >>> load_file(f"{folder}/out/model.safetensors")["w"]
        array([-1.5, -1.5], dtype=float32)
    """
    if isinstance(models, str | os.PathLike):
        raise ValueError(
            f"models must be a list of references, got {models!r}: write [{models!r}]."
        )
    if isinstance(method, Merge) and stochastic(method) and key is None:
        raise ValueError(f"{method} draws random numbers: pass key=jax.random.key(seed).")
    if leaves not in ("same", "intersection"):
        raise ValueError(
            f"leaves must be 'same' or 'intersection', got {leaves!r}. A union merges each leaf "
            "among the models that have it, so every model needs parameters of its own: write a "
            "recipe in mergekit's form and use jaxmerge merge --tensor-union."
        )
    opened = Models(near, allow_pickle, leaves=leaves)
    recipe = Recipe(
        models=[_ref(opened, m) for m in models],
        method=method,
        base=None if base is None else _ref(opened, base),
        rules=rules,
        extras=None
        if extras is None
        else {k: [os.fspath(x) for x in v] for k, v in extras.items()},
        out_dtype=None if dtype is None else _floating(dtype).name,
        seed=seed,
        nonfinite=nonfinite,
        tokenizer=tokenizer,
        chat_template=chat_template,
        rename=None if rename is None else dict(rename),
    )
    try:
        plan = recipe.plan(opened)
        if key is not None:
            plan.resolved["key"] = np.asarray(jax.random.key_data(key)).tolist()
            for job in plan.jobs:
                job.key = key
        if overflow != "raise":
            plan.resolved["overflow"] = overflow
        keep_apart(out, [f for s in opened.opened.values() for f in s.files])
        done = execute(
            plan, out, shard_size=shard_size, devices=devices, resume=resume, force=force,
            overflow=overflow, progress=progress,
        )  # fmt: skip
    finally:
        opened.close(given=(base, *models))
    done.pop("finished_before")
    return Report(**done)


def _ref(opened: Models, model: Any) -> str:
    """The reference of a model; leaves that are open already get one."""
    if not isinstance(model, Leaves):
        return os.fspath(model)
    source = opened.open(model)
    return next(ref for ref, s in opened.opened.items() if s is source)


def _floating(dtype: Any) -> np.dtype:
    import ml_dtypes  # noqa: F401 - makes numpy know bfloat16

    parsed = np.dtype(dtype)
    if parsed not in CODES or not names.is_float(Like((), parsed)):
        raise ValueError(f"dtype must be a floating one, got {parsed}.")
    return parsed
