"""What the tables of `split_mnist.py` and `permuted_mnist.py` share: choose settings, run, store.

A method's settings are chosen on validation data (the last 5,000 training images, which never
train) of another seed, then it runs on the test images with the seeds of the table.  The stages of
a stream are compiled once for a method and called for every setting and seed, since settings are
traced; a long run says how far it is.  On an accelerator the seeds that are left run at once, by
`vmap`.  The result file is written after every seed, or when those are done: a run that is killed,
or is given more seeds, goes on, and a cell whose settings or protocol have changed runs anew.

What a result file says of how it was run (command, seeds, machine, versions) holds for every row
that does not say otherwise itself: a later run of some rows leaves the others as they are.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from spread import deviation

from jaxmerge.continual import drivers, stages
from jaxmerge.continual.records import LAST
from jaxmerge.continual.seeds import over, stacked
from jaxmerge.continual.stream_records import Setup, Stream
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training import checkpoint

SCHEMA = "jaxmerge.continual_table/1"
TUNING_SEED = 100
HOW = ("command", "seeds", "machine", "versions")  # of a row, its own or the file's


class Cell(NamedTuple):
    """A row of a table.

    Attributes:
        scenario, method: labels.
        setups: the settings to choose from, as complete setups.
        stream: ``(seed, validation) -> Stream``; validation or test images are its groups.
        metric: of the problem, averaged over the groups after the last task.
        protocol: data, batch and network, in words.
        backward: score after every task, for the backward transfer, not after the last one alone.
        deployed: label of the deployment that is scored, the last model or a merge of the setups.
    """

    scenario: str
    method: str
    setups: tuple[Setup, ...]
    stream: Callable[[int, bool], Stream]
    metric: str
    protocol: str
    backward: bool = False
    deployed: str = LAST


def options(**defaults: Any) -> dict[str, Any]:
    """``key=value`` from the command line over defaults, whose types they take.

    Whole numbers start at 1, or at 0 where that is the default.

    Raises:
        SystemExit: settings that are not known or not of their type, all in one line.
    """
    values, wrong = dict(defaults), []
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key not in defaults:
            wrong.append(f"No setting {key!r}; there are: {', '.join(defaults)}.")
        elif isinstance(defaults[key], int):
            least = min(1, defaults[key])
            values[key] = int(value) if value.isascii() and value.isdigit() else least - 1
            if values[key] < least:
                wrong.append(f"{key}={value}: expected a whole number, at least {least}.")
        elif isinstance(defaults[key], list):
            values[key] = re.split(",(?! )", value)  # a comma within a label has a space behind it
        else:
            values[key] = value
    if "data" in values and not Path(values["data"]).is_dir():
        wrong.append(f"data={values['data']}: no such folder; the data set's files lie in it.")
    folder = Path(values.get("out") or ".").absolute().parent
    if not folder.is_dir():
        wrong.append(f"out={values['out']}: no folder {folder}; make it first.")
    if wrong:
        raise SystemExit(" ".join(wrong))
    return values


def known(what: str, given: Sequence[str], there: Iterable[str]) -> None:
    """Refuse names that there are not.

    Raises:
        SystemExit: all of them in one line, with those that there are.
    """
    there = list(dict.fromkeys(there))
    if strange := [name for name in given if name not in there]:
        raise SystemExit(f"No {what} {', '.join(strange)}; there are: {', '.join(there)}.")


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result file, each with how it was run."""
    common = {k: report[k] for k in HOW if k in report}
    return [common | row for row in report["rows"]]


def usual(rows: Sequence[dict[str, Any]]) -> int:
    """The number of seeds that most rows of a table are of."""
    counts = Counter(len(r["seeds"]) for r in rows)
    return max(counts, key=lambda n: (counts[n], n))


def noted(row: dict[str, Any], seeds: int) -> str:
    """What stands behind a figure that is of another number of seeds than its table."""
    ran, asked = len(row["accuracy"]), len(row["seeds"])
    if ran < asked:
        return f" ({ran} of {asked} seeds)"
    return "" if ran == seeds else f" ({counted(ran)})"


def counted(seeds: int) -> str:
    """So many seeds, in words."""
    return f"{seeds} seed{'s' * (seeds != 1)}"


