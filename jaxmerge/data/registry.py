"""The data sets of the papers by name, read from wherever they lie.

``source("cifar100", data)`` looks in the folder `data`, in this order, for

1. ``data/cifar100/cifar100_train.npz`` and ``..._test.npz``     (`jaxmerge.data.npz`)
2. ``data/cifar100/<version>/`` as tensorflow-datasets prepares  (`jaxmerge.data.tfds`)
3. ``data/cifar100/`` with images in folders                     (`jaxmerge.data.folders`)

and gives it the class names and prompts of ``datasets.yaml``, where sizes, splits and what differs
from the papers are written down too.  `table` prints it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.data import tfds
from jaxmerge.data.folders import folder
from jaxmerge.data.npz import npz
from jaxmerge.data.pictures import check_corrupt, skip_corrupt
from jaxmerge.data.sources import SPLITS, Source, as_texts
from jaxmerge.errors import UserError, closest

MAGMAX_EIGHT = ("cars", "mnist", "eurosat", "svhn", "resisc45", "sun397", "dtd", "gtsrb")
OPCM_TWENTY = (
    "sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd",
    "cifar100", "stl10", "flowers102", "pets", "pcam", "fer2013",
    "emnist", "cifar10", "food101", "fashion_mnist", "rendered_sst2", "kmnist",
)  # fmt: skip


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """What ``datasets.yaml`` says, by name.

    >>> sorted(entries())[:2]
    ['cars', 'cifar10']
    """
    import yaml

    return yaml.safe_load((resources.files("jaxmerge.data") / "datasets.yaml").read_text())


def entry(name: str) -> dict[str, Any]:
    """What is registered under a name.

    Args:
        name: of a registered data set.

    >>> entry("cub200")["size"]
    {'train': 5994, 'test': 5794}
    >>> entry("cub")
    Traceback (most recent call last):
    jaxmerge.errors.UserError: No data set is registered as 'cub': did you mean cub200?
    """
    if name not in entries():
        raise UserError(f"No data set is registered as {name!r}: {closest(name, entries())}")
    return entries()[name]


def source(
    name: str,
    data: str | Path,
    *,
    val: float = 0.1,
    per_class: int | None = None,
    corrupt: str = "stop",
    seed: int = 0,
) -> Source:
    """A registered data set, from the folder of all data sets.

    Args:
        name: of a registered data set.
        data: the folder of all data sets.
        val: share of the training examples held out where no validation split is published.
        per_class: keep at most so many examples of every class (and domain) in every split.
        corrupt: "stop" stops a run at the first image that cannot be decoded; "skip" decodes every
            image once, now, and leaves out those that cannot be, with a warning that names them.
        seed: of what is held out or kept.

    Raises:
        UserError: an unknown name, or nothing in `data`; says where it may lie.
        ValueError: another number of classes than registered.

    Warns:
        UserWarning: another number of examples than published.

    >>> import tempfile
    >>> source("mnist", tempfile.mkdtemp())
    Traceback (most recent call last):
    jaxmerge.errors.UserError: mnist is not in ...
    """
    facts = entry(name)
    check_corrupt(corrupt)
    if not Path(data).is_dir():
        raise UserError(f"{data} is no folder; data=FOLDER is the folder that holds {name}.")
    opened = _read(name, Path(data), facts, val, per_class, seed)
    opened = renamed(used(opened), facts)
    if len(opened.classes) != facts["classes"]:
        raise ValueError(
            f"{name} has {facts['classes']} classes, {data} holds examples of "
            f"{len(opened.classes)}."
        )
    if per_class is None:
        _compare(opened, facts["size"])
    return skip_corrupt(opened) if corrupt == "skip" else opened


def _read(name: str, data: Path, facts: dict, val: float, per_class: int | None, seed: int):
    options = {"per_class": per_class, "seed": seed, "val": val}
    if (data / name / f"{name}_train.npz").exists():
        return npz(data / name, name, **options)
    options |= {"test": facts.get("test", 0.2)}
    known, configs = facts.get("tfds"), facts.get("configs", ())
    if known and tfds.prepared(data, f"{known}/{configs[0]}" if configs else known):
        extra = {k: facts[k] for k in ("splits", "configs", "domain", "transpose") if k in facts}
        return tfds.tfds(data, known, name=name, **extra, **options)
    if (data / name).is_dir():
        return folder(data / name, name, layout=facts.get("layout"), **options)
    ways = [f"images in {data / name}/{facts.get('layout', '{split}/{class}/*')}"]
    if known:
        names = [f"{known}/{c}" for c in configs] or [known]
        command = " && ".join(tfds.command(c, data) for c in names)
        ways.append(f"what this command prepares (where TensorFlow is installed): {command}")
    raise UserError(f"{name} is not in {data}; it is read from {', or from '.join(ways)}")


def used(source: Source) -> Source:
    """The source with the classes only that have examples.

    ImageNet-R is published with the labels of ImageNet, EMNIST's letters with those of all
    characters.

    Args:
        source: of any kind.

    >>> rows = np.arange(3)
    >>> splits = {"train": rows[:1], "val": rows[1:2], "test": rows[2:]}
    >>> used(Source("x", rows, np.array([0, 2, 2]), ("a", "b", "c"), ("{}",), splits)).classes
    ('a', 'c')
    """
    have = np.unique(source.labels)
    if len(have) == len(source.classes):
        return source
    labels = np.searchsorted(have, source.labels).astype(np.int32)
    return dataclasses.replace(
        source, labels=labels, classes=tuple(source.classes[c] for c in have)
    )


def renamed(source: Source, facts: dict[str, Any]) -> Source:
    """The source under the class names and prompts of its entry.

    Args:
        source: as it was read.
        facts: its entry, of which ``names``, ``rename`` and ``templates`` are read.

    >>> rows = np.arange(3)
    >>> splits = {"train": rows[:1], "val": rows[1:2], "test": rows[2:]}
    >>> own = Source("x", rows, np.zeros(3, int), ("n01",), ("{}",), splits)
    >>> renamed(own, {"names": {"n01": "dog"}, "templates": ["a {}."]}).classes
    ('dog',)
    """

    def prompt(own: str) -> str:
        for pattern, replacement in facts.get("rename", ()):
            own = re.sub(pattern, replacement, own)
        return facts.get("names", {}).get(own, own)

    names = tuple(prompt(c) for c in source.classes)
    return dataclasses.replace(source, classes=names, templates=as_texts(facts["templates"]))


def _compare(source: Source, size: dict[str, int]) -> None:
    have = {s: len(source.splits[s]) for s in SPLITS}
    if sum(have.values()) != sum(size.values()):
        warnings.warn(
            f"{source.name}: {sum(have.values())} examples, published are {sum(size.values())}; "
            "figures are not those of the papers.",
            stacklevel=3,
        )


def order(name: str, paper: str, what: str) -> tuple[int, ...] | None:
    """A paper's order of "classes" or "domains", or None where it is not registered.

    Args:
        name: of a registered data set.
        paper: such as "magmax".
        what: "classes" or "domains".

    >>> order("domainnet", "magmax", "domains")
    (0, 5, 4, 1, 3, 2)
    """
    positions = entry(name).get("order", {}).get(paper, {}).get(what)
    return None if positions is None else tuple(positions)


def table() -> str:
    """The registered data sets as a Markdown table.

    >>> table().splitlines()[0]
    '| name | classes | train | val | test | in tensorflow-datasets | prompts |'
    """
    lines = [
        "| name | classes | train | val | test | in tensorflow-datasets | prompts |",
        "|:--|--:|--:|--:|--:|:--|--:|",
    ]
    for name, facts in entries().items():
        sizes = " | ".join(
            f"{facts['size'].get(s, 0):,}" if s in facts["size"] else "–" for s in SPLITS
        )
        known = f"`{facts['tfds']}`" if "tfds" in facts else "–"
        lines.append(
            f"| {name} | {facts['classes']} | {sizes} | {known} | {len(facts['templates'])} |"
        )
    return "\n".join(lines)
