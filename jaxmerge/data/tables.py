"""Text sources from tables: a CSV, TSV or JSON-lines file with a column of texts and one of labels.

    source = table("reviews.csv", text="review", label="stars",
                   classes={"1": "a bad review", "5": "a good review"})

One file is split here, the same share of every class; a column may say the split (``split=``), or
several files may be the splits: ``table({"train": "a.csv", "test": "b.csv"}, ...)``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmerge.data.folders import tidy
from jaxmerge.data.sources import SPLITS, Source, Texts, as_texts, renamed, split_name
from jaxmerge.data.splits import complete
from jaxmerge.data.text import MAX_BYTES, TEMPLATES
from jaxmerge.errors import UserError, closest
from jaxmerge.io.untrusted import check_regular, parse_json, read_bytes

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
LINES = (".jsonl", ".ndjson")


def table(
    path: str | Path | Mapping[str, str | Path],
    text: str = "text",
    label: str = "label",
    *,
    split: str | None = None,
    domain: str | None = None,
    classes: Mapping[str, str] | Sequence[str] | None = None,
    templates: str | Sequence[str] = TEMPLATES,
    name: str | None = None,
    val: float = 0.1,
    test: float = 0.2,
    per_class: int | None = None,
    seed: int = 0,
) -> Source:
    """Read labelled texts.

    Args:
        path: a file (.csv, .tsv, .jsonl), or split -> file.
        text, label: names of the columns.
        split: column that says "train", "val" or "test" ("training", "validation", "dev" and their
            like are known too).
        domain: column that names a domain, for domain-incremental streams.
        classes: names for prompts in place of the labels: label -> name, or one name for each label
            in alphabetic order (that of the labels' positions).
        templates: prompts for the head, each with one ``{}``; a string is one of them.
        name: what reports call it; the file's name by default.
        val, test: shares of the training examples of every class held out where there is no such
            split.
        per_class: keep at most so many examples of every class in every split.
        seed: of what is held out or kept.

    Raises:
        FileNotFoundError: no such file.
        UserError: a column that is not there, rows without text or label, labels without a name,
            a split that is none.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "reviews.csv"
    >>> lines = [f"{word} thing,{stars}" for word, stars in (("bad", 1), ("fine", 5)) * 5]
    >>> _ = file.write_text("\\n".join(["review,stars", *lines]))
    >>> source = table(file, text="review", label="stars", classes={"1": "a bad review"})
    >>> source.classes, source.inputs[[0]]
    (('a bad review', '5'), ['bad thing'])
    """
    files = dict(path) if isinstance(path, Mapping) else {None: path}
    if unknown := [s for s in files if s is not None and split_name(str(s)) not in SPLITS]:
        raise UserError(f"No split is named {unknown[0]!r}: {closest(str(unknown[0]), SPLITS)}")
    name = name or Path(next(iter(files.values()))).stem
    columns = [c for c in (text, label, split, domain) if c is not None]
    rows: list[dict[str, str]] = []
    of: dict[str, list[int]] = {}
    for part, file in files.items():
        for row in _rows(Path(file), columns):
            where = split_name(part or (row[split] if split else "train"))
            of.setdefault(where, []).append(len(rows))
            rows.append(row)
    wrong = sorted(set(of) - set(SPLITS))
    if wrong or "train" not in of:
        raise UserError(
            f"{name}: found the splits {', '.join(sorted(of))}"
            + f" in column {split!r}" * (split is not None)
            + "; expected train, and where they are there val and test."
        )
    label_names, labels = np.unique([row[label] for row in rows], return_inverse=True)
    names = renamed([tidy(c) for c in label_names], classes, name, keys=list(label_names))
    groups, domains, domain_names = labels, None, ()
    if domain is not None:
        kinds, domains = np.unique([row[domain] for row in rows], return_inverse=True)
        domain_names = tuple(map(str, kinds))
        groups, domains = labels + len(names) * domains, domains.astype(np.int32)
    splits = {s: np.array(at) for s, at in of.items()}
    return Source(
        name=name,
        inputs=Texts([row[text] for row in rows]),
        labels=labels.astype(np.int32),
        classes=names,
        templates=as_texts(templates),
        splits=complete(splits, groups, val=val, test=test, per_class=per_class, seed=seed),
        domains=domains,
        domain_names=domain_names,
    )


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The wanted columns of a file, stripped, nothing of them empty."""
    if not path.is_file():
        if path.exists():
            check_regular(path, "a table is a file")
        raise FileNotFoundError(f"There is no table {path}.")
    ending = path.suffix.lower()
    if ending not in (*DELIMITERS, *LINES):
        known = ", ".join((*DELIMITERS, *LINES))
        raise UserError(f"{path}: found the ending {ending!r}, expected one of {known}.")
    try:
        content = read_bytes(path, MAX_BYTES, "a table").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    if ending in LINES:
        lines = enumerate(content.split("\n"), 1)
        raw = [(at, parse_json(line, f"{path}, line {at}")) for at, line in lines if line.strip()]
        have = list(dict.fromkeys(key for _, row in raw for key in row))
    else:
        csv.field_size_limit(MAX_BYTES)  # texts may be long
        reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=DELIMITERS[ending])
        try:
            have = list(reader.fieldnames or [])
            raw = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: no table ({error}).") from None
    missing = [c for c in columns if c not in have]
    if missing or not raw:
        what = f"no column {', '.join(map(repr, missing))}" if missing else "no rows"
        shown = ", ".join(map(repr, have[:12]))
        has = f"the columns {shown}" if have else "no column" if raw else "no line"
        other = next((d for d in ";\t|" if len(have) == 1 and d in have[0]), "")
        how = "name it .tsv" if other == "\t" else "write it with commas"
        hint = f" Is it separated by {other!r}? Then {how}." if other else ""
        raise UserError(f"{path}: {what}; it has {has}.{hint}")
    rows = [
        (at, {c: "" if row.get(c) is None else str(row[c]).strip() for c in columns})
        for at, row in raw
    ]
    empty = [at for at, row in rows if not all(row.values())]
    if empty:
        more = ", ..." if len(empty) > 8 else ""
        raise UserError(
            f"{path}: {len(empty)} row{'s lack' if len(empty) > 1 else ' lacks'} one of "
            f"{', '.join(columns)}, on line"
            f"{'s' if len(empty) > 1 else ''} {', '.join(map(str, empty[:8]))}{more}."
        )
    return [row for _, row in rows]
