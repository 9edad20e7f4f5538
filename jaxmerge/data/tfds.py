"""Sources from data sets that tensorflow-datasets has prepared; reading them needs no TensorFlow.

A data set is prepared once, by tensorflow-datasets' own command (where TensorFlow is installed)::

    tfds build cifar100 --data_dir=DIR --file_format=array_record

and read from then on through its random access files (``as_data_source``, what `tfds.data_source`
gives).  Pictures stay compressed until they are asked for.  Needs ``pip install 'jaxmerge[tfds]'``.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmerge.data.folders import TEMPLATES, tidy
from jaxmerge.data.pictures import Pictures
from jaxmerge.data.sources import SPLITS, Source, Texts, as_texts
from jaxmerge.data.splits import complete
from jaxmerge.errors import UserError
from jaxmerge.io.hashes import cache_folder

if TYPE_CHECKING:
    import PIL.Image

OFFICIAL = {"train": "train", "val": "validation", "test": "test"}


class Records(Pictures):
    """Pictures in records: several random access files, one after another."""

    def __init__(self, parts: Sequence[tuple[Any, str]], key: str, name: str, transpose: bool):
        self.parts, self.key, self.name, self.transpose = list(parts), key, name, transpose
        self.starts = np.cumsum([0, *(len(data) for data, _ in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def where(self, row: int) -> tuple[Any, str, int]:
        which = int(np.searchsorted(self.starts, row, side="right")) - 1
        return (*self.parts[which], int(row - self.starts[which]))

    def encoded(self, row: int) -> io.BytesIO:
        data, _, at = self.where(row)
        return io.BytesIO(data[at][self.key])

    def picture(self, row: int) -> PIL.Image.Image:
        from PIL import Image

        picture = super().picture(row)
        return picture.transpose(Image.Transpose.TRANSPOSE) if self.transpose else picture

    def label(self, row: int) -> str:
        _, split, at = self.where(row)
        return f"record {at} of {split}"


def tfds(
    path: str | Path,
    dataset: str,
    *,
    name: str | None = None,
    splits: Mapping[str, str] = OFFICIAL,
    configs: Sequence[str] = (),
    key: str | None = None,
    label: str = "label",
    domain: tuple[str, str] | None = None,
    transpose: bool = False,
    templates: str | Sequence[str] = TEMPLATES,
    val: float = 0.1,
    test: float = 0.2,
    per_class: int | None = None,
    seed: int = 0,
) -> Source:
    """Read a prepared data set: pictures or texts with one label each.

    Args:
        path: the folder of prepared data sets (tensorflow-datasets' data_dir).
        dataset: "cifar100" or "emnist/letters"; the newest version that lies there is read.
        splits: "train" / "val" / "test" -> the data set's name of it; those that it does not have
            are held out of "train" (`val` and `test` are shares).
        configs: configurations to read as domains of one source, such as DomainNet's.
        key: what the picture or text is called; found from the features by default.
        label: what the class is called.
        domain: (text feature, regular expression): the domain is its group in that feature.
        transpose: the pictures are stored mirrored about the diagonal, as EMNIST's.
        name: what reports call it; the data set's name by default.
        val, test: shares of "train" held out where the data set has no such split.
        templates, per_class, seed: as in `jaxmerge.data.folders.folder`.

    Raises:
        UserError: not installed, not prepared (with the command that does it), another format.
        ValueError: a data set without the features or splits asked for.

    >>> tfds("nowhere", "mnist")
    Traceback (most recent call last):
    jaxmerge.errors.UserError: mnist is not prepared in nowhere. ...
    """
    name = name or dataset.split("/")[0]
    builders = [_builder(Path(path), f"{dataset}/{c}" if c else dataset) for c in configs or ("",)]
    features = builders[0].info.features
    key = key or _input(features, dataset)
    lacking = [k for k in (key, label) if k not in features]
    if lacking:
        raise ValueError(
            f"{dataset}: no feature {', '.join(lacking)}; it has {', '.join(sorted(features))}."
        )
    parts, labels, domains, rows_of = [], [], [], {s: [] for s in SPLITS}
    count = 0
    for config, builder in zip(configs or ("",), builders, strict=True):
        for split, official in splits.items():
            if official not in builder.info.splits:
                continue
            data = _open(builder, official)
            parts.append((data, f"{builder.info.full_name} {official}"))
            labels.append(_column(data, builder, official, label).astype(np.int32))
            domains += [config] * len(data)
            if domain is not None:
                texts = _column(data, builder, official, domain[0])
                domains[count:] = [_group(domain[1], text, name) for text in texts]
            rows_of[split].append(np.arange(count, count + len(data)))
            count += len(data)
    given = {s: np.concatenate(rows) for s, rows in rows_of.items() if rows}
    if "train" not in given:
        raise ValueError(
            f"{dataset}: no split {splits.get('train', 'train')!r}; it has "
            f"{', '.join(sorted(builders[0].info.splits))}."
        )
    every = np.concatenate(labels)
    kinds = tuple(configs) or (tuple(sorted(set(domains))) if domain is not None else ())
    where = np.array([kinds.index(d) for d in domains], np.int32) if kinds else None
    names = tuple(tidy(c) for c in features[label].names)
    groups = every if where is None else every + len(names) * where
    inputs: Any = Records(parts, key, name, transpose)
    if not hasattr(features[key], "encoding_format"):
        inputs = Texts([data[i][key].decode() for data, _ in parts for i in range(len(data))])
    return Source(
        name=name,
        inputs=inputs,
        labels=every,
        classes=names,
        templates=as_texts(templates),
        splits=complete(given, groups, val=val, test=test, per_class=per_class, seed=seed),
        domains=where,
        domain_names=kinds,
    )


def command(dataset: str, path: str | Path) -> str:
    """The command that prepares a data set.

    Args:
        dataset: its name, with a configuration "emnist/letters".
        path: the folder of prepared data sets.

    >>> command("mnist", "data")
    'tfds build mnist --data_dir=data --file_format=array_record'
    """
    return f"tfds build {dataset} --data_dir={path} --file_format=array_record"


def prepared(path: str | Path, dataset: str) -> Path | None:
    """The folder of the newest prepared version of a data set, or None."""
    known = (Path(path) / dataset).glob("*/dataset_info.json")
    numbers = lambda p: [int(n) for n in p.parent.name.split(".") if n.isdigit()]
    return max((p.parent for p in known), key=lambda p: numbers(p / "x"), default=None)


def _builder(path: Path, dataset: str) -> Any:
    folder = prepared(path, dataset)
    if folder is None:
        raise UserError(
            f"{dataset} is not prepared in {path}. Where TensorFlow is installed, run: "
            f"{command(dataset, path)}"
        )
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets
    except ImportError:
        raise UserError(f"To read {folder}: pip install 'jaxmerge[tfds]'") from None
    builder = tensorflow_datasets.builder_from_directory(str(folder))
    form = builder.info.file_format
    if form is None or form.value != "array_record":
        raise UserError(
            f"{folder} is in the format {form and form.value}, without random access. "
            f"Where TensorFlow is installed, run: {command(dataset, path)} --overwrite"
        )
    return builder


def _input(features: Any, dataset: str) -> str:
    from tensorflow_datasets import features as kinds

    names = [k for k, f in features.items() if isinstance(f, kinds.Image | kinds.Text)]
    if not names:
        raise ValueError(f"{dataset}: no picture or text among {', '.join(sorted(features))}.")
    return names[0]


def _open(builder: Any, split: str) -> Any:
    """Random access to one split; pictures stay encoded."""
    from tensorflow_datasets import decode

    pictures = [k for k, f in builder.info.features.items() if hasattr(f, "encoding_format")]
    return builder.as_data_source(split, decoders={k: decode.SkipDecoding() for k in pictures})


def _column(data: Any, builder: Any, split: str, key: str) -> np.ndarray:
    """One feature of a split, numbers or texts; read once from the records, then from the cache."""
    info = Path(builder.data_dir) / "dataset_info.json"
    print_of = f"{info.resolve()} {info.stat().st_mtime_ns} {split} {key}"
    cache = cache_folder() / "columns" / f"{hashlib.sha256(print_of.encode()).hexdigest()[:32]}.npy"
    if cache.exists():
        return np.load(cache, allow_pickle=False)
    values = [data[i][key] for i in range(len(data))]
    column = np.array([v.decode() if isinstance(v, bytes) else v for v in values])
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, column)
    return column


def _group(pattern: str, text: str, name: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"{name}: {text!r} names no domain; expected {pattern!r}.")
    return match[1]
