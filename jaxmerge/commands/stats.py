"""`jaxmerge stats REF --data ... --kind fisher|gram`: measure a model once, merge without data.

Writes ``fisher.safetensors`` or ``gram.safetensors`` beside the model (or where `--out` says).
"""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge import statistics
from jaxmerge.errors import UserError, closest

KINDS = ("fisher", "gram")


def run(
    ref: str,
    *,
    data: str,
    kind: str,
    base: str | None = None,
    out: Path | None = None,
    samples: int = 256,
    batch: int = 32,
    variant: str = "true",
    seed: int = 0,
    json: bool = False,
) -> None:
    """Measure the image tower of a CLIP checkpoint on the training split of a data set.

    Args:
        ref: a CLIP folder, or an image tower against `base`.
        data: "digits", or DIR/NAME for ``DIR/NAME_train.npz`` and ``DIR/NAME_test.npz``.
        kind: "fisher" or "gram".
        base: the full CLIP that `ref`, an image tower alone, belongs to; its text tower makes the
            zero-shot head.  Default: `ref` itself has one.
        out: file to write; default beside the model.
        samples: training examples, drawn by `seed`.
        variant: of Fisher: "true", "sampled" or "empirical".
    """
    import jax
    from rich.console import Console
    from rich.progress import track

    from jaxmerge.continual.learner import from_clip
    from jaxmerge.continual.streams import suite
    from jaxmerge.models import clip

    if kind not in KINDS:
        raise UserError(f"--kind {kind!r}: {closest(kind, KINDS)}")
    if samples < 1 or batch < 1:
        raise UserError(f"--samples and --batch must be at least 1, got {samples} and {batch}.")
    target = _target(ref, kind, out)
    source = open_data(data)
    scenario = suite([source])
    learner = from_clip(clip.load(ref, base=base), scenario)
    params = learner.params
    rows = np.random.default_rng(seed).permutation(source.splits["train"])[:samples]
    images = learner.prepare(source.inputs[rows])
    labels = np.asarray(source.labels[rows])
    batches = [(images[i : i + batch], labels[i : i + batch]) for i in range(0, len(rows), batch)]
    about = {"data": source.name, "split": "train", "seed": seed, "model": ref}
    shown = track(batches, kind, console=Console(stderr=True), disable=json)
    if kind == "fisher":
        key = jax.random.key(seed)
        found = statistics.fisher(learner.logits, params, shown, kind=variant, key=key, about=about)
    else:
        found = statistics.gram(learner.features, params, shown, about=about)
    statistics.save(found, target)
    report = _report(found, target)
    if json:
        print(jsonlib.dumps(report, indent=2))
    else:
        print(
            f"{target}: {kind} of {report['leaves']} leaves from {found.samples} examples of "
            f"{source.name}, {report['bytes'] / 1e6:.1f} MB"
        )


def open_data(spec: str) -> Any:
    """A data source by name: "digits" or DIR/NAME of a pair of .npz files."""
    from jaxmerge.data.digits import digits
    from jaxmerge.data.npz import npz

    if spec == "digits":
        return digits()
    folder, name = os.path.split(spec)
    return npz(folder or ".", name)


def _target(ref: str, kind: str, out: Path | None) -> Path:
    if out is not None:
        target = Path(out)
    elif Path(ref).is_dir():
        target = Path(ref) / f"{kind}.safetensors"
    else:
        raise UserError(f"{ref} is no local folder: name the file to write with --out.")
    if not target.parent.is_dir():
        raise UserError(f"There is no folder {target.parent} to write {target.name} into.")
    return target


def _report(found: Any, target: Path) -> dict[str, Any]:
    return {
        "file": str(target),
        "kind": found.kind,
        "samples": found.samples,
        "weights": found.weights,
        "leaves": len(found.values),
        "bytes": sum(np.asarray(v).nbytes for v in found.values.values()),
        "about": found.about,
    }
