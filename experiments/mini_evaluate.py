"""Measure ``mini``'s zero-shot accuracy on the held-out glyph suites and the handwritten digits.

    python experiments/mini_evaluate.py [--model FOLDER]

Prints the table of jaxmerge/assets/mini/README.md; about a minute on two CPU cores. The suites
are drawn with fonts and handwriting that pre-training never saw; the digits are
scikit-learn's, of which pre-training saw none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxmerge
from jaxmerge.data import glyphs
from jaxmerge.data.digits import TEMPLATES, digits
from jaxmerge.models import clip

PROMPTS = ("a photo of {}", "an image of {}", "{}")
MINI = Path(jaxmerge.__file__).parent / "assets" / "mini"


def get_config() -> dict:
    """Images a class in the test part of every suite."""
    return {"test": 40, "domain_test": 20}


def classifier(model):
    """A function (uint8 images, class names, templates) -> predicted labels."""
    see = jax.jit(lambda x: clip.image_features(model.config, model.params, x))

    def predict(images, names, templates=PROMPTS):
        head = clip.zero_shot_head(model, names, templates)
        ready = clip.preprocess(images, model.config)
        parts = [see(ready[i : i + 500]) for i in range(0, len(ready), 500)]
        return np.asarray(jnp.argmax(jnp.concatenate(parts) @ head, 1))

    return predict


def suites(settings: dict):
    """(name, task) of everything that is measured."""
    sizes = (1, 1, settings["test"])
    for task in glyphs.eight_tasks(sizes=sizes):
        yield f"eight tasks: {task.name}", task
    yield "62 characters", glyphs.class_incremental(1, sizes=sizes)[0]
    for task in glyphs.domain_incremental(sizes=(1, 1, settings["domain_test"])):
        yield f"62 characters, {task.name}", task


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MINI)
    predict = classifier(clip.load(parser.parse_args().model))
    print("| suite | classes | images | zero-shot accuracy |\n|---|---|---|---|")

    def row(name, names, labels, guess):
        accuracy = f"{100 * np.mean(guess == labels):.1f} %"
        print(f"| {name} | {len(names)} | {len(labels)} | {accuracy} |", flush=True)

    for name, task in suites(get_config()):
        row(name, task.class_names, task.test.labels,
            predict(task.test.images, task.class_names))  # fmt: skip
    source = digits()
    guess = predict(source.inputs, source.classes, TEMPLATES)
    for name, part in (
        ("handwritten digits, all", slice(None)),
        ("handwritten digits, quickstart's test split", source.splits["test"]),
        ("handwritten digits, quickstart's validation split", source.splits["val"]),
    ):
        row(name, source.classes, source.labels[part], guess[part])


if __name__ == "__main__":
    main()
