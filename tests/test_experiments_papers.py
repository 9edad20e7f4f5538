"""The papers' experiments: each builds, and runs two steps on tiny data, from files to tables.

The data sets are prepared by tensorflow-datasets, or lie in folders and NumPy files, under the
names of the real ones; the model is a tiny CLIP in Hugging Face's layout.  With ``-m slow`` it is
a ViT-B/32 of full size with random weights.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pictures
import pytest

from jaxmerge.cli import run as command
from jaxmerge.data import registry
from jaxmerge.errors import UserError
from jaxmerge.studies import images
from jaxmerge.studies.settings import changed

pytest.importorskip("tensorflow_datasets")
pytestmark = pytest.mark.filterwarnings("ignore:.*published are.*:UserWarning")
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PAPERS = {
    "magmax_class_incremental": ("sequential", "independent", "LwF", "EWC"),
    "magmax_domain_incremental": ("sequential", "independent", "LwF", "EWC"),
    "magmax_eight": ("sequential", "independent", "LwF", "EWC"),
    "opcm": ("independent", "continual"),
    "fomo_schedules": (
        *("ema_paint", "ft_paint", "zs_paint", "offline_merge", "double_merge", "fine-tuning"),
    ),
    "scole": ("sequential",),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pictures.clip_folder(tmp_path_factory.mktemp("clip"), side=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CIFAR100 (prepared), ImageNet-R (folders), MNIST (NumPy) and STL10 (prepared), all tiny."""
    root = tmp_path_factory.mktemp("data")
    names = [f"thing_{k}" for k in range(100)]
    pictures.prepare(root, "cifar100", names, {"train": 300, "test": 100}, side=8)
    pictures.prepare(root, "stl10", names[:10], {"train": 40, "test": 20}, side=8)
    for wnid in registry.entry("imagenet_r")["names"]:
        pictures.folder(root / "imagenet_r", {wnid: 6}, side=8)
        for k in range(6):
            file = root / "imagenet_r" / wnid / f"{k}.png"
            file.rename(file.with_name(f"{'art' if k % 2 else 'toy'}_{k}.png"))
    (root / "mnist").mkdir()
    for split, count in (("train", 60), ("test", 20)):
        labels = np.arange(count) % 10
        images = np.stack([np.asarray(pictures.picture(c, 5 * k, 8))[:, :8] for k, c in
                           enumerate(labels)])  # fmt: skip
        np.savez(root / "mnist" / f"mnist_{split}.npz", images=images, labels=labels,
                 class_names=[str(d) for d in range(10)])  # fmt: skip
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An own cache for labels, no data set of another test; no pictures, which other tests draw."""
    images._source.cache_clear()
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jaxmerge.report.plots.write_png", lambda *_: [])


def of(name, **settings):
    return changed(command.load(EXPERIMENTS / f"{name}.py"), settings)


@pytest.mark.parametrize("name", PAPERS)
def test_every_experiment_builds(name):
    experiment = command.load(EXPERIMENTS / f"{name}.py")
    experiment.check()
    assert tuple(p.name for p in experiment.plans()) == PAPERS[name]
    text = (EXPERIMENTS / f"{name}.py").read_text()
    for part in (f"jaxmerge run experiments/{name}.py", "Expected", "Time and hardware"):
        assert part in text


@pytest.mark.parametrize(
    "dataset, tasks", [("cifar100", 5), ("cifar100", 50), ("imagenet_r", 20), ("imagenet_r", 50)]
)
def test_class_incremental_streams(data, dataset, tasks):
    experiment = of("magmax_class_incremental", data=str(data), dataset=dataset, tasks=tasks)
    scenario = experiment.scenario(0)
    classes = registry.entry(dataset)["classes"]
    assert len(scenario) == tasks
    assert {len(t.classes) for t in scenario} == {classes // tasks}
    assert scenario.order != experiment.scenario(1).order
    backwards = changed(experiment, {"class_order": list(range(classes))[::-1]})
    assert backwards.scenario(0).order == tuple(range(classes))[::-1]
    assert len(backwards.scenario(0)[0].classes) == classes // tasks
    with pytest.raises(ValueError, match=r"missing .* repeated or out of range"):
        changed(experiment, {"class_order": [0] * classes}).scenario(0)
    with pytest.raises(ValueError, match=f"between 1 and {classes} tasks; got 300"):
        changed(experiment, {"tasks": 300}).scenario(0)


def test_the_settings_are_the_releases():
    cars = of("magmax_class_incremental", dataset="cars")
    assert (cars.how().epochs, cars.how().warmup, cars.how().rate) == (30, 500, 1e-5)
    assert of("magmax_class_incremental").how().epochs == 10
    assert of("magmax_class_incremental", warmup_steps=0).how().warmup == 0.1
    merges = {d.label: repr(d.merge()) for d in of("magmax_eight").plans()[0].deploys if not d.last}
    assert merges == {
        "MagMax": "magmax(factor=0.5)",
        "average": "average()",
        "RandMix": "randmix(factor=1.0)",
        "TIES": "ties(density=0.2, factor=0.55)",
    }
    for tasks, factor in ((8, 0.3), (14, 0.1), (20, 0.1)):
        (ties,) = [d for d in of("opcm", tasks=tasks).plans()[0].deploys if "TIES" in d.label]
        assert repr(ties.merge()) == f"continual_ties(density=0.2, factor={factor})"


@pytest.mark.parametrize(
    "name, settings",
    [
        ("opcm", {"tasks": 21}),
        ("fomo_schedules", {"weight": 0.0}),
        ("magmax_eight", {"warmup_steps": -1}),
        ("magmax_eight", {"val": 1.0}),
        ("magmax_eight", {"epochs_of": {"mnits": 3}}),
        ("magmax_eight", {"dtype": "float16"}),
        ("opcm", {"streams": {"independent": {"start": "last"}}, "models": "somewhere"}),
    ],
)
def test_wrong_settings(name, settings):
    with pytest.raises(ValueError):
        of(name, **settings).check()


RUNS = {
    "magmax_class_incremental": {"tasks": 2, "batch": 50, "epochs_of": {"cifar100": 1}},
    "magmax_domain_incremental": {"batch": 100, "epochs": 1},
    "magmax_eight": {
        "datasets": ["mnist", "stl10"], "batch": 15, "epochs_of": {"mnist": 1, "stl10": 1},
    },
    "opcm": {"datasets": ["mnist", "stl10"], "tasks": 2, "batch": 15, "epochs": 1, "seeds": 1},
}  # fmt: skip


def tiny(name, data, model, folder, monkeypatch, without=()):
    """Run an experiment on tiny data and check what every run must give."""
    short = {wnid: f"thing {k}" for k, wnid in enumerate(registry.entry("imagenet_r")["names"])}
    monkeypatch.setitem(registry.entry("imagenet_r"), "names", short)  # the tiny tokenizer's limit
    settings = {**RUNS[name], "data": str(data), "model": str(model)}
    pairs = [f"{k}={json.dumps(v)}" for k, v in settings.items()]
    pairs += [f"streams.{s}=null" for s in without if s in PAPERS[name]]
    results = command.run(EXPERIMENTS / f"{name}.py", set=pairs, out=folder / "run", quiet=True)
    assert {e.finetunes for e in results.seeds[0].entries} - {"none", "joint"} == set(
        PAPERS[name]
    ) - set(without)
    experiment = of(name, **settings)
    for task in experiment.scenario(experiment.seed):
        assert 2 <= experiment.how(task).steps(len(task.rows["train"])) <= 4
    for entry in results.seeds[0].entries:
        assert np.isfinite(np.array(entry.matrix[-1], float)).all()
    return results


@pytest.mark.parametrize("name", RUNS)
def test_two_steps_on_tiny_data(name, data, model, tmp_path, monkeypatch):
    tiny(name, data, model, tmp_path, monkeypatch, ("LwF", "EWC", "independent"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_steps_of_every_stream_on_tiny_data(name, data, model, tmp_path, monkeypatch):
    results = tiny(name, data, model, tmp_path, monkeypatch)
    assert {e.finetunes for e in results.seeds[0].entries} >= set(PAPERS[name])


def test_fine_tuned_models_are_kept_for_the_other_orders(data, model, tmp_path, monkeypatch):
    monkeypatch.setitem(RUNS["opcm"], "models", str(tmp_path / "models"))
    monkeypatch.setitem(RUNS["opcm"], "seeds", 2)
    monkeypatch.setitem(RUNS["opcm"], "seed", 2)  # seeds 2 and 3 draw both orders
    results = tiny("opcm", data, model, tmp_path, monkeypatch, ("continual",))
    names = sorted(p.name for p in (tmp_path / "models").iterdir())
    assert names == ["mnist.safetensors", "stl10.safetensors"]
    assert sorted(map(tuple, (s.order for s in results.seeds))) == [(0, 1), (1, 0)]
    merged = [s.entries for s in results.seeds]
    average = [next(e for e in rows if e.label == "running average") for rows in merged]
    # the mean of the same two models, in whatever order, tested on tasks in the order of arrival
    assert average[0].aware[-1] == average[1].aware[-1][::-1]


def test_models_in_hugging_faces_layout_are_merged(data, model, tmp_path):
    """OPCM over published checkpoints: nothing is trained."""
    for task in ("mnist", "stl10"):
        shutil.copytree(model, tmp_path / "models" / task)
    experiment = of(
        "opcm", data=str(data), model=str(model), models=str(tmp_path / "models"), tasks=2,
        datasets=["mnist", "stl10"], streams={"continual": None},
    )  # fmt: skip
    (plan,) = experiment.plans()
    learner = experiment.learner(experiment.scenario(0))
    model_read = plan.models.get("mnist", learner.params)
    assert all(np.array_equal(model_read[n], learner.params[n]) for n in learner.params)
    assert plan.models.get("svhn", learner.params) is None


@pytest.mark.parametrize("name", ["fomo_schedules", "scole"])
def test_two_steps_on_digits(name, model, tmp_path):
    pairs = [f"model={model}", "tasks=2", "seeds=1", "epochs=1", "batch=100"]
    if name == "fomo_schedules":
        pairs += [f"streams.{s}=null" for s in PAPERS[name] if s != "ema_paint"]
    results = command.run(EXPERIMENTS / f"{name}.py", set=pairs, out=tmp_path / "run", quiet=True)
    assert len(results.seeds[0].tasks) == 2


def test_a_data_set_that_is_not_there_is_named_before_anything_runs(tmp_path, model):
    for name, line in (
        ("magmax_class_incremental", r"tfds build cifar100 --data_dir=\S+ --file_format"),
        ("magmax_eight", r"tfds build cars196 .*; .*tfds build mnist .*; gtsrb is not in "),
    ):
        with pytest.raises(UserError, match=line):
            command.run(
                EXPERIMENTS / f"{name}.py", set=[f"data={tmp_path}", f"model={model}"],
                out=tmp_path / name, quiet=True,
            )  # fmt: skip


@pytest.mark.slow
def test_two_steps_of_a_model_of_full_size(data, shared, tmp_path):
    import jax

    from jaxmerge.models import clip

    config = clip.variant("ViT-B/32")
    clip.save((config, clip.init(config, jax.random.key(0))), tmp_path / "clip", "float16")
    for file in (shared / "data" / "clip-tokenizer").glob("*.*"):
        shutil.copy(file, tmp_path / "clip")
    pairs = [
        f"data={data}", f"model={tmp_path / 'clip'}", "epochs_of.cifar100=1",
        "class_order=" + str(list(range(100))), "streams.LwF=null", "streams.EWC=null",
        "streams.independent=null", "baselines=[]", "evaluation_batch=50",
        "streams.sequential.deploys=[last model]", "tasks=2", "per_class=2", "batch=40",
    ]  # fmt: skip
    results = command.run(
        EXPERIMENTS / "magmax_class_incremental.py", set=pairs, out=tmp_path / "run", quiet=True
    )
    assert len(results.seeds[0].tasks) == 2
