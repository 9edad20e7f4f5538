"""Where leaves lie while they are merged: every registered method on eight devices, as a table.

    python experiments/placement.py                    # all methods: two minutes, no accelerator
    python experiments/placement.py --only ties,opcm   # the others keep the rows that they have

Eight fake devices of one CPU; a model of three leaves, a kernel [256, 512] among them, float32.
Three figures come from the compiled program of `jm.merge` on that kernel, cut over the devices
along its longer axis (as `jm.shard` cuts by default) and along its shorter one:

* gathered: what a device receives of entries by all-gather, all-to-all and permute, as a multiple
  of the whole leaf; a sum over devices (all-reduce) of more than a tenth of a leaf counts too, for
  it is an array that every device holds;
* temporaries: of the program, a device, as a multiple of the device's own part of the leaf.

Two come from calls that are run: whether every leaf of the result of `jm.merge`, and of a stream of
`jm.update`, lies as the base's does (on axes of any kind, automatic or explicit), and how many
programs the first call compiles for two shapes of leaves; a second call must compile none.

Writes `experiments/results/placement.json`; `readme.py` makes the table in docs/scaling.md of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "jax" not in sys.modules:  # the flags are read once
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "placement.json"
sys.path.insert(0, str(ROOT / "tests"))
import laws  # noqa: E402

import jaxmerge as jm  # noqa: E402

KERNEL, SMALL = (256, 512), (16, 32)
SHAPE = re.compile(r"(pred|[a-z]\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
MOVES = re.compile(r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce)(?:-start)?\(")
CALLS = {"dop": {"steps": 2}, "wudi": {"steps": 2}}  # a descent: a few of its steps
KEY = jax.random.key(0)


class Inputs:
    """Base, models and side information for a method: two kernels of one shape and a vector."""

    def __init__(self, name: str, shape: tuple[int, int]):
        case = laws.case_of(name)
        self.method = jm.get(name)(**CALLS[name]) if name in CALLS else case.method
        rng = np.random.default_rng(0)
        draw = lambda *s: rng.normal(size=s).astype(np.float32)
        like = {"a/kernel": shape, "b/kernel": shape, "norm/scale": shape[1:]}
        self.base = {n: draw(*s) for n, s in like.items()}
        moved = lambda: {n: x + 0.1 * draw(*x.shape) for n, x in self.base.items()}
        self.models = [moved() for _ in range(max(2, self.method.models[0]))]
        self.models = self.models[: self.method.models[1]]
        self.extras = None
        if self.method.needs:
            side = {k: {n: laws.SIDES[k](rng, x) for n, x in self.base.items()} for k in
                    self.method.needs}  # fmt: skip
            some = {k: {n: x for n, x in t.items() if x is not None} for k, t in side.items()}
            self.extras = [some] * len(self.models)

    def cut(self, axis: int, kind: AxisType = AxisType.Auto) -> tuple[dict, list]:
        """Base and models, kernels cut along an axis of theirs over all devices."""
        mesh = Mesh(np.array(jax.devices()[:8]), ("fsdp",), axis_types=(kind,))
        place = lambda x: NamedSharding(mesh, P(*[None] * axis * (x.ndim > 1), "fsdp"))
        there = lambda tree: {n: jax.device_put(x, place(x)) for n, x in tree.items()}
        return there(self.base), [there(m) for m in self.models]


def measured(name: str) -> dict[str, Any]:
    """The row of one method."""
    row: dict[str, Any] = {}
    for place, axis in (("longer", 1), ("shorter", 0)):
        row[place] = program(Inputs(name, KERNEL), axis)
    small = Inputs(name, SMALL)
    row["compiled"], row["again"] = compilations(small)
    row["kept"] = keeps(small, 1, AxisType.Auto) and keeps(small, 0, AxisType.Explicit)
    return row


def program(inputs: Inputs, axis: int) -> dict[str, float]:
    """Figures of the compiled merge of one kernel."""
    one = lambda tree: {"a/kernel": tree["a/kernel"]}
    base, models = inputs.cut(axis)
    sides = inputs.extras and [{k: one(t) for k, t in e.items() if "a/kernel" in t}
                               for e in inputs.extras]  # fmt: skip
    merge = lambda b, ms, key: jm.merge(inputs.method, b, ms, key=key, extras=sides)
    run = jax.jit(merge, out_shardings={"a/kernel": base["a/kernel"].sharding})
    compiled = run.lower(one(base), list(map(one, models)), KEY).compile()
    leaf = 4 * math.prod(KERNEL)
    moved = list(moves(compiled.as_text()))
    memory = compiled.memory_analysis()
    share = lambda n: round(n / leaf, 2)
    return {
        "gathered": share(sum(n for kind, n in moved if kind != "all-reduce")),
        "summed": share(sum(n for kind, n in moved if kind == "all-reduce")),
        "temporaries": round(memory.temp_size_in_bytes / (leaf / 8), 1),
    }


def moves(text: str) -> Iterator[tuple[str, int]]:
    """Kind and bytes of every collective of a compiled program."""
    for shapes, kind in MOVES.findall(text):
        yield kind, sum(size(*m) for m in SHAPE.findall(shapes))


def size(kind: str, shape: str) -> int:
    """Bytes of an array in the words of XLA."""
    bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def keeps(inputs: Inputs, axis: int, kind: AxisType) -> bool:
    """Whether the merged leaves lie as those of the base, merged at once (and one by one)."""
    base, models = inputs.cut(axis, kind)
    out = jm.merge(inputs.method, base, models, key=KEY, extras=inputs.extras)
    alike = lambda tree: all(tree[n].sharding == base[n].sharding for n in base)
    if kind is AxisType.Explicit:
        return alike(out)
    state = jm.init(inputs.method, base, key=KEY)
    for t, model in enumerate(models):
        side = inputs.extras[t] if inputs.extras else {}
        state = jm.update(inputs.method, state, base, model, **side)
    return alike(out) and alike(jm.merged(inputs.method, state, base))


def compilations(inputs: Inputs) -> tuple[int, int]:
    """Programs compiled by a first call and by a second one with other numbers."""
    base, models = inputs.cut(1)
    others = [{n: x * 2 for n, x in m.items()} for m in models]
    counts = []
    for given in (models, others):
        jax.block_until_ready(given)
        if given is models:
            jax.clear_caches()
        before = COUNT[0]
        jax.block_until_ready(
            jm.merge(inputs.method, base, given, key=KEY, extras=inputs.extras)
        )  # fmt: skip
        counts.append(COUNT[0] - before)
    return counts[0], counts[1]


COUNT = [0]


def count(name: str, seconds: float, **_: Any) -> None:
    """Listens to JAX: a program was compiled, or taken from the cache on disk."""
    COUNT[0] += name.endswith("backend_compile_duration")


def names() -> list[str]:
    """Every registered method, one example each."""
    return [n for n in (name for name, _ in laws.stages()) if n in jm.REGISTRY]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names of methods, with commas between")
    only = [n for n in parser.parse_args().only.split(",") if n]
    if unknown := [n for n in only if n not in jm.REGISTRY]:
        parser.error(f"--only: no method is called {', '.join(unknown)}")
    jax.monitoring.register_event_duration_secs_listener(count)
    rows = json.loads(RESULTS.read_text())["methods"] if RESULTS.exists() else {}
    rows = {n: r for n, r in rows.items() if n in names()}
    for name in only or names():
        rows[name] = measured(name)
        print(name, json.dumps(rows[name]), flush=True)
        report = {"jax": jax.__version__, "methods": dict(sorted(rows.items()))}
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
