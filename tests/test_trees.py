"""Trees over classes by name: any depth, every fault in one line, the groups that come with it."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from jaxmerge.data.registry import entry
from jaxmerge.data.streams.hierarchy import expansion
from jaxmerge.data.streams.trees import CALTECH101, GTSRB, hierarchy
from jaxmerge.data.text import clinc150, clinc150_domains
from jaxmerge.errors import UserError


def random_levels(rng, widths):
    """Names of each level, finest first, and mappings that deal every name to one group."""
    names = [[f"{d}.{c}" for c in range(w)] for d, w in enumerate(widths)]
    levels = []
    for below, above in itertools.pairwise(names):
        of = np.r_[np.arange(len(above)), rng.integers(0, len(above), len(below) - len(above))]
        of = rng.permutation(of)
        levels.append({g: [n for n, o in zip(below, of, strict=True) if o == k]
                       for k, g in enumerate(above)})  # fmt: skip
    return names[0], levels


@pytest.mark.parametrize("seed", range(5))
def test_a_class_stands_below_the_groups_that_name_it(seed):
    rng = np.random.default_rng(seed)
    widths = np.sort(rng.choice(np.arange(1, 20), rng.integers(1, 5), replace=False))[::-1]
    classes, levels = random_levels(rng, widths)
    found = hierarchy(classes, *levels)
    assert found.tree.shape == (len(classes), len(widths))
    columns = found.tree + np.r_[0, np.cumsum(widths[::-1])[:-1]]
    for c, name in enumerate(classes):
        for d, level in enumerate(levels):
            name = next(g for g, members in level.items() if name in members)
            assert found.names[columns[c, -2 - d]] == name
        assert found.names[columns[c, -1]] == classes[c]


def test_every_fault_is_in_one_line():
    groups = {"cat": ["lion", "lyon"], "boat": ["ferry", "lion"]}
    with pytest.raises(ValueError) as error:
        hierarchy(["lion", "ferry", "car", "bus"], groups)
    text = str(error.value)
    for part in (
        "cat has 'lyon', which is no class: did you mean lion?", "'car' is in no group",
        "'bus' is in no group", "'lion' is in 2 groups, cat, boat",
    ):  # fmt: skip
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("classes", "levels", "words"),
    [
        (["a", "a"], [], "'a' is the name of 2 classes"),
        ([], [], "one class or more"),
        (["a"], [{"x": []}, {}], "x has [], expected a list"),
        (["a"], [{"a": "a"}], "a has 'a', expected a list"),
        (["a"], [["a"]], "maps groups to lists of names, got list"),
        (["a", "b"], [{"x": ["a"], "y": ["b"]}, {"z": ["x"]}], "'y' is in no group"),
        (["a", "b"], [{"x": ["a", "b", "b"]}], "x has 'b' 2 times"),
        (["a"], [{"x": 3}], "x has 3, expected a list of one or more names"),
        (["a"], [{"x": [["a"]]}], "x has [['a']], expected a list of one or more names"),
        (["a"], [{1: ["a"]}], "groups are names, got 1"),
        (None, [{"x": ["a"]}], "classes are a list of names, got None"),
        ([0, 1], [{"x": [0, 1]}], "classes are a list of names, got [0, 1]"),
    ],
)
def test_what_is_no_tree(classes, levels, words):
    with pytest.raises(ValueError) as error:
        hierarchy(classes, *levels)
    assert words in str(error.value)


def test_groups_that_come_with_the_package():
    signs = hierarchy(tuple(entry("gtsrb")["names"].values()), GTSRB)
    assert signs.tree.shape == (43, 2)
    assert np.bincount(signs.tree[:, 0]).tolist() == [12, 15, 8, 4, 4]
    pictures = [name for members in CALTECH101.values() for name in members]
    assert hierarchy(pictures, CALTECH101).tree.shape == (101, 2)


def test_an_expansion_takes_a_hierarchy_with_its_names():
    tree = hierarchy(("lion", "ferry", "cat"), {"animal": ["cat", "lion"], "thing": ["ferry"]})
    labels = np.arange(60) % 3
    plan = expansion(labels, tree, "single", 3, seed=2)
    assert plan.names == tree.names
    assert plan.digest() == expansion(labels, tree.tree, "single", 3, seed=2).digest()
    assert expansion(labels, tree, "single", 3, names=list("vwxyz")).names == tuple("vwxyz")


def write(folder, domains):
    (folder / "domains.json").write_text(json.dumps(domains))
    data = [["a text", intent] for intents in domains.values() for intent in intents]
    splits = dict.fromkeys(("train", "val", "test"), data)
    (folder / "data_full.json").write_text(json.dumps(splits))


def test_domains_of_clinc150_are_a_hierarchy_of_its_intents(tmp_path):
    write(tmp_path, {"small_talk": ["hi", "who_made_you"], "travel": ["book_hotel"]})
    source = clinc150(tmp_path)
    tree = hierarchy(source.classes, clinc150_domains(tmp_path))
    assert tree.names == ("small talk", "travel", "hi", "who made you", "book hotel")
    assert tree.tree[:, 0].tolist() == [0, 0, 1]


def test_domains_that_are_no_lists(tmp_path):
    write(tmp_path, {"travel": "book"})
    with pytest.raises(UserError, match=r"domains.json must map every domain to a list"):
        clinc150_domains(tmp_path)
    with pytest.raises(UserError, match=r"domains.json must map every domain to a list"):
        clinc150(tmp_path)
