"""`jaxmerge stats REF --data ... --kind fisher|gram`: measure a model once, merge without data.

Writes ``fisher.safetensors`` or ``gram.safetensors`` beside the model (or where `--out` says), in
the names and the layout of the checkpoint, so that `jaxmerge merge` reads both leaf by leaf.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge import statistics
from jaxmerge.cli.data import open_data
from jaxmerge.core.draws import draws
from jaxmerge.errors import UserError, closest
from jaxmerge.io.sources import open_source
from jaxmerge.models.tokens import cut_by
from jaxmerge.statistics.fisher import Kind

KINDS = ("fisher", "gram")


def run(
    ref: str,
    *,
    data: str,
    kind: str,
    base: str | None = None,
    out: Path | None = None,
    text: str | None = None,
    label: str | None = None,
    split: str | None = None,
    classes: str | Path | None = None,
    templates: str | Sequence[str] | None = None,
    truncate: bool = False,
    samples: int = 256,
    batch: int = 32,
    variant: Kind = "true",
    seed: int = 0,
    json: bool = False,
) -> None:
    """Measure a checkpoint on the training split of a data set.

    Images are shown to the image tower of a CLIP, sentences to a BERT sentence encoder; the head
    is made of the class names.

    Args:
        ref: a CLIP folder, or an image tower against `base`; a BERT folder for sentences.
        data: see `jaxmerge.cli.data.open_data`, also for what may be said of it.
        kind: "fisher" or "gram".
        base: the full CLIP that `ref`, an image tower alone, belongs to; its text tower makes the
            zero-shot head.  Default: `ref` itself has one.
        out: file to write; default beside the model.
        truncate: cut names of classes that are longer in prompts than the model reads.
        samples: training examples, drawn by `seed`.
        variant: of Fisher: "true" (a gradient for every class), "sampled" or "empirical" (one for
            every example).
    """
    import jax
    from rich.console import Console
    from rich.progress import track

    from jaxmerge.data.streams.builders import suite

    if kind not in KINDS:
        raise UserError(f"--kind {kind!r}: {closest(kind, KINDS)}")
    if samples < 1 or batch < 1:
        raise UserError(f"--samples and --batch must be at least 1, got {samples} and {batch}.")
    target = _target(ref, kind, out)
    source = open_data(data, text, label, split, classes, templates)
    with cut_by("add --truncate"):
        learner, layout_of, keep = _learner(ref, base, suite([source]), truncate)
    params = learner.params
    rows = draws(seed).permutation(source.splits["train"])[:samples]
    images = learner.prepare(source.inputs[rows])
    labels = np.asarray(source.labels[rows])
    batches = [(images[i : i + batch], labels[i : i + batch]) for i in range(0, len(rows), batch)]
    about = {"data": source.name, "split": "train", "seed": seed, "model": ref}
    shown = track(batches, kind, console=Console(stderr=True), disable=json)
    if kind == "fisher":
        key = jax.random.key(seed)
        statistic = statistics.fisher(
            learner.logits, params, shown, kind=variant, key=key, about=about
        )
    else:
        statistic = statistics.gram(learner.features, params, shown, keep=keep, about=about)
    checkpoint = open_source(ref)
    try:
        statistic = statistics.in_layout(statistic, layout_of(checkpoint), checkpoint)
    finally:
        checkpoint.close()
    statistics.save(statistic, target)
    report = _report(statistic, target)
    if json:
        print(jsonlib.dumps(report, indent=2))
    else:
        print(
            f"{target}: {kind} of {report['leaves']} leaves from {statistic.samples} examples of "
            f"{source.name}, {report['bytes'] / 1e6:.1f} MB"
        )


def _learner(ref: str, base: str | None, scenario: Any, truncate: bool) -> tuple[Any, Any, Any]:
    """The model that reads what the scenario holds, under the head of its classes.

    With a function from a checkpoint's keys to the table of its layout, and one that tells which
    rows of a batch are data (`jaxmerge.statistics.gram`).
    """
    from jaxmerge.data.sources import Texts
    from jaxmerge.models import bert, clip
    from jaxmerge.models.bert.checkpoint import layout_of as bert_layout
    from jaxmerge.models.clip.checkpoint import layout_of as clip_layout
    from jaxmerge.training.learner import from_bert, from_clip

    if not isinstance(scenario.sources[0].inputs, Texts):
        model = clip.load(ref, base=base)
        layout_of = lambda keys: clip_layout(keys, model.config)
        return from_clip(model, scenario, truncate), layout_of, None
    if base is not None:
        raise UserError("--base completes an image tower; a sentence encoder is whole by itself.")
    encoder = bert.load(ref)
    layout_of = lambda keys: bert_layout(keys, encoder.config)
    keep = lambda tokens: (tokens != encoder.config.pad).ravel()
    return from_bert(encoder, scenario, truncate=truncate), layout_of, keep


def _target(ref: str, kind: str, out: Path | None) -> Path:
    if out is not None:
        target = Path(out)
        if target.is_dir():
            raise UserError(f"--out {out} is a folder: name the file, as {out}/{kind}.safetensors.")
    elif Path(ref).is_dir():
        target = Path(ref) / f"{kind}.safetensors"
    else:
        raise UserError(f"{ref} is no local folder: name the file to write with --out.")
    if not target.parent.is_dir():
        raise UserError(f"There is no folder {target.parent} to write {target.name} into.")
    return target


def _report(statistic: Any, target: Path) -> dict[str, Any]:
    return {
        "file": str(target),
        "kind": statistic.kind,
        "samples": statistic.samples,
        "weights": statistic.weights,
        "leaves": len(statistic.values),
        "bytes": sum(np.asarray(v).nbytes for v in statistic.values.values()),
        "about": statistic.about,
    }
