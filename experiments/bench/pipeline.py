"""Images a second from files to prepared batches: decoded here, by threads, by worker processes.

    python experiments/bench/pipeline.py --save experiments/results/pipeline_cpu.json

Makes a folder of pictures (JPEG 500 x 375, as photographs, and PNG 32 x 32, as CIFAR100), reads it
as CLIP does (224 pixels), in shuffled batches of 32, and prints images a second, with the seconds
until the first batch beside them; an array in memory is the end of the scale.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmerge.data.folders import folder
from jaxmerge.data.pipeline import Examples, Order, read
from jaxmerge.models.clip import Preprocess
from jaxmerge.studies.provenance import machine, versions

KINDS = {"jpeg": ((375, 500), "jpg"), "png": ((32, 32), "png")}
BATCH = 32


def pictures(root: Path, kind: str, count: int) -> Path:
    """Smooth random pictures with a little noise: they compress about as photographs do."""
    (height, width), ending = KINDS[kind]
    rng = np.random.default_rng(0)
    for k in range(count):
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        smooth = np.asarray(smooth)
        noisy = smooth.astype(int) + rng.integers(-20, 20, smooth.shape)
        place = root / kind / f"class_{k % 4}"
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(place / f"{k}.{ending}", quality=92)
    return root / kind


def pixels(images) -> np.ndarray:
    """What CLIP reads, before it is normalised on the device."""
    return Preprocess(224).crop(images)[0]


def measure(inputs, order: Order, workers: int | None) -> dict[str, float]:
    """Seconds to the first batch, and images a second of those after it."""
    began = time.perf_counter()
    batches = read(inputs, order, workers=workers)
    next(batches)
    first = time.perf_counter() - began
    began, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch)
    rate = count / (time.perf_counter() - began)
    return {"first_s": round(first, 2), "images_per_s": round(rate, 1)}


def main() -> None:
    """Measure every way of reading on both kinds of pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1280, help="pictures of a kind, at least 128")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    if args.count < 4 * BATCH:
        parser.error(f"--count {args.count}: expected {4 * BATCH} or more, four batches")
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for kind in KINDS:
            source = folder(pictures(Path(root), kind, args.count), kind)
            lazy = Examples([(source.inputs, np.arange(args.count))], pixels)
            order = Order(args.count, BATCH, args.count // BATCH, (0,))
            began = time.perf_counter()
            for rows_of in order[: len(order) // 4]:
                lazy[rows_of]
            alone = len(order) // 4 * BATCH / (time.perf_counter() - began)
            rows.append({"pictures": kind, "read by": "a loop", "images_per_s": round(alone, 1)})
            for workers in (0, *args.workers):
                who = f"{workers} processes" if workers else "threads"
                rows.append({"pictures": kind, "read by": who, **measure(lazy, order, workers)})
                print(rows[-1], flush=True)
            memory = lazy[np.arange(min(args.count, 640))]
            small = Order(len(memory), BATCH, 200, (0,))
            rows.append({"pictures": kind, "read by": "memory", **measure(memory, small, None)})
            print(rows[-1], flush=True)
    report = {
        "command": f"python experiments/bench/pipeline.py --count {args.count} --workers "
        + " ".join(map(str, args.workers)),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    if args.save:
        args.save.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
