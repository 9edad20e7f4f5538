"""The result store: every cell of every run as a row of Parquet, for tables made from many runs.

Each finished run leaves one file, written as a whole or not at all, so many processes may write at
once, and any tool reads it (``polars.read_parquet("store/*.parquet")``).  The columns are those of
`jaxmerge.studies.cells`.  Writing and reading Parquet needs pyarrow,
``pip install "jaxmerge[store]"``.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError
from jaxmerge.evaluation.definitions import NAMES as METRICS
from jaxmerge.io.buckets import fetched, url_of
from jaxmerge.io.untrusted import check_printable, memory_at_most, parse_json, read_bytes
from jaxmerge.studies.cells import Row, cells
from jaxmerge.studies.results import Results
from jaxmerge.training import checkpoint


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

    Args:
        path: a file, a folder, or a URL of one.

    Raises:
        UserError: nothing to read there, a file that is damaged or of another layout.

    >>> read("no such run")
    Traceback (most recent call last):
    jaxmerge.errors.UserError: no such run: no such run or store.
    """
    if (url := url_of(path)) is not None:
        path = fetched(url) or path
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
        rows = cells(Results.from_json(path))
        if not rows:
            raise UserError(f"{path} holds no figures: its seeds have no entries.")
        return rows
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
    check_printable(row, where)
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
