"""OSFT and CoSO against their packages."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_streams import close, given, learn, load, stream
from tiny_streams import KEY, setup, split

from jaxmerge.continual.drivers import run
from jaxmerge.continual.methods.coso import coso
from jaxmerge.continual.methods.osft import FREE, FROZEN, frozen_rank, osft, rebuilt
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.registry import optimisers, problems
from jaxmerge.continual.stream_records import Evaluator, Problem

NAME = "head/kernel"


@optimisers.register
def adamw_of_torch(rate: float, weight_decay: float):
    return optax.adamw(rate, weight_decay=weight_decay, eps=1e-8)


@problems.register
def squares():
    """0.5 |W x - y|^2 of vectors y that stand beside x."""
    score = lambda out, y, info: jnp.sum((out.logits - y) ** 2, -1)
    return Problem(
        lambda out, b, info, task: 0.5 * score(out, b.targets, info), {"loss": Evaluator(score)}
    )


@problems.register
def product():
    """n <W x, g> over n unit inputs x with rows g of G: the mean over examples is <W, G>."""
    none = lambda out, y, info: jnp.sum(out.logits * 0.0, -1)

    def objective(out, batch, info, task):
        return batch.targets.shape[0] * jnp.sum(out.logits * batch.targets, -1)

    return Problem(objective, {"loss": Evaluator(none)})


@pytest.mark.parametrize("case", ["tall", "wide", "square", "small_ratio"])
def test_osft(case, x64):
    z = load("osft", "cases")
    read = lambda k: z[f"{case}__{k}"]
    xs = [np.stack([read(f"task{t}_x")] * 12) for t in range(2)]
    size = max(x.shape[1] for x in xs)
    pad = lambda x: np.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0)))
    weight = np.stack([np.pad(np.ones(x.shape[:2]), ((0, 0), (0, size - x.shape[1]))) for x in xs])
    ys = [np.stack([read(f"task{t}_y")] * 12) for t in range(2)]
    tasks = stream([pad(x) for x in xs], np.zeros((2, 12, size), int), classes=1)
    targets = np.concatenate([pad(y).reshape(-1, y.shape[-1]) for y in ys])
    groups = tasks.groups._replace(targets=targets)
    tasks = tasks._replace(targets=targets, weight=weight, groups=groups)
    method = osft(float(read("rank_ratio")))
    rate = adamw_of_torch(float(read("lr")), float(read("weight_decay")))
    _, after = learn(given((read("W0"),)), tasks, method, optimiser=rate, problem=squares())
    for t, state in enumerate(after):
        leaf = lambda which, part, state=state: np.asarray(state.params[NAME + which + part])
        close(rebuilt(NAME, state.params).T, read(f"task{t}_official_W")[-1], 1e-10)
        assert leaf(FROZEN, "scale").shape == (read("frozen_rank"),)
        assert np.abs(leaf(FROZEN, "left").T @ leaf(FREE, "left")).max() < 1e-12
        assert np.abs(leaf(FREE, "right") @ leaf(FROZEN, "right").T).max() < 1e-12
        if t == 0:
            close(
                leaf(FROZEN, "left") @ leaf(FROZEN, "left").T,
                read("task0_frozen_right_projector"),
                1e-12,
            )
            close(np.abs(leaf(FREE, "scale")), np.abs(read("task0_final_S_low")), 1e-10)


@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_osft_that_holds_no_direction_trains_all(ratio):
    result = run(setup(osft(ratio)), split(tasks=2, steps=3), KEY)
    held = {
        n: p.shape for n, p in result.state.params.items() if FROZEN in n and n.endswith("scale")
    }
    assert held
    assert any(0 in s for s in held.values())
    assert result.finite.all()


def test_ranks_of_osft():
    z = load("osft", "cases")
    rows = zip(z["rank_rule__rows_columns_ratio"], z["rank_rule__frozen_rank"], strict=True)
    for (m, n, ratio), k in rows:
        assert frozen_rank(int(m), int(n), float(ratio)) == k


COSO = (
    "no_momentum_tall", "fixed_signs_wide", "fixed_signs_every_step_decay", "history_stays_empty",
    "gradient_rank_below_r2",
)  # fmt: skip


@pytest.mark.parametrize("case", COSO)
def test_coso(case, x64):
    z = load("coso", "cases")
    read = lambda k: z[f"{case}__{k}"]
    gradients = read("gradients")
    tasks, steps, m, n = gradients.shape
    # an example is a unit input with a row of G as its target: the loss is <W, G>
    xs = np.tile(np.eye(n), (tasks, steps, 1, 1))
    ys = gradients.transpose(0, 1, 3, 2)
    streamed = stream(xs, np.zeros((tasks, steps, n), int), classes=1)
    targets = ys.reshape(-1, m)
    streamed = streamed._replace(targets=targets, groups=streamed.groups._replace(targets=targets))
    b1, b2 = read("betas")
    method = coso(
        int(read("r1")), int(read("r2")), int(read("refresh_every")), float(read("threshold")),
        float(read("lr")), float(read("weight_decay")), float(b1), float(b2), float(read("eps")),
    )  # fmt: skip
    _, after = learn(given((read("W0"),)), streamed, method, optimiser=sgd(1.0), problem=product())
    for t, state in enumerate(after):
        close(state.params[NAME].T, read("weights_after_every_step")[t, -1], 1e-8)
        own = state.memory[0][NAME]
        close(own.sketch @ own.sketch.T, read(f"task{t}_sketch_gram"), 1e-9)
        if t:
            assert int(own.history.rank) == read(f"task{t}_history_rank")
            directions = own.history.vectors
            close(directions @ directions.T, read(f"task{t}_history_projector"), 1e-9)
            if not read("weight_decay"):
                moved = state.params[NAME].T - after[t - 1].params[NAME].T
                assert float(jnp.abs(directions.T @ moved).max()) < 1e-10


def test_bad_settings():
    model = given((np.ones((6, 5)),))
    tasks = stream(np.ones((1, 1, 4, 5)), np.zeros((1, 1, 4), int), classes=6)
    with pytest.raises(ValueError, match="rank must be below sketch, got rank=8, sketch=8"):
        coso(8, 8)
    with pytest.raises(
        ValueError, match=r"sketch must be at most min\(in, out\), got 6 for head/kernel \[5, 6\]\."
    ):
        learn(model, tasks, coso(2, 6), optimiser=sgd(1.0))
