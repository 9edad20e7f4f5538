"""What `rehearsal.py` learns: digits, clothes, signs, photographs, intents; data and settings.

A `Case` is a data set as it is learnt there: one pass, so many classes a task, a buffer of a fixed
size.  `STREAMS` has them by the names of ``stream=``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from continual_table import data_set, mnist

from jaxmerge.continual.records import Model
from jaxmerge.continual.registry import models
from jaxmerge.continual.streams import Data
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Array
from jaxmerge.data.npz import npz
from jaxmerge.data.registry import entry
from jaxmerge.data.splits import few
from jaxmerge.data.streams.trees import CALTECH101, GTSRB, Hierarchy, Level, hierarchy
from jaxmerge.data.text import clinc150, clinc150_domains
from jaxmerge.models import bert
from jaxmerge.models.mlp.learner import mlp
from jaxmerge.models.resnet.learner import resnet18

WIDTH, SCALE = 384, 20.0  # of MiniLM's vectors; what multiplies cosines where MiniLM is trained


class Case(NamedTuple):
    """What is learnt.

    Attributes:
        data: "train", "validation", "test": inputs and labels.
        network: names of the columns of a head -> the model.
        view: of the problem.
        classes: their names.
        tasks: the classes are dealt out over so many.
        size: examples of the buffer.
        every: steps between marks of the accuracy at any time.
        rates: of plain SGD; of several that one is taken which is best on the validation data.
        groups: the classes under coarser ones, for a stream whose labels grow finer in `expansion`
            tasks.
        pretrained: all models start from one trained model, whose own accuracy is a row.
        images: whether inputs are stored as square images.
        period: steps between updates of the importances of CLIB and PL-FMS.
        language: () -> what a language model says of the names, [classes, 384], for LingoCL.
    """

    data: dict[str, Data]
    network: Callable[[tuple[str, ...]], Spec]
    view: Callable[..., Array]
    classes: tuple[str, ...]
    tasks: int
    size: int
    every: int
    rates: tuple[float, ...] = (0.1,)
    groups: Hierarchy | None = None
    expansion: int = 0
    pretrained: bool = False
    images: bool = True
    period: int = 1
    language: Callable[[], np.ndarray] | None = None


def shifted(stored, info, task, key):
    """Bytes in [0, 1]; in training every image is moved by up to two pixels in each direction."""
    x = stored.astype(jnp.float32) / 255
    if key is not None:
        by = jax.random.randint(key, (len(x), 2), 0, 5)
        x = jnp.pad(x, ((0, 0), (2, 2), (2, 2)))
        move = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1]), (28, 28))
        x = jax.vmap(move)(x, by)
    return x.reshape(len(x), -1)


def moved(stored, info, task, key):
    """Colours in [-1, 1]; in training cut out of a border of four pixels and flipped at random."""
    x = stored.astype(jnp.float32) / 127.5 - 1
    if key is None:
        return x
    one, two = jax.random.split(key)
    by = jax.random.randint(one, (len(x), 2), 0, 9)
    x = jnp.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
    cut = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (32, 32, 3))
    x = jax.vmap(cut)(x, by)
    return jnp.where(jax.random.bernoulli(two, 0.5, (len(x), 1, 1, 1)), x[:, :, ::-1], x)


def levelled(stored, info, task, key):
    """Colours less the mean of each, over their standard deviation: signs are lit as it happens."""
    x = stored.astype(jnp.float32) / 255
    x = x - jnp.mean(x, (1, 2), keepdims=True)
    return (x / (jnp.std(x, (1, 2, 3), keepdims=True) + 0.05)).reshape(len(x), -1)


def thinned(stored, info, task, key):
    """Vectors as they are; in training a tenth of the numbers is dropped, the rest grows by it."""
    if key is None:
        return stored
    return jnp.where(jax.random.bernoulli(key, 0.9, stored.shape), stored / 0.9, 0)


@models.register
def named(rows: Any, scale: float = SCALE) -> Model:
    """A perceptron that starts as the classifier of the names of its classes.

    One hidden layer, as wide as the input: tanh of the input itself at the start, under a head of
    the names' vectors; all of it is trained.

    Args:
        rows: [columns, d], vectors of the names, of length 1; inputs are vectors of length sqrt(d).
        scale: of the cosines at the start, were tanh the identity.
    """
    rows = jnp.asarray(rows)
    columns, d = rows.shape
    base = mlp(d, (d,), columns, activation="tanh").build()

    def init(key):
        return {
            "layer_0/kernel": jnp.eye(d), "layer_0/bias": jnp.zeros(d),
            "head/kernel": scale / d**0.5 * rows.T, "head/bias": jnp.zeros(columns),
        }  # fmt: skip

    return base._replace(init=init)


def greyscale(names: tuple[str, ...], folder: str, examples: int, cache: Path) -> Case:
    """MNIST or Fashion-MNIST: a perceptron 784-100-100-10 from random weights."""
    data = mnist(folder, examples)
    data["test"] = data["test"][0][:10_000], data["test"][1][:10_000]
    case = Case(data, lambda names: mlp(), shifted, names, 5, 200, 13)
    return case._replace(language=partial(of_names, names, cache))


def shrunk(
    name: str, names: tuple[str, ...], groups: Level, size: int, folder: str, examples: int,
    cache: Path,
) -> Case:  # fmt: skip
    """GTSRB or Caltech-101 at 16 x 16: a perceptron 768-400-400 from random weights, with groups.

    The validation images of GTSRB, which choose a rate, are other frames of the tracks that are
    learnt; those of Caltech-101 are other photographs.
    """
    source = data_set(lambda folder: npz(folder, name, per_class=10**6), folder)
    names = names or source.classes

    def part(split, most=None):
        rows = np.random.default_rng(0).permutation(source.splits[split])[:most]
        x = np.asarray(source.inputs[rows])
        x = x.reshape(len(rows), 16, x.shape[1] // 16, 16, x.shape[2] // 16, 3)
        return np.round(x.mean((2, 4))).astype(np.uint8), source.labels[rows]

    data = {"train": part("train", examples), "validation": part("val"), "test": part("test")}
    return Case(
        data, lambda names: mlp(768, (400, 400), len(names)), levelled, names, 5, size, 26,
        (0.03, 0.1, 0.3), hierarchy(names, groups), 6, period=10,
        language=partial(of_names, names, cache),
    )  # fmt: skip


def of_names(names: tuple[str, ...], cache: Path) -> np.ndarray:
    """MiniLM's vectors of the class names in a sentence."""
    return vectors({"names": [f"a picture of a {n}" for n in names]}, cache)["names"]