def mnist(folder: str, images: int = 55_000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images uint8, labels int32 of "train", "validation", "test": of MNIST or Fashion-MNIST.

    Args:
        folder: of one data set: NAME_train.npz and NAME_test.npz.
        images: so many of the 55,000 that are not for validation.

    Raises:
        SystemExit: no folder is given, or it lacks one of the files or has several.
    """
    if not folder:
        raise SystemExit("data= is missing: give the folder of NAME_train.npz and NAME_test.npz.")

    def read(part):
        files = sorted(Path(folder).glob(f"*_{part}.npz"))
        if len(files) != 1:
            raise SystemExit(f"data={folder}: {len(files)} files *_{part}.npz, expected one.")
        with np.load(files[0]) as z:
            return z["images"], z["labels"].astype(np.int32)

    (pictures, labels), test = read("train"), read("test")
    parts = {"train": slice(0, min(images, 55_000)), "validation": slice(-5000, None)}
    return {k: (pictures[s], labels[s]) for k, s in parts.items()} | {"test": test}


def data_set(read: Callable[..., Any], folder: str | Path) -> Any:
    """What a reader gives for a folder; what is wrong with its files is one line.

    Raises:
        SystemExit: no folder is given, or its files cannot be read.
    """
    if not str(folder):
        raise SystemExit("data= is missing: give the folder of the data set.")
    try:
        return read(folder)
    except (OSError, ValueError) as error:
        raise SystemExit(f"data={folder}: {error}") from None


def fill(page: Path, blocks: dict[str, str]) -> None:
    """Write texts into a page of the documentation, each between its two marks."""
    text = page.read_text(encoding="utf-8")
    for mark, block in blocks.items():
        before, _, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition(f"<!-- /{mark} -->\n")
        if not end:
            raise SystemExit(f"{page} has no <!-- {mark} --> ... <!-- /{mark} -->.")
        text = f"{before}<!-- {mark} -->\n{block}\n<!-- /{mark} -->\n{after}"
    page.write_text(text, encoding="utf-8")


def described(setup: Setup) -> str:
    """Optimiser, methods and merges of a setup."""
    parts = [setup.optimiser, *setup.methods, *setup.merges.values()]
    return " + ".join(map(repr, parts))


def alike(stream: Stream, other: Stream) -> Stream:
    """The stream, its groups filled up to the shapes of another: one compilation serves both."""
    pair: tuple[Any, Any] = (stream.groups, other.groups)
    one, two = pair
    examples = max(len(one.targets), len(two.targets))
    rows = max(one.rows.shape[1], two.rows.shape[1])

    def fill(x, size, axis):
        room = [(0, 0)] * x.ndim
        room[axis] = (0, size - x.shape[axis])
        return np.pad(x, room)

    groups = one._replace(
        inputs=fill(one.inputs, examples, 0), targets=fill(one.targets, examples, 0),
        rows=fill(one.rows, rows, 1), weight=fill(one.weight, rows, 1),
    )  # fmt: skip
    return stream._replace(groups=groups)


def run(cell: Cell, seeds: list[int], row: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Choose the setting of a cell and run it with all seeds; its row after each of them.

    Args:
        row: as far as it was run before: its setting is chosen, its seeds are not run again.
    """

    def scores(setup: Setup, seed: int, validation: bool) -> tuple[float, float]:
        stream = alike(cell.stream(seed, validation), cell.stream(seed, not validation))
        every = 1 if cell.backward else stream.tasks
        watch = progress(f"{cell.scenario} {cell.method}, seed {seed}", stream.tasks)
        result = drivers.run(setup, stream, jax.random.key(seed), watch=watch, score_every=every)
        whole = all(np.isfinite(p).all() for p in jax.tree.leaves(result.state.params))
        return summed(cell, np.asarray(result.R[cell.deployed][cell.metric]), whole)

    wall, processor = time.perf_counter(), time.process_time()
    if row is None:
        tried = []
        if len(cell.setups) > 1:
            tried = [scores(s, TUNING_SEED, True)[0] for s in cell.setups]
        best = cell.setups[int(np.argmax(np.nan_to_num(tried))) if tried else 0]
        row = {
            "scenario": cell.scenario,
            "method": cell.method,
            "protocol": cell.protocol,
            "setting": described(best),
            "tried": {described(s): a for s, a in zip(cell.setups, tried, strict=False)},
            "memory": remembered(best, cell.stream(seeds[0], False)),
            "accuracy": [],
            **({"backward transfer": []} if cell.backward else {}),
            "seconds": 0.0,
            "processor_seconds": 0.0,
        }
    best = next(s for s in cell.setups if described(s) == row["setting"])
    left = seeds[len(row["accuracy"]) :]
    at_once = 1 if jax.default_backend() == "cpu" else len(left)
    for some in (left[i : i + at_once] for i in range(0, len(left), at_once)):
        figures = [scores(best, *some, False)] if at_once == 1 else together(cell, best, some)
        row["accuracy"] += [accuracy for accuracy, _ in figures]
        if cell.backward:
            row["backward transfer"] += [backward for _, backward in figures]
        row["seconds"] += time.perf_counter() - wall
        row["processor_seconds"] += time.process_time() - processor
        wall, processor = time.perf_counter(), time.process_time()
        yield row


def summed(cell: Cell, R: np.ndarray, whole: bool) -> tuple[float, float]:
    """Accuracy at the end and backward transfer, means over the groups.

    Args:
        R: [tasks, groups].
        whole: all weights are finite; a run that diverged has no accuracy.
    """
    last = float(np.mean(R[-1])) if whole else float("nan")
    return last, float(np.mean(R[-1, :-1] - np.diagonal(R)[:-1])) if cell.backward else 0.0


def together(cell: Cell, setup: Setup, seeds: Sequence[int]) -> list[tuple[float, float]]:
    """Accuracy and backward transfer of several seeds, which run at once."""
    whole, axes = stacked([cell.stream(seed, False) for seed in seeds])
    every = 1 if cell.backward else whole.rows.shape[1]

    def one(stream: Stream, key: Any) -> tuple[Any, Any]:
        result = drivers.program(setup, stream, key, score_every=every)
        return result.R[cell.deployed][cell.metric], result.finite[-1]

    keys = jax.vmap(jax.random.key)(np.array(seeds))
    all_R, finite = jax.jit(lambda s, k: over(one, axes, s, k))(whole, keys)
    return [summed(cell, np.asarray(R), bool(f)) for R, f in zip(all_R, finite, strict=True)]


def progress(what: str, tasks: int, every: float = 60.0) -> Callable[[int, Any, dict], None]:
    """Says how far a long run is, at most once in `every` seconds; short ones say nothing."""
    said = [time.perf_counter()]

    def watch(t: int, state: Any, R: dict) -> None:
        if time.perf_counter() - said[0] > every and t + 1 < tasks:
            said[0] = time.perf_counter()
            print(f"{what}: {t + 1} of {tasks} tasks", file=sys.stderr, flush=True)

    return watch


def remembered(setup: Setup, stream: Stream) -> float:
    """What passes from task to task beside the model itself, in models."""
    base = jax.eval_shape(setup.model.build().init, jax.random.key(0))
    state = jax.eval_shape(stages.create, setup, stream, jax.random.key(0))
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.ndim)
    return (size((state.params, state.memory, state.merges)) - size(base)) / size(base)


