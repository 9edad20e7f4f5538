"""AdaMerging's coefficients against a transcription in torch, on a small CLIP.

pip install 'jaxmerge[parity]'
pytest tests/test_adamerging_parity.py -m parity
"""

import jax
import numpy as np
import optax
import pytest

from jaxmerge import solvers
from jaxmerge.models import clip
from jaxmerge.models.clip.params import hf_table

pytestmark = pytest.mark.parity

VISION = clip.Vision(image=32, patch=8, width=48, layers=2, heads=4, hidden=96)
CONFIG = clip.Config(VISION, None, projection_dim=24)
TASKS, CLASSES, STEPS, RATE = 3, 5, 20, 1e-2
DRAW = np.random.default_rng(0)
HEAD = DRAW.standard_normal((24, CLASSES)).astype(np.float32)
BATCHES = DRAW.standard_normal((STEPS, 6, 32, 32, 3)).astype(np.float32)


def models():
    base = {n: np.asarray(x) for n, x in clip.init(CONFIG, jax.random.key(0)).items()}
    noisy = lambda x: x + 0.05 * DRAW.standard_normal(x.shape).astype(np.float32)
    return base, [{n: noisy(x) for n, x in base.items()} for _ in range(TASKS)]


def in_torch(folders, layerwise):
    """lambda <- Adam on the mean entropy of softmax(theta_0 + sum_t lambda_t tau_t)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    load = transformers.CLIPVisionModelWithProjection.from_pretrained
    towers = [load(folder).eval() for folder in folders]
    tower = towers[0]
    weights = [dict(t.named_parameters()) for t in towers]
    weights = [{n: w.detach() for n, w in leaves.items()} for leaves in weights]
    zero, rest = weights[0], weights[1:]
    coefficients = {
        n: torch.full((TASKS,), 0.3, requires_grad=True) for n in (zero if layerwise else ["all"])
    }
    adam = torch.optim.Adam(coefficients.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for batch in BATCHES:
        theta = {}
        for n, w in zero.items():
            c = coefficients[n if layerwise else "all"]
            theta[n] = w + sum(c[t] * (rest[t][n] - w) for t in range(TASKS))
        pixels = torch.tensor(batch).permute(0, 3, 1, 2)
        out = torch.func.functional_call(tower, theta, (pixels,)).image_embeds
        p = torch.softmax(out @ torch.tensor(HEAD), -1)
        loss = -(p * torch.log(p)).sum(-1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    return {n: c.detach().numpy() for n, c in coefficients.items()}, losses


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_coefficients_equal_those_of_torch(tmp_path, granularity):
    base, others = models()
    folders = [tmp_path / str(i) for i in range(TASKS + 1)]
    for folder, params in zip(folders, [base, *others], strict=True):
        clip.save((CONFIG, params), folder)
    expected, losses = in_torch(folders, granularity == "layer")
    apply = lambda params, x: clip.image_features(CONFIG, params, x) @ HEAD
    solver = solvers.adamerging(
        solvers.entropy(apply), base, others, granularity=granularity, optimizer=optax.adam(RATE)
    )
    _, history = solvers.solve(solver, BATCHES)
    np.testing.assert_allclose([h["loss"] for h in history], losses, atol=1e-5)
    actual = history[-1]["coefficients"]
    names = {"all": "all"}
    if granularity == "layer":
        keys = {key.removeprefix("vision_model."): key for key in expected}
        names = {e.names[0]: keys[e.key.removeprefix("vision_model.")] for e in hf_table(CONFIG)}
        assert len(names) == len(actual) == len(expected)
    moved = 0.0
    for ours, theirs in names.items():
        if ours.endswith("attn/key/bias"):
            continue  # softmax takes no notice of it: its gradient is rounding, Adam's step a dice
        np.testing.assert_allclose(actual[ours], expected[theirs], atol=2e-4, err_msg=ours)
        moved = max(moved, np.abs(expected[theirs] - 0.3).max())
    assert moved > 0.1
