"""Text sources read from the files in which the data sets are published.

* CLINC150 (Larson et al., EMNLP 2019): ``data_full.json``, 150 intents in ten domains.
* Banking77 (Casanueva et al., 2020): ``train.csv`` and ``test.csv``, 77 intents.
* sentence classification (TREC, SST-2, CR, MPQA, Subj): one "<label> <text>" a line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmerge.data.sources import Source, Texts, as_texts
from jaxmerge.data.splits import hold_out
from jaxmerge.errors import UserError, closest
from jaxmerge.io.untrusted import read_bytes, read_json, read_text

MAX_BYTES = 1 << 30  # bytes of a file of sentences
TEMPLATES = ("{}", "a question about {}", "the topic is {}")


def clinc150(folder: str | Path, templates: str | Sequence[str] = TEMPLATES) -> Source:
    """The 150 in-scope intents, in the order of their ten domains, official splits.

    Args:
        folder: where the files lie.
        templates: prompts for the zero-shot head, with one ``{}`` each.

    Raises:
        FileNotFoundError: a file is missing; names all that are.
        ValueError: files that do not hold what they should.

    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> data = {split: [["hi there", "greeting"]] for split in ("train", "val", "test")}
    >>> for name, content in (("data_full", data), ("domains", {"small talk": ["greeting"]})):
    ...     _ = (folder / f"{name}.json").write_text(json.dumps(content))
    >>> clinc150(folder).classes
    ('greeting',)
    """
    paths = _there("clinc150", folder, ("data_full.json", "domains.json"))
    data = read_json(paths[0], most=MAX_BYTES)
    lacking = [s for s in ("train", "val", "test") if s not in data]
    if lacking:
        raise UserError(
            f"{paths[0]} lacks {', '.join(lacking)}; it holds {', '.join(list(data)[:8])}."
        )
    for split in ("train", "val", "test"):
        if not _strings_of(data[split], 2):
            raise UserError(f"{paths[0]}: {split} must be a list of [text, intent].")
    classes = [intent for intents in _domains(paths[1]).values() for intent in intents]
    texts, labels, splits = [], [], {}
    at = {c: i for i, c in enumerate(classes)}
    for split in ("train", "val", "test"):
        first = len(texts)
        texts += [text for text, _ in data[split]]
        labels += _positions([intent for _, intent in data[split]], at, paths[0])
        splits[split] = np.arange(first, len(texts))
    names = tuple(map(_spelled, classes))
    return Source(
        "clinc150", Texts(texts), np.array(labels, np.int32), names, as_texts(templates), splits
    )


def clinc150_domains(folder: str | Path) -> dict[str, tuple[str, ...]]:
    """The ten domains of CLINC150 over its intents, as ``domains.json`` has them.

    Args:
        folder: where the files lie.

    Returns:
        Domain -> its intents, under the names of `clinc150`, a level of
        `jaxmerge.data.streams.trees.hierarchy`.

    Raises:
        FileNotFoundError, ValueError: as in `clinc150`.

    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "domains.json").write_text(json.dumps({"small_talk": ["who_made_you"]}))
    >>> clinc150_domains(folder)
    {'small talk': ('who made you',)}
    """
    (path,) = _there("clinc150", folder, ("domains.json",))
    return {_spelled(d): tuple(map(_spelled, v)) for d, v in _domains(path).items()}


def _domains(path: Path) -> dict[str, list[str]]:
    """What ``domains.json`` says, as it is spelled there."""
    domains = read_json(path, most=MAX_BYTES)
    if not all(_strings_of([v]) for v in domains.values()):
        raise UserError(f"{path} must map every domain to a list of intents.")
    return domains


def _spelled(name: str) -> str:
    return name.replace("_", " ")


def banking77(
    folder: str | Path, templates: str | Sequence[str] = TEMPLATES, val: float = 0.1, seed: int = 0
) -> Source:
    """77 intents, in alphabetic order; `val` of the training examples are held out.

    Args:
        folder: where the files lie.
        templates: prompts for the zero-shot head, with one ``{}`` each.
        val: share of the training examples of every class that is held out, in [0, 1).
        seed: decides which.

    Raises:
        FileNotFoundError: a file is missing; names all that are.
        ValueError: files without the columns "text" and "category".

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> lines = ["text,category", *(f"where is it {i},card_arrival" for i in range(4))]
    >>> for name in ("train.csv", "test.csv"):
    ...     _ = (folder / name).write_text(chr(10).join(lines))
    >>> source = banking77(folder, val=0.25)
    >>> source.classes, len(source.splits["val"])
    (('card arrival',), 1)
    """
    texts, names, counts = [], [], []
    for path in _there("banking77", folder, ("train.csv", "test.csv")):
        reader = csv.DictReader(io.StringIO(read_text(path, MAX_BYTES), newline=""))
        try:
            rows, columns = list(reader), reader.fieldnames or []
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: not CSV ({error}).") from None
        if not {"text", "category"} <= set(columns):
            header = [c[:20] for c in columns[:8]]
            raise UserError(f"{path}: expected the columns text, category; found {header}.")
        short = [i for i, r in enumerate(rows, 2) if None in (r["text"], r["category"])]
        if short or not rows:
            where = f"line {short[0]} has no text or no category" if short else "it has no rows"
            raise UserError(f"{path}: {where}.")
        texts += [r["text"] for r in rows]
        names += [r["category"] for r in rows]
        counts.append(len(rows))
    classes = sorted(set(names))
    at = {c: i for i, c in enumerate(classes)}
    labels = np.array([at[n] for n in names], np.int32)
    splits = hold_out(np.arange(counts[0]), labels, val, None, seed)
    splits["test"] = np.arange(counts[0], len(labels))
    shown = tuple(c.replace("_", " ").rstrip("?").lower() for c in classes)
    return Source("banking77", Texts(texts), labels, shown, as_texts(templates), splits)


SETS = {
    # name -> files of train, val, test (None: held out of the first), classes by label
    "trec": (
        ("TREC.train", None, "TREC.test"),
        {"ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "person",
         "LOC": "place", "NUM": "number"},
    ),
    "sst2": (
        ("stsa.binary.train", "stsa.binary.dev", "stsa.binary.test"),
        {"0": "negative", "1": "positive"},
    ),
    "cr": (("custrev.all", None, None), {"0": "negative", "1": "positive"}),
    "mpqa": (("mpqa.all", None, None), {"0": "negative", "1": "positive"}),
    "subj": (("subj.all", None, None), {"0": "subjective", "1": "objective"}),
}  # fmt: skip


def sentences(
    folder: str | Path, name: str, templates: str | Sequence[str] = TEMPLATES, seed: int = 0
) -> Source:
    """One of the sentence classification sets; what has no official split is split 80/10/10.

    Args:
        folder: where the files lie.
        name: "trec" (six coarse classes), "sst2", "cr", "mpqa" or "subj".
        templates: prompts for the zero-shot head, with one ``{}`` each.
        seed: decides what is held out.

    Raises:
        FileNotFoundError: a file is missing; names all that are.
        ValueError: an unknown set, or lines that are not "<label> <text>".

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> lines = [f"{i % 2} a sentence" for i in range(40)]
    >>> _ = (folder / "custrev.all").write_text(chr(10).join(lines))
    >>> {s: len(rows) for s, rows in sentences(folder, "cr").splits.items()}
    {'train': 32, 'test': 4, 'val': 4}
    """
    if name not in SETS:
        raise ValueError(f"No set is named {name!r}: {closest(name, SETS)}")
    files, classes = SETS[name]
    _there(name, folder, [file for file in files if file])
    at = {label: i for i, label in enumerate(classes)}
    texts: list[str] = []
    labels: list[int] = []
    splits: dict[str, np.ndarray] = {}
    for split, file in zip(("train", "val", "test"), files, strict=True):
        if file is None:
            continue
        first, pairs = len(texts), _lines(Path(folder) / file)
        label_names = [label.split(":")[0] for label, _ in pairs]
        labels += _positions(label_names, at, Path(folder) / file)
        texts += [text for _, text in pairs]
        splits[split] = np.arange(first, len(texts))
    numbers = np.array(labels, np.int32)
    for split, share in (("test", 0.1), ("val", 1 / 9 if files[2] is None else 0.1)):
        if split not in splits:
            parts = hold_out(splits["train"], numbers, share, None, seed)
            splits["train"], splits[split] = parts["train"], parts["val"]
    return Source(name, Texts(texts), numbers, tuple(classes.values()), as_texts(templates), splits)


def _lines(path: Path) -> list[tuple[str, str]]:
    data = read_bytes(path, MAX_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    pairs = [line.split(" ", 1) for line in text.split("\n") if line.strip()]
    bad = [i + 1 for i, pair in enumerate(pairs) if len(pair) != 2]
    if bad:
        raise UserError(f"{path}: no text on lines {bad[:10]}; expected '<label> <text>'.")
    if not pairs:
        raise UserError(f"{path} holds no sentences; expected lines '<label> <text>'.")
    return [(label, text.strip()) for label, text in pairs]


def _there(name: str, folder: str | Path, files: Sequence[str]) -> list[Path]:
    """The paths of a data set's files."""
    paths = [Path(folder) / file for file in files]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{name}: no {' and no '.join(missing)}; see jaxmerge.data.text.")
    return paths


def _positions(labels: Sequence[str], at: Mapping[str, int], path: Path) -> list[int]:
    """Positions of the classes that labels name."""
    unknown = sorted({label for label in labels if label not in at})
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} unknown labels, such as {unknown[0][:40]!r}; expected "
            f"{', '.join([*at][:6])}{', ...' if len(at) > 6 else ''}."
        )
    return [at[label] for label in labels]


def _strings_of(rows: object, width: int | None = None) -> bool:
    """Whether this is a list of lists of texts, each so long."""
    return isinstance(rows, list) and all(
        isinstance(r, list) and width in (None, len(r)) and all(isinstance(x, str) for x in r)
        for r in rows
    )
