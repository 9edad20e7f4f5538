"""Fine-tuned models at hand are merged, the others trained once and kept."""

import clouds
import numpy as np
import pytest

from jaxmerge.studies.config import Experiment
from jaxmerge.studies.finetuned import Finetuned
from jaxmerge.studies.seed import run_seed


class Clouds(Experiment):
    """Three tasks of two clouds."""

    def scenario(self, seed):
        return clouds.scenario(clouds.source())

    def learner(self, scenario):
        return clouds.learner()


def test_models_are_trained_once_and_read_by_other_orders(tmp_path, monkeypatch):
    streams = {"independent": {"start": "base", "deploys": ["MagMax"], "models": str(tmp_path)}}
    experiment = Clouds(streams=streams, batch=8, epochs=1)
    scenario = experiment.scenario(0)
    learner = experiment.learner(scenario)
    how = lambda task=None: clouds.TRAINING
    plans = [p._replace(training=how) for p in experiment.plans()]
    first, _ = run_seed(scenario, learner, plans, seed=0, baselines=())
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == sorted(f"{task.name}.safetensors" for task in scenario)
    from jaxmerge.studies import loop

    monkeypatch.setattr(loop, "fit_task", None)  # nothing is trained any more
    again, _ = run_seed(scenario, learner, plans, seed=7, baselines=())
    matrix = lambda run: np.array(run.entries[0].matrix)
    np.testing.assert_array_equal(matrix(first), matrix(again))


def test_a_model_of_another_shape_is_refused(tmp_path):
    models = Finetuned(tmp_path, read=lambda folder: {"w": np.zeros(3)})
    assert models.get("a/b", {"w": np.zeros(2)}) is None
    models.keep("a/b", {"w": np.ones(2), "more": np.zeros(1)})
    assert models.get("a/b", {"w": np.zeros(2)})["w"].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"a-b.safetensors is no fine-tuned .* 1 of 1 leaves"):
        models.get("a/b", {"w": np.zeros(3)})
    (tmp_path / "c").mkdir()
    assert models.get("c", {"w": np.zeros(3)})["w"].shape == (3,)


def test_models_at_hand_are_those_of_plain_fine_tuning():
    for stream in ({"start": "last"}, {"start": "base", "methods": ["lwf"]}):
        with pytest.raises(ValueError, match="models at hand are those of plain fine-tuning"):
            Clouds(streams={"x": {**stream, "models": "somewhere"}}).plans()