def intents(folder: str, examples: int, cache: Path) -> Case:
    """CLINC150: a perceptron on the vectors of a frozen MiniLM, which starts from the names."""
    classes = 150
    counts = {"train": examples // classes, "val": 10, "test": 30}
    source = few(data_set(clinc150, folder), counts)
    groups = hierarchy(source.classes, clinc150_domains(folder))
    every = {"names": list(groups.names)}
    every |= {split: source.inputs[rows] for split, rows in source.splits.items()}
    found = vectors(every, cache)
    scaled = {k: x * WIDTH**0.5 for k, x in found.items()}
    part = lambda split: (scaled[split], source.labels[source.splits[split]])
    data = {"train": part("train"), "validation": part("val"), "test": part("test")}
    at = {name: row for name, row in zip(groups.names, found["names"], strict=True)}
    return Case(
        data, lambda names: named(np.stack([at[n] for n in names])), thinned, source.classes, 10,
        600, 10, (0.003, 0.01, 0.03, 0.1), groups, 6, pretrained=True, images=False,
    )  # fmt: skip


def vectors(texts: dict[str, list[str]], cache: Path) -> dict[str, np.ndarray]:
    """Unit vectors [texts, 384] of all-MiniLM-L6-v2, computed once for these texts and kept."""
    every = json.dumps({k: list(v) for k, v in texts.items()}, sort_keys=True)
    own = np.frombuffer(hashlib.sha256(every.encode()).digest(), np.uint8)
    if cache.exists():
        with np.load(cache) as stored:
            if "texts" in stored and np.array_equal(stored["texts"], own):
                return {k: stored[k] for k in texts}
    model = bert.load("sentence-transformers/all-MiniLM-L6-v2")
    found = {k: bert.encode(model, v, truncate=True) for k, v in texts.items()}
    found = {k: x / np.linalg.norm(x, axis=1, keepdims=True) for k, x in found.items()}
    np.savez(cache, texts=own, **found)
    return found


def colours(folder: str, examples: int, cache: Path) -> Case:
    """CIFAR-10: the reduced ResNet-18 of the online papers from random weights."""
    source = data_set(lambda folder: npz(folder, "cifar10", per_class=5000), folder)

    def part(split, most):
        rows = np.random.default_rng(0).permutation(source.splits[split])[:most]
        return np.asarray(source.inputs[rows]), source.labels[rows]

    data = {"train": part("train", examples), "validation": part("val", 1000)}
    data["test"] = part("test", 1000)
    network = lambda names: resnet18(len(names), "cifar", 20)
    language = partial(of_names, source.classes, cache)
    return Case(data, network, moved, source.classes, 5, 200, 26, period=10, language=language)


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = (
    "T-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
    "bag", "ankle boot",
)  # fmt: skip
SIGNS = tuple(entry("gtsrb")["names"].values())
STREAMS = {
    "mnist": (partial(greyscale, DIGITS), "rehearsal", 5000),
    "fashion": (partial(greyscale, CLOTHES), "rehearsal_fashion", 5000),
    "gtsrb": (partial(shrunk, "gtsrb", SIGNS, GTSRB, 430), "rehearsal_gtsrb", 6000),
    "caltech101": (
        partial(shrunk, "caltech101", (), CALTECH101, 1010), "rehearsal_caltech101", 5206,
    ),
    "clinc150": (intents, "rehearsal_clinc150", 6000),
    "cifar10": (colours, "rehearsal_cifar10", 5000),
}  # fmt: skip
ONLY = {
    "cifar10": (
        "fine-tuning", "ER", "ER, equal shares", "DER++", "CLIB", "joint", "ER + LingoCL",
        "ER + LingoCL, random rows",
    ),
}  # fmt: skip
