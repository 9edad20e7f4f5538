"""The four methods of the guide run in the loop as they do in the mechanism, on any order."""

import json
import re
from pathlib import Path

import clouds
import numpy as np
import pytest

from jaxmerge.continual.registry import methods
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.studies.loop import Stream
from jaxmerge.training.model_learner import from_model

ROOT = Path(__file__).parents[1]
NAMES = ("near_last", "frozen_directions", "tiny_memory", "shifted_features")
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "continual.md").read_text("utf-8"), re.M | re.S
)
GUIDE = {n: next(b for b in BLOCKS if f"def {n}(" in b) for n in NAMES}


@pytest.fixture(scope="module")
def guide():
    """The methods as the page has them, under their names for the time of these tests."""
    before, scope = set(methods), {}
    for block in GUIDE.values():
        exec(compile(block, "continual.md", "exec"), scope)
    yield scope
    for name in set(methods) - before:
        del methods[name]


@pytest.fixture(scope="module", params=["frozen", "trained"])
def learner(request):
    scenario = clouds.scenario(clouds.source())
    if request.param == "frozen":
        return clouds.learner()
    return from_model({"mlp": {"inputs": 12, "hidden": [8], "classes": 6}}, scenario)


@pytest.mark.parametrize(
    "chosen",
    [
        lambda g: [g["near_last"](0.1), g["tiny_memory"]()],
        lambda g: [g["frozen_directions"](2)],
        lambda g: [g["shifted_features"]()],
    ],
    ids=["loss and buffer", "projection", "module"],
)
@pytest.mark.parametrize("order", [(4, 1, 0, 5, 2, 3), (3, 2, 5, 0, 1, 4)])
def test_they_run_on_any_stream(guide, learner, chosen, order):
    scenario = class_incremental(clouds.source(), 3, order)
    stream = Stream(scenario, learner, methods=chosen(guide), training=clouds.TRAINING, batch=64)
    stream.learn(0)
    stream.learn(1)
    assert np.isfinite(stream.losses).all()
    assert stream.outcomes["last model"].matrix[1][0] is not None


def test_the_projection_stays_outside_of_what_was_frozen(guide):
    """Updates of the second task leave out what leads in the kernels after the first."""
    scenario = clouds.scenario(clouds.source())
    stream = Stream(
        scenario, clouds.learner(), methods=[guide["frozen_directions"](2)],
        training=clouds.TRAINING,
    )  # fmt: skip
    stream.learn(0)
    before = {n: np.asarray(p) for n, p in stream.last.items()}
    stream.learn(1)
    for n in ("a/kernel", "b/kernel"):
        directions = np.linalg.svd(before[n], full_matrices=False)[0][:, :2]
        moved = np.asarray(stream.last[n]) - before[n]
        assert np.abs(moved).max() > 1e-3
        np.testing.assert_allclose(directions.T @ moved, 0, atol=1e-5)


def test_the_notebook_has_the_methods_of_the_guide():
    notebook = json.loads((ROOT / "colabs" / "own_continual_method.ipynb").read_text("utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    for block in GUIDE.values():
        method = block[block.index("@methods.register") :].strip()
        assert any(cell.strip().endswith(method) for cell in cells), method
