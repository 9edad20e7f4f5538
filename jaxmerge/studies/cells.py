"""The result store: every cell of every run as one row of Parquet, for tables made from many runs.

A cell is one method on one stream in one seed: what `Entry` holds, with the settings that made it.

===========================  =======================================================================
column                       what
===========================  =======================================================================
key                          names the cell: all of the next columns that decide it
experiment, scenario         names
settings                     JSON of the settings that decide the training, without seed and order
stream, label, merge         the stream; the row of the table; the row without its fixed factor
method, factor               the merge as jaxmerge prints it, the factor in use at the end
fixed                        the factor, where each factor is a row of its own
seed, order_seed, order      of shuffles; of the order, null for the seed; the tasks as they came
tasks                        names, classes and counts of examples
matrix, matrix_aware         R[t][i], see `jaxmerge.studies.results`
accuracy, aware, ...          those of `jaxmerge.evaluation.definitions`; null: not measured
seconds                      of training the whole stream
version, device, made        of jaxmerge, where, when (UTC)
===========================  =======================================================================

A store is a folder; each finished run leaves one file, written as a whole or not at all, so many
processes may write at once, and any tool reads it (``polars.read_parquet("store/*.parquet")``).
Writing and reading Parquet needs pyarrow, ``pip install "jaxmerge[store]"``.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.continual.deploys import LAST
from jaxmerge.errors import UserError
from jaxmerge.evaluation import metrics
from jaxmerge.evaluation.definitions import NAMES as METRICS
from jaxmerge.io.untrusted import memory_at_most, parse_json, read_bytes
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.results import Entry, Results, SeedRun, Sweep, Task, summarize
from jaxmerge.training import checkpoint

ELSEWHERE = ("seed", "seeds", "order", "merges", "streams", "baselines")  # in columns of their own

Row = dict[str, Any]


def installed() -> bool:
    """Whether Parquet can be written here."""
    return importlib.util.find_spec("pyarrow") is not None


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError('Parquet needs pyarrow: pip install "jaxmerge[store]".') from None
    return pyarrow.parquet


def _schema() -> Any:
    import pyarrow as pa

    text, number, matrix = pa.string(), pa.float64(), pa.list_(pa.list_(pa.float64()))
    names = pa.list_(text)
    whole = pa.int64()
    task = pa.struct([("name", text), ("classes", names), *((s, whole) for s in SPLITS)])
    sweep = pa.struct(
        [("factors", pa.list_(number)), ("accuracy", pa.list_(number)), ("chosen", number)]
    )
    kinds = {
        **dict.fromkeys(("key", "experiment", "scenario", "settings"), text),
        **dict.fromkeys(("stream", "label", "merge", "method"), text),
        **{"factor": number, "fixed": number, "seed": whole, "order_seed": whole},
        "order": pa.list_(whole),
        **{"tasks": pa.list_(task), "matrix": matrix, "matrix_aware": matrix, "sweep": sweep},
        **dict.fromkeys((*METRICS, "seconds"), number),
        **dict.fromkeys(("version", "device", "made"), text),
    }
    return pa.schema(list(kinds.items()))


SPLITS = ("train", "val", "test")


# ------------------------------------------------------------ cells


def settings_of(recipe: Mapping[str, Any], stream: str) -> str:
    """The settings that decide how a stream learns, as JSON with sorted names."""
    plain = {k: v for k, v in recipe.items() if k not in ELSEWHERE}
    options = recipe.get("streams", {}).get(stream, {})
    plain["stream"] = {k: v for k, v in options.items() if k not in ("deploys", "vectors")}
    merge = read_by(options)
    if merge is not None:
        plain["stream"]["running"] = [merge, recipe.get("merges", {}).get(merge)]
    return json.dumps(to_plain(plain), sort_keys=True)


def read_by(options: Mapping[str, Any]) -> str | None:
    """The merge that the training of a stream starts from, or None."""
    if options.get("start") != "running":
        return None
    merges = [label for label in options.get("deploys", ()) if label != LAST.label]
    return options.get("running") or next(iter(merges), None)


def key(
    experiment: str, recipe: Mapping[str, Any], stream: str, merge: str, fixed: float | None
) -> str:
    """The name of a cell, the same before it is run and after."""
    options = dict(recipe.get("merges", {}).get(merge, {}))
    for name in ("always", "each"):
        options.pop(name, None)
    if fixed is not None:
        options["factor"] = fixed
    parts = [experiment, settings_of(recipe, stream), stream, merge, options]
    parts += [recipe.get("seed"), recipe.get("order")]
    return hashlib.sha256(json.dumps(to_plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def merge_of(entry: Entry) -> str:
    """The label without the factor that makes it a row of its own."""
    return entry.label.removesuffix("" if entry.fixed is None else f", factor {entry.fixed:g}")


def cells(results: Results) -> list[Row]:
    """Every entry of every seed as a row."""
    written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    device = f"{results.machine.get('device', '')} ({results.machine.get('backend', '')})"
    rows = []
    for run in results.seeds:
        recipe = {**results.recipe, "seed": run.seed}
        for e in run.entries:
            seconds = run.streams.get(e.finetunes, {}).get("training")
            rows.append(
                {
                    "key": key(results.experiment, recipe, e.finetunes, merge_of(e), e.fixed),
                    "experiment": results.experiment,
                    "scenario": results.scenario,
                    "settings": settings_of(recipe, e.finetunes),
                    "stream": e.finetunes,
                    "label": e.label,
                    "merge": merge_of(e),
                    "method": e.method,
                    "factor": e.factors[-1] if e.factors else None,
                    "fixed": e.fixed,
                    "seed": run.seed,
                    "order_seed": recipe.get("order"),
                    "order": run.order,
                    "tasks": to_plain(run.tasks),
                    "matrix": e.matrix,
                    "matrix_aware": e.aware,
                    "sweep": to_plain(e.sweep),
                    **{m: e.metrics.get(m) for m in METRICS},
                    "seconds": seconds,
                    "version": results.versions.get("jaxmerge", ""),
                    "device": device,
                    "made": written,
                }
            )
    return rows


# ------------------------------------------------------------ files


def write(folder: str | Path, rows: Sequence[Row], name: str) -> Path:
    """Write ``folder/<name>.parquet`` as a whole or not at all.

    Raises:
        UserError: pyarrow is not installed.
        OSError: the disk is full; an older file of that name stays.
    """
    parquet = _parquet()
    import pyarrow as pa

    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=_schema()), buffer)
    path = Path(folder) / f"{name}.parquet"
    checkpoint.replace(path, buffer.getvalue())
    return path


def read(path: str | Path) -> list[Row]:
    """The rows of a Parquet file, of a run (``results.json``), or of all of them in a folder.

    Raises:
        UserError: nothing to read there, a file that is damaged or of another layout.
    """
    path = Path(path)
    if path.is_dir():
        runs = sorted(path.rglob("results.json"))
        folders = {p.parent for p in runs}
        files = [p for p in sorted(path.rglob("*.parquet")) if p.parent not in folders]
        if not runs and not files:
            run = (path / "config.json").exists() and (path / "state").exists()
            hint = f": a run that is not finished; go on with --resume {path}" if run else ""
            raise UserError(f"{path} holds no results.json and no .parquet file{hint}.")
        return [row for p in (*runs, *files) for row in read(p)]
    if not path.exists():
        raise UserError(f"{path}: no such run or store.")
    if path.suffix == ".json":
        return cells(Results.from_json(path))
    return _read_parquet(path)


def _read_parquet(path: Path) -> list[Row]:
    """The rows of one Parquet file, checked; what unpacks to more than `MOST_BYTES` is refused."""
    parquet, schema = _parquet(), _schema()
    import pyarrow as pa

    data = read_bytes(path, MOST_FILE, "a file of a result store")
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        about = file.metadata
        missing = [n for n in schema.names if n not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path}: not a result store, it has no column {', '.join(missing)}.")
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if about.num_rows > MOST_ROWS or size > MOST_BYTES:
            raise UserError(
                f"{path}: {about.num_rows:,} rows, {size:,} bytes unpacked; a file of a store has "
                f"at most {MOST_ROWS:,} and {MOST_BYTES:,}."
            )
        rows, total = [], 0
        # a run of a billion equal values takes a few bytes, and no metadata tell without a risk
        with memory_at_most(4 * MOST_BYTES):
            for batch in file.iter_batches(BATCH, columns=schema.names, use_threads=False):
                total += batch.nbytes
                if total > MOST_BYTES:
                    raise UserError(f"{path} unpacks to more than {MOST_BYTES:,} bytes.")
                table = pa.Table.from_batches([batch]).select(schema.names)
                rows += table.cast(schema).to_pylist()
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        text = isinstance(error, UnicodeDecodeError)
        reason = "text that is not UTF-8" if text else str(error).splitlines()[0][:160]
        raise UserError(f"{path}: not a Parquet file of results ({reason}).") from None
    if not rows:
        raise UserError(f"{path} holds no rows.")
    for i, row in enumerate(rows):
        _check_row(row, f"{path}, row {i}")
    return rows


MOST_FILE, MOST_BYTES = 64 << 20, 512 << 20  # of one file, packed and unpacked
MOST_ROWS, BATCH = 1_000_000, 256
OPTIONAL = ("factor", "fixed", "order_seed", "sweep", "seconds", *METRICS)


def _check_row(row: Row, where: str) -> None:
    empty = [k for k, v in row.items() if v is None and k not in OPTIONAL]
    if empty:
        raise UserError(f"{where} has no {', '.join(empty)}.")
    parse_json(row["settings"], f"{where}: settings")
    many = len(row["matrix"])
    for k in ("matrix", "matrix_aware"):
        if any(r is None or len(r) != many for r in row[k]) or len(row[k]) != many or not many:
            raise UserError(f"{where}: {k} is not {many or 1} by {many or 1}.")
    if any(t is None or None in t.values() or None in t["classes"] for t in row["tasks"]):
        raise UserError(f"{where}: a task lacks its name, its classes or a count.")
    if None in row["order"]:
        raise UserError(f"{where}: order has a hole.")
    sweep = row["sweep"]
    if sweep is not None and any(v is None or v == [] for v in sweep.values()):
        raise UserError(f"{where}: sweep lacks its factors, accuracies or choice.")


# ------------------------------------------------------------ back to results


def gather(rows: Iterable[Row]) -> dict[str, Results]:
    """Rows of many runs as results: one for each experiment, scenario and group of settings.

    Cells with the same key count once, the last made.  Names say in which settings results of one
    experiment differ: "toy, lr 0.001".  Seeds and orders are the runs over which means are taken.
    """
    latest = {row["key"]: row for row in sorted(rows, key=lambda r: r["made"])}
    latest = {row["key"]: row for row in _apart(list(latest.values()))}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in latest.values():
        groups.setdefault((row["experiment"], row["scenario"], _shared(row)), []).append(row)
    differ = _differing([k for k in groups])
    results_by_name: dict[str, Results] = {}
    for group, members in groups.items():
        results = _results(members)
        name = ", ".join([group[0], *differ[group]])
        results.experiment = name
        results_by_name[name] = results
    return results_by_name


def _apart(rows: Sequence[Row]) -> list[Row]:
    """Rows whose stream was run under several settings of its own, the stream named by them.

    "L2" with two strengths becomes "L2, methods.0.strength 0.1" and "... 1".
    """
    own: dict[tuple[str, str, str, str], dict[str, dict[str, Any]]] = {}
    place = lambda row: (row["experiment"], row["scenario"], _shared(row), row["stream"])
    mine = lambda row: flat(json.loads(row["settings"]).get("stream", {}))
    for row in rows:
        settings = mine(row)
        own.setdefault(place(row), {})[json.dumps(settings, sort_keys=True)] = settings
    result = []
    for row in rows:
        every = list(own[place(row)].values())
        settings = mine(row)
        words = [
            f"{k} {v}" for k, v in settings.items() if any(other.get(k) != v for other in every)
        ]
        name = ", ".join([row["stream"], *words])
        result.append({**row, "stream": name} if words else row)
    return result


def flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted names.

    >>> flat({"a": {"b": 1}, "c": [2, {"d": None}]})
    {'a.b': 1, 'c.0': 2, 'c.1.d': None}
    """
    if isinstance(settings, Mapping | list):
        pairs = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
        return {
            k: v
            for key, inner in pairs
            for k, v in flat(inner, f"{name}.{key}" if name else str(key)).items()
        }
    return {name: settings}