def begun(cell: Cell, row: dict[str, Any] | None) -> dict[str, Any] | None:
    """A stored row, if it is this cell's: its settings, its protocol, what is scored."""
    if row is None or row["protocol"] != cell.protocol:
        return None
    settings = [described(s) for s in cell.setups]
    stored = list(row["tried"]) if len(settings) > 1 else [row["setting"]]
    return row if stored == settings and cell.backward <= ("backward transfer" in row) else None


def table(
    experiment: str, cells: list[Cell], seeds: list[int], out: str, arguments: str,
    reasons: dict[str, dict[str, str]] | None = None, methods: Sequence[str] = (),
) -> None:  # fmt: skip
    """Run what is not in the result file yet.

    Args:
        cells: of all methods.
        methods: those to run; none: all.
        reasons: scenario -> method -> why it has no cell there, for the page.
    """
    known("method", methods, (c.method for c in cells))
    path = Path(out)
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows = {(r["scenario"], r["method"]): r for r in stored["rows"]}
    every = {k: list(v) for k, v in stored.get("methods", {}).items()}
    for cell in cells:
        own = every.setdefault(cell.scenario, [])
        own += [] if cell.method in own else [cell.method]

    def write(**changed):
        stored.update(changed, methods=every)
        checkpoint.replace(path, json.dumps(stored, indent=1) + "\n")

    command = ["python", f"experiments/{experiment}.py", "data=DATA", *arguments.split()]
    how = (shlex.join(command), seeds, machine(), versions())
    own = dict(zip(HOW, how, strict=True))
    common = own | {k: stored[k] for k in HOW if k in stored}  # of the rows that are there
    for cell in cells:
        if methods and cell.method not in methods:
            continue
        at = cell.scenario, cell.method
        before = begun(cell, rows.get(at))
        if before is not None and len(before["accuracy"]) >= len(seeds):
            continue
        for row in run(cell, seeds, before):
            rows[at] = {k: v for k, v in row.items() if k not in HOW}
            rows[at] |= {k: v for k, v in own.items() if v != common[k]}
            write(
                schema=SCHEMA,
                experiment=experiment,
                tuning_seed=TUNING_SEED,
                **common,
                reasons=reasons or {},
                rows=list(rows.values()),
            )
            mean, spread = 100 * np.mean(row["accuracy"]), 100 * deviation(row["accuracy"])
            backward = 100 * np.mean(row.get("backward transfer", [0.0]))
            print(
                f"{row['scenario']:8} {row['method']:14} {len(row['accuracy'])} seeds: "
                f"{mean:5.2f} +- {spread:4.2f} "
                + f"BWT {backward:5.2f} " * cell.backward
                + f"{row['processor_seconds']:5.0f} s  {row['setting']}",
                flush=True,
            )
    if rows and every != stored.get("methods"):
        write()
