"""Twenty merged models evaluated at once: what they share, and what that saves.

    python experiments/bench/shared_evaluation.py --out experiments/results/shared_evaluation.json

The image tower of `mini` on images of noise, under 20 factors of MagMax: one program a factor, all
factors in one program by `jax.vmap`, and by `jax.lax.map`.  First every leaf is merged, then the
last of four blocks and what is behind it alone, the rest being those of the base (rules: only).
`vmap` gives leaves that do not depend on the factor no axis of factors, so what stands before the
first merged leaf runs once; nothing has to be said for it.  Where all leaves are merged, the first
layer of every model differs, and there is nothing to share.

Processor seconds, the least of --repeat runs; `ratio` is to twenty times one model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from merge_memory import best_of

import jaxmerge as jm
from jaxmerge.models.clip.learner import opened
from jaxmerge.models.clip.modeling import image_features
from jaxmerge.studies.provenance import machine, versions

LAST = r"vision/(block_03|post_norm|projection)"


def measured(only: str, given: argparse.Namespace) -> dict[str, float]:
    """Seconds of one model, and of all factors in three ways."""
    model, rng = opened("mini"), np.random.default_rng(0)
    base = {n: jnp.asarray(p) for n, p in model.params.items() if n.startswith("vision/")}
    tuned = {n: p + 1e-3 * rng.normal(size=p.shape).astype(np.float32) for n, p in base.items()}
    side = model.config.vision.image
    images = jnp.asarray(rng.normal(size=(given.images, side, side, 3)), jnp.float32)
    factors = jnp.linspace(0.05, 1, given.factors)

    # what is no argument is a constant, and the compiler computes ahead what stands on constants
    def features(factor, base, tuned, images):
        folds = {"merged": jm.magmax(factor), "base": jm.keep_base()}
        method = jm.partition(folds, [(only, "merged"), (".*", "base")])
        return image_features(model.config, jm.merge(method, base, [tuned]), images)

    rest = base, tuned, images
    one = jax.jit(features)
    every = jax.jit(jax.vmap(features, (0, None, None, None)))
    mapped = jax.jit(lambda f, *rest: jax.lax.map(lambda x: features(x, *rest), f))
    alone = np.stack([one(f, *rest) for f in factors])
    for way in (every, mapped):
        np.testing.assert_allclose(way(factors, *rest), alone, atol=2e-5)
    spent = lambda run: best_of(run, given.repeat)["cpu_seconds"]
    seconds = {
        "one model": spent(lambda: one(factors[0], *rest)),
        "one by one": spent(lambda: [one(f, *rest) for f in factors]),
        "vmap": spent(lambda: every(factors, *rest)),
        "lax.map": spent(lambda: mapped(factors, *rest)),
    }
    ratios = {
        f"{k}, ratio": seconds[k] / seconds["one model"] / given.factors
        for k in ("one by one", "vmap", "lax.map")
    }
    return seconds | ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--factors", type=int, default=20)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report = {
        "command": "python experiments/bench/shared_evaluation.py",
        "factors": given.factors, "images": given.images,
        "every leaf merged": measured(".*", given),
        "the last of four blocks merged": measured(LAST, given),
        "machine": machine(), "versions": versions(),
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