def _shared(row: Row) -> str:
    """The settings that all streams of a run have in common."""
    settings = json.loads(row["settings"])
    settings.pop("stream", None)
    return json.dumps(settings, sort_keys=True)


def _differing(groups: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], list[str]]:
    """For each group the settings, as words, in which it differs from others of its experiment."""
    differences = {}
    for name, scenario, shared in groups:
        others = [(s, json.loads(x)) for n, s, x in groups if n == name]
        mine = json.loads(shared)
        words = [
            f"{k} {v if isinstance(v, str | int | float) else json.dumps(v)}"
            for k, v in mine.items()
            if any(other.get(k) != v for _, other in others)
        ]
        if not words and any(s != scenario for s, _ in others):
            words = [scenario]
        differences[name, scenario, shared] = words
    return differences


def _results(rows: Sequence[Row]) -> Results:
    runs: dict[tuple[int, int], SeedRun] = {}
    for row in rows:
        at = (row["seed"], -1 if row["order_seed"] is None else row["order_seed"])
        tasks = [Task(**t) for t in row["tasks"]]
        run = runs.setdefault(at, SeedRun(row["seed"], row["order"], tasks, [], [], {}))
        matrix = np.array(row["matrix"], float)
        factors: list[float | None] | None = None
        if row["factor"] is not None:
            factors = [*[None] * (len(matrix) - 1), row["factor"]]
        run.entries.append(
            Entry(
                row["label"],
                row["stream"],
                row["method"],
                row["matrix"],
                row["matrix_aware"],
                to_plain(metrics.over_time(matrix)),
                {m: row.get(m) for m in METRICS},
                Sweep(**row["sweep"]) if row["sweep"] else None,
                factors,
                row["fixed"],
            )
        )
        if row["seconds"] is not None:
            run.streams.setdefault(row["stream"], {})["training"] = row["seconds"]
    seeds = [runs[k] for k in sorted(runs)]
    summary = summarize(seeds)
    ends = {"none": 0, "joint": 2}  # zero-shot first, joint fine-tuning last
    summary.sort(key=lambda s: ends.get(s.finetunes, 1))
    first = rows[0]
    recipe = json.loads(first["settings"])
    classes = sorted({c for run in seeds for t in run.tasks for c in t.classes})
    seconds = [s["training"] for run in seeds for s in run.streams.values()]
    return Results(
        experiment=first["experiment"],
        scenario=first["scenario"],
        classes=classes,
        recipe={k: v for k, v in recipe.items() if k != "stream"},
        seeds=seeds,
        summary=summary,
        versions={"jaxmerge": ", ".join(sorted({r["version"] for r in rows}))},
        machine={"device": ", ".join(sorted({r["device"] for r in rows}))},
        seconds={"training": sum(seconds), "total": sum(seconds)},
    )
