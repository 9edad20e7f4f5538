"""Golden figures of the continual experiments: do they survive a change to the last bit?

    python experiments/golden_continual.py --data DATA --save before.json
    python experiments/golden_continual.py --data DATA --compare before.json [--only clinc150 ...]

Every shipped experiment that runs on small data is run at two seeds with few examples, and one with
every strategy, start and form of training there is.  Kept are R, task-aware R, the factors, all
losses and a digest of the last weights of each stream.  Bits depend on the machine and on the
version of jax, so the file is made before a change and compared after it, on one machine.

What moving the loop onto the mechanism changed (``--only strategies``, two seeds; jax 0.10.2, CPU):

* the same bits in R, factors, losses and last weights: fine-tuning, independent, running and OPCM
  streams, probe, bfloat16, another schedule, MagMax, TIES, RandMix, EMA, zero-shot, joint;
* the same R and last weights, losses that differ by rounding: L2 (3e-8), feature distillation
  (2e-8); replay has the losses of its first task too, which it no longer takes from fine-tuning;
* the same R, losses and last weights that differ by rounding: accumulation (3e-7), LwF (5e-7), MAS
  (5e-7), MagMax's EWC (4e-4 of losses up to 1e4: its strength is 1e6);
* other definitions, so other figures: EWC by its authors' forms (no average over tasks), EWC with
  drawn labels (other draws).

The loop as it was (d601a08) against the mechanism as it is now (35f892a), R, task-aware R, factors,
metrics, losses and last weights:

* ``--only banking77``, ``scole``, ``fomo_schedules``: the same bits;
* ``--only clinc150``: the same bits but for EWC, which draws its labels from other keys: its R
  differs by at most 0.02, two sentences of a hundred;
* ``--only quickstart mini_images`` (on `mini`, batches of 8): the same R, task-aware R, factors and
  metrics; losses within 2e-6 and last weights differ by rounding, since 6768535 lays out products
  of few rows otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.cli.run import load
from jaxmerge.data.splits import few
from jaxmerge.studies.config import Experiment
from jaxmerge.studies.seed import run_seed
from jaxmerge.studies.settings import changed
from jaxmerge.training import checkpoint

HERE = Path(__file__).parent
SEEDS = (0, 1)
DIGITS = {"train": 8, "val": 2, "test": 4}
PLAIN = {"epochs": 2, "batch": 8}
JOINED = {"method": "lwf", "strength": 0.3, "heads": "joined"}
AVERAGED = {"method": "ewc_magmax", "running": False, "examples": 12}
EVERY = {
    "fine-tune": {"deploys": ["last model", "MagMax"]},
    "independent": {"start": "base", "deploys": ["last model", "MagMax", "TIES", "RandMix"]},
    "OPCM": {"start": "base", "deploys": ["OPCM"]},
    "running": {"start": "running", "running": "EMA", "deploys": ["EMA"]},
    "probe": {"methods": ["train_only"]},
    "l2": {"methods": [{"method": "l2", "strength": 0.5, "towards": "base"}]},
    "l2 last": {"methods": [{"method": "l2", "strength": 0.5, "first": False}]},
    "EWC true": {"methods": [{"method": "ewc", "labels": "expected", "examples": 12}]},
    "EWC sampled": {"methods": [{**AVERAGED, "labels": "sampled"}]},
    "EWC predicted": {"methods": [{"method": "ewc", "slots": "sum", "examples": 12}]},
    "EWC released": {"methods": ["ewc_magmax"]},
    "MAS": {"methods": [{"method": "mas", "strength": 0.5, "outputs": "all"}]},
    "LwF": {"methods": [JOINED]},
    "feature": {"methods": [{"method": "feat_kd", "unit": True, "first": False}]},
    "replay": {"methods": [{"method": "replay", "per_class": 3}]},
    "accumulate": {"training": {"accumulate": 4}},
    "accumulate LwF": {"methods": [JOINED], "training": {"accumulate": 2}},
    "bfloat16": {"training": {"dtype": "bfloat16"}},
    "schedule": {"training": {"warmup": 5, "weight_decay": 0.03, "clip": 0.7}},
}  # fmt: skip
MERGES = {
    "MagMax": {"method": "magmax", "factor": [0.3, 0.5, 1.0]},
    "EMA": {"method": "ema", "decay": 0.5},
    "TIES": {"method": "ties", "factor": [0.5, 1.0], "each": True},
    "RandMix": {"method": "randmix", "factor": 1.0},
    "OPCM": {"method": "opcm"},
}


def small(name: str, data: Path) -> Any:
    """A shipped experiment, cut down."""
    file = HERE / f"{name}.py"
    if name == "strategies":
        return toy()
    if name == "quickstart":
        from jaxmerge.cli import quickstart as module

        module.digits = cut(module.digits)
        return changed(module.Quickstart(), {**PLAIN, "tasks": 3, "model": "mini"})
    config = load(file)
    module = sys.modules[type(config).__module__]
    if hasattr(module, "digits"):
        module.digits = cut(module.digits)
    return changed(config, SETTINGS[name](data))


def toy() -> Any:
    """Every strategy on clouds of points, under a small network."""
    import jax.numpy as jnp

    sys.path.insert(0, str(HERE.parent / "tests"))
    import clouds

    def half(params, inputs):
        low = {n: p.astype(jnp.bfloat16) for n, p in params.items()}
        return clouds.features(low, inputs.astype(jnp.bfloat16)).astype(jnp.float32)

    @dataclasses.dataclass(frozen=True)
    class Toy(Experiment):
        def scenario(self, seed):
            return clouds.scenario(clouds.source())

        def learner(self, scenario):
            return clouds.learner()._replace(half=half)

    streams = {**EVERY, "probe": {"methods": [{"method": "train_only", "pattern": "b/kernel"}]}}
    return Toy(epochs=2, batch=8, lr=0.02, merges=MERGES, streams=streams)


def cut(digits: Any) -> Any:
    """A source with few examples of each class, cut once."""
    return digits if hasattr(digits, "small") else _Few(digits)


class _Few:
    small = True

    def __init__(self, digits: Any):
        self.digits = digits

    def __call__(self) -> Any:
        return few(self.digits(), DIGITS)


TEXT = lambda data: {
    "data": str(data), "epochs": 1, "batch": 16, "tasks": 3,
    "few": {"train": 1, "val": 1, "test": 1},
}  # fmt: skip
SETTINGS = {
    "clinc150": lambda data: {
        **TEXT(data), "streams": {"LwF": None}, "merges": {"OPCM": {"always": False}},
    },
    "banking77": TEXT,
    "fomo_schedules": lambda data: {**PLAIN, "tasks": 3},
    "scole": lambda data: {**PLAIN, "tasks": 4},
    "mini_images": lambda data: {
        **PLAIN, "data": str(data), "stream": "pacs", "epochs": 1,
        "few": {"train": 2, "val": 1, "test": 1},
    },
}  # fmt: skip
NAMES = ("strategies", "quickstart", *SETTINGS)


def digest(leaves: Any) -> str:
    """Of all leaves, by name."""
    hasher = hashlib.sha256()
    for n in sorted(leaves):
        hasher.update(n.encode() + np.asarray(leaves[n]).tobytes())
    return hasher.hexdigest()[:16]


def figures(name: str, data: Path) -> dict:
    """Stream -> what it gave, of all seeds."""
    config, result = small(name, data), {}
    config.check()
    plans = config.plans()
    learner = config.learner(config.tasks_of(SEEDS[0]))
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder)
            run, _ = run_seed(
                config.tasks_of(seed), learner, plans, seed=seed, how=config.how,
                baselines=config.baselines, store=store, batch=config.evaluation_batch,
            )  # fmt: skip
            for entry in run.entries:
                result[f"{seed} {entry.finetunes} {entry.label}"] = {
                    "R": entry.matrix, "aware": entry.aware, "factors": entry.factors,
                    "metrics": entry.metrics,
                }  # fmt: skip
            for plan in plans:
                tree, record = checkpoint.load(store / plan.name / "state.safetensors")
                last = {n: x for n, x in tree.items() if n.startswith("last/")}
                result[f"{seed} {plan.name}"] = {"losses": record["losses"], "last": digest(last)}
    return result


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two results differ, and by how much."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [k for k in one if k in other]
        lost = [f"{where}{k}: lost" for k in one if k not in other]  # a new metric is no difference
        return lost + [d for k in keys for d in differences(one[k], other[k], f"{where}{k} / ")]
    if one == other:
        return []
    try:
        a, b = np.array(one, float), np.array(other, float)
        return [f"{where} differs by up to {np.nanmax(np.abs(a - b)):.3g}"]
    except (ValueError, TypeError):
        return [f"{where} {one} != {other}"[:120]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    options = parser.parse_args()
    results, wrong = {}, 0
    for name in options.only:
        began = time.process_time()
        results[name] = json.loads(json.dumps(figures(name, options.data)))
        print(f"{name}: {time.process_time() - began:.0f} processor seconds", flush=True)
        if options.compare:
            before = json.loads(options.compare.read_text())[name]
            differ = differences(before, results[name])
            wrong += len(differ)
            print("\n".join(f"  {d}" for d in differ) or "  the same bits", flush=True)
        if options.save:
            previous = json.loads(options.save.read_text()) if options.save.exists() else {}
            options.save.write_text(json.dumps({**previous, **results}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
