"""`mini-plus`: `mini` trained on half of the classes of Caltech-101, and a stream of the others.

    python experiments/mini_plus.py --data /path/to/data --out mini-plus
    jaxmerge run experiments/mini_images.py --set data=/path/to/data --set stream=caltech101-rest \\
        --set model=mini-plus

`mini` is near chance on photographs, and what a stream does to a model that knows nothing says
little.  `mini-plus` is the same model after joint training of the image tower on every second class
of Caltech-101 under the frozen head of their names; the classes between them make the stream.  It
is not shipped; anybody can make it.
"""

from __future__ import annotations

import argparse
import dataclasses
from importlib import resources
from pathlib import Path

import numpy as np
from mini_images import half, images

from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.models import clip
from jaxmerge.training.fit import Training, fit
from jaxmerge.training.learner import from_clip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--images", type=int, default=60, help="at most so many of each class")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    model = clip.load(str(resources.files("jaxmerge") / "assets" / "mini"))
    source = half(images(options.data, "caltech101", {"train": options.images}), 0)
    scenario = class_incremental(source, 1)
    learner = from_clip(model, scenario)
    rows = source.splits["train"]
    own = np.ones(len(source.classes), bool)
    trained, losses = fit(
        learner, learner.params, learner.prepare(source.inputs[rows]), source.labels[rows], own,
        Training(epochs=options.epochs, batch=32, rate=5e-4),
    )  # fmt: skip
    print(f"{len(rows)} images, {len(losses)} steps, loss {losses[0]:.2f} to {losses[-1]:.2f}")
    clip.save(dataclasses.replace(model, params={**model.params, **trained}), options.out)


if __name__ == "__main__":
    main()
