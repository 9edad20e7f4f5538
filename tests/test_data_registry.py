"""The registered data sets: facts that hang together, read from wherever they lie."""

import numpy as np
import pictures
import pytest
import yaml

from jaxmerge.data import registry
from jaxmerge.data.tfds import tfds
from jaxmerge.errors import UserError

pytest.importorskip("tensorflow_datasets")
pytestmark = pytest.mark.filterwarnings("ignore:.*published are.*:UserWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An own cache for labels."""
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "cache"))


def test_what_is_registered_hangs_together():
    known = {
        "size", "classes", "tfds", "splits", "test", "layout", "configs", "domain", "transpose",
        "rename", "names", "templates", "order", "note",
    }  # fmt: skip
    assert {*registry.OPCM_TWENTY, "imagenet_r", "cub200", "domainnet"} == {*registry.entries()}
    assert len(registry.OPCM_TWENTY) == 20
    assert set(registry.MAGMAX_EIGHT) == set(registry.OPCM_TWENTY[:8])
    for name, facts in registry.entries().items():
        assert set(facts) <= known, name
        assert all(t.count("{}") == 1 for t in facts["templates"]), name
        assert len(set(facts["templates"])) == len(facts["templates"]), name
        names = list(facts.get("names", {}).values())
        assert all(isinstance(n, str) for n in [*facts.get("names", {}), *names]), name
        assert set(facts["size"]) <= {"train", "val", "test"}, name
        assert "test" in facts["size"] or "test" in facts, name
        assert "tfds" in facts or "note" in facts, name
        if name not in ("fer2013", "fashion_mnist") and names:  # the others name some only
            assert len(set(names)) == facts["classes"], name
    assert sorted(registry.order("domainnet", "magmax", "domains")) == list(range(6))
    assert registry.order("cifar100", "magmax", "classes") is None


def test_the_facts_agree_with_tensorflow_datasets(tmp_path):
    """Class counts of the data sets whose builders need no TensorFlow to say them."""
    import tensorflow_datasets

    compared = 0
    for facts in registry.entries().values():
        if "tfds" not in facts or facts["tfds"].startswith(("imagenet_r", "emnist")):
            continue
        name = "/".join([facts["tfds"], *facts.get("configs", [])[:1]])
        features = tensorflow_datasets.builder(name, data_dir=tmp_path).info.features
        assert features["label"].num_classes == facts["classes"], name
        compared += 1
    assert compared == 18


def test_a_numpy_file_gets_the_names_and_prompts(tmp_path):
    for split, count in (("train", 30), ("test", 10)):
        (tmp_path / "mnist").mkdir(exist_ok=True)
        np.savez(
            tmp_path / "mnist" / f"mnist_{split}.npz",
            images=np.zeros((count, 8, 8), np.uint8),
            labels=np.arange(count) % 10,
            class_names=[str(d) for d in range(10)],
        )
    with pytest.warns(UserWarning, match="mnist: 40 examples, published are 70000"):
        source = registry.source("mnist", tmp_path)
    assert source.classes[:3] == ("zero", "one", "two")
    assert source.templates == tuple(registry.entry("mnist")["templates"])
    assert [len(source.splits[s]) for s in ("train", "val", "test")] == [20, 10, 10]


def test_folders_of_a_data_set_that_is_nowhere_else(tmp_path):
    counts = {f"{s}/{k:05d}": 2 for s in ("train", "test") for k in range(43)}
    pictures.folder(tmp_path / "gtsrb", counts, side=8)
    source = registry.source("gtsrb", tmp_path)
    assert (source.classes[0], source.classes[14]) == ("speed limit 20", "stop")
    path = tmp_path / "gtsrb" / "test" / "00003" / "0.png"
    pictures.break_file(path)
    with pytest.warns(UserWarning, match="gtsrb: left out 1 corrupt image: test/00003/0.png"):
        assert len(registry.source("gtsrb", tmp_path, corrupt="skip").splits["test"]) == 85
    (tmp_path / "gtsrb" / "train" / "00042").rename(tmp_path / "taken")
    (tmp_path / "gtsrb" / "test" / "00042").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"gtsrb has 43 classes, .* holds examples of 42"):
        registry.source("gtsrb", tmp_path)


def test_a_prepared_data_set_with_domains_and_unused_labels(tmp_path):
    wnids = [*registry.entry("imagenet_r")["names"]]
    labels = [*wnids, "n00000001", "n00000002"]  # ImageNet's labels that have no example here
    text = lambda label, k: f"{labels[label]}/{'art' if k % 3 else 'sketch'}_{k}.jpg"
    pictures.prepare(
        tmp_path, "imagenet_r", labels, {"test": 1400}, side=8, text=text, used=len(wnids)
    )
    source = registry.source("imagenet_r", tmp_path)
    assert (len(source.classes), source.classes[0]) == (200, "goldfish")
    assert source.domain_names == ("art", "sketch")
    assert source.templates[1] == "a drawing of a {}."
    # of a class and domain one picture is for testing and one for validation, if one is left then:
    # 133 times of 400 there are two pictures only
    assert [len(source.splits[s]) for s in ("train", "val", "test")] == [733, 267, 400]


def test_letters_stand_upright(tmp_path):
    pictures.prepare(tmp_path, "emnist", 27, {"train": 108, "test": 27}, "letters", side=8)
    with pytest.raises(ValueError, match=r"emnist has 26 classes, .* 27"):
        registry.source("emnist", tmp_path)
    one, other = (tfds(tmp_path, "emnist/letters", transpose=t).inputs for t in (False, True))
    np.testing.assert_array_equal(np.asarray(one[[1]][0]).swapaxes(0, 1), np.asarray(other[[1]][0]))


def test_domains_of_several_configurations(tmp_path):
    facts = registry.entry("domainnet")
    names = [f"thing_{k}" for k in range(345)]
    for config in facts["configs"][:1]:
        pictures.prepare(tmp_path, "domainnet", names, {"train": 690, "test": 345}, config, side=8)
    with pytest.raises(UserError, match="domainnet/infograph is not prepared"):
        registry.source("domainnet", tmp_path)


def test_wrong_names_and_places(tmp_path):
    with pytest.raises(UserError, match=r"as 'cifar_100': did you mean cifar100"):
        registry.source("cifar_100", tmp_path)
    with pytest.raises(UserError, match="is no folder; data=FOLDER is the folder that holds dtd"):
        registry.source("dtd", tmp_path / "nothing")
    line = r"dtd is not in .*; it is read from images in \S+/dtd/{split}/{class}/\*, or from what "
    with pytest.raises(UserError, match=line + r"this command .*: tfds build dtd --data_dir="):
        registry.source("dtd", tmp_path)
    with pytest.raises(UserError, match=r"fer2013 is not in .*/fer2013/{split}/{class}/\*$"):
        registry.source("fer2013", tmp_path)
    with pytest.raises(UserError, match="corrupt is one of stop, skip, got 'ignore'"):
        registry.source("dtd", tmp_path, corrupt="ignore")


def test_the_table_names_every_data_set():
    lines = registry.table().splitlines()
    assert len(lines) == 2 + len(registry.entries())
    assert "| dtd | 47 | 1,880 | 1,880 | 1,880 | `dtd` | 3 |" in lines


def test_the_file_is_plain_data():
    assert yaml.safe_load(yaml.safe_dump(registry.entries())) == registry.entries()
