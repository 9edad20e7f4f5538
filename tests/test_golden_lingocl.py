"""The frozen head of language against the cosine classifier of a released program; 1e-12."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, load
from tiny_streams import KEY, setup, split

from jaxmerge.continual.drivers import run
from jaxmerge.continual.methods import lingocl
from jaxmerge.continual.problems import cross_entropy
from jaxmerge.models.resnet.learner import resnet18


@pytest.mark.parametrize("case", range(3))
def test_head(case, x64):
    z = load("lingocl", "cosine_head")
    of = lambda name: z[f"c{case}_{name}"]
    rows, labels, d = of("class_embeddings"), jnp.asarray(of("labels")), of("features").shape[1]
    below = given(
        (np.eye(d), np.zeros((len(rows), d)))
    ).build()  # the head's inputs are its features
    head = lingocl(rows, 1.0).build().wrap(below, 1)
    params = {**head.init(KEY), "language/scale": jnp.asarray(of("eta"))}

    def loss(x, eta):
        out = head.from_features({**params, "language/scale": eta}, x, 0)
        return jnp.mean(cross_entropy(out.logits, labels)), out.logits

    (value, logits), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        jnp.asarray(of("features")), jnp.asarray(of("eta"))
    )
    close(logits, of("logits"), 1e-12)
    close(value, of("loss"), 1e-12)
    close(grads[0], of("grad_features"), 1e-12)
    close(grads[1], of("grad_eta"), 1e-12)


def test_rows_never_move_and_a_projection_comes_where_widths_differ():
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    result = run(setup(lingocl(rows)), split(tasks=2, steps=3), KEY)
    params = result.state.params
    np.testing.assert_array_equal(params["language/rows"], rows)
    np.testing.assert_array_equal(params["head/kernel"], result.state.base["head/kernel"])
    for n in ("language/scale", "language/projection", "hidden/kernel"):
        assert np.abs(params[n] - result.state.base[n]).max() > 0, n
    with pytest.raises(
        ValueError, match=r"embeddings are \[classes, d\], 6 rows here; got \[5, 3\]"
    ):
        run(setup(lingocl(rows[:5])), split(tasks=2, steps=3), KEY)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("cat", r"embeddings are numbers \[classes, d\]; got"),
        ([["a", "b"]] * 6, r"embeddings are numbers \[classes, d\]; got"),
        ([[1.0], [1.0, 2.0]] * 3, r"embeddings are numbers \[classes, d\]; got"),
        ([], r"embeddings are numbers \[classes, d\]; got"),
        ([[1.0, 0.0]] * 4 + [[0.0, 0.0]] * 2, "finite and not zero; rows 4, 5 are not"),
        ([[float("nan"), 0.0]] * 6, "rows 0, 1, 2, 3, 4 and others are not"),
    ],
)
def test_embeddings_that_are_none(rows, words):
    with pytest.raises(ValueError, match=words):
        run(setup(lingocl(rows)), split(tasks=2, steps=3), KEY)


def test_no_embeddings():
    with pytest.raises(ValueError, match="lingocl: embeddings must be given, got None"):
        lingocl(None)


def test_a_plain_resnet_takes_it():
    model = resnet18(classes=4, width=4, blocks=(1, 1, 1, 1)).build()
    rows = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    head = lingocl(rows).build().wrap(model, 1)
    params = head.init(KEY)
    out = head.learn(params, jnp.zeros((2, 8, 8, 3)), 0, KEY)
    assert out.logits.shape == (2, 4)
    assert set(out.aux["statistics"]) == {n for n in params if head.statistics(n)}
    assert not head.trainable("language/rows")
    assert not any(head.trainable(n) for n in params if head.statistics(n))
