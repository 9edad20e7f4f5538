"""Several teachers merged into one tower by distillation: a form of ours after SAM-CLIP.

SAM-CLIP's code is not open, and of its training only an outline is established: one tower with a
head for each teacher; heads first on a frozen tower, by cosine distillation; then all together with
a small rate for the tower, replaying examples of the first teacher, whose loss weighs more.  That
is what stands here, with heads that are matrices, for teachers that give vectors::

    loss of an example of teacher k = w_k (1 - cos(f(x) H_k, y))

f is the student's tower, started from one model, H_k the head of teacher k, started as the
identity, y what the teacher says of x.  There is no other mechanism: a teacher is a task of a
stream, `joint` mixes them, ``train_only("^heads/")`` is the first stage, and the second one starts
from its weights (`jaxmerge.training.model_learner.from_weights`) under rates by name.

Source: Wang et al., SAM-CLIP: Merging Vision Foundation Models towards Semantic and Spatial
Understanding, 2023 (arXiv 2310.15308); theirs has segmentation losses for SAM, ours cosines.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.contrast import unit
from jaxmerge.continual.drivers import joint
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import Count, evaluators, models, problems
from jaxmerge.continual.stream_records import Evaluator, Groups, Problem, Stream
from jaxmerge.continual.streams import split
from jaxmerge.core.types import Array

Taught = tuple[np.ndarray, np.ndarray]  # inputs [N, ...], what the teacher says of them [N, d]


@models.register
def heads_above(network: Model, width: Count, heads: Count = 2) -> Model:
    """A tower under a matrix for each teacher: ``aux["heads"]`` [B, heads, width].

    Args:
        network: spec of a model whose outputs have features.
        width: of the features, and of what teachers give.
        heads: teachers.

    Example:
        >>> from jaxmerge.models.mlp.learner import mlp
        >>> model = heads_above(mlp(4, (3,), 2), 3).build()
        >>> params = model.init(jax.random.key(0))
        >>> out = model.apply(params, jnp.ones((1, 4)), 0)
        >>> out.aux["heads"].shape, bool((out.aux["heads"][0, 1] == out.features[0]).all())
        ((1, 2, 3), True)
    """

    def init(key: Array) -> dict:
        same = jnp.broadcast_to(jnp.eye(width), (heads, width, width))
        return {**network.init(key), "heads/kernel": jnp.array(same)}

    def read(params, out):
        each = jnp.einsum("bi,kij->bkj", out.features, params["heads/kernel"])
        return Outputs(out.logits, out.features, {**(out.aux or {}), "heads": each})

    above = lambda f: f and (lambda params, *rest: read(params, f(params, *rest)))
    return network._replace(
        init=init, apply=above(network.apply), predict=above(network.predict),
        train=above(network.train), from_features=None,
        trainable=lambda n: n == "heads/kernel" or network.trainable(n),
    )  # fmt: skip


@evaluators.register
def likeness() -> Evaluator:
    """Cosine of the teacher's answer with that of its head; a group's one column is its teacher.

    Example:
        >>> out = Outputs(None, aux={"heads": jnp.eye(2)[None]})
        >>> likeness().build().score(out, jnp.array([[0.0, 2.0]]), {"own": jnp.array([[0, 1]])})
        Array([1.], dtype=float32)
    """

    def score(out, y, info):
        return cosine(out.aux["heads"], y, jnp.argmax(jnp.asarray(info["own"]), -1))

    return Evaluator(score)


def cosine(heads: Array, y: Array, which: Array) -> Array:
    """[B]: of one head of each example with a vector.

    Args:
        heads: [B, heads, d].
        y: [B, d].
        which: int [B].

    >>> cosine(jnp.ones((1, 2, 4)), jnp.array([[1.0, 1.0, 0.0, 0.0]]), jnp.array([1])).round(3)
    Array([0.707], dtype=float32)
    """
    own = jnp.take_along_axis(heads, which[:, None, None], 1)[:, 0]
    return jnp.sum(unit(own) * unit(y), -1)


@problems.register
def imitation(weights: Sequence[float] | Array = (1.0, 1.0)) -> Problem:
    """w_k (1 - cos) of what the head of an example's teacher says and what the teacher says.

    Args:
        weights: w, one for each teacher; SAM-CLIP's first one weighs ten times as much.

    Example:
        >>> from jaxmerge.continual.records import Batch
        >>> out = Outputs(None, aux={"heads": jnp.eye(2)[None]})
        >>> batch = Batch(None, jnp.array([[1.0, 1.0]]), jnp.array([0]), jnp.ones(1))
        >>> round(float(imitation((10, 1)).build().objective(out, batch, {}, 0)[0]), 3)
        2.929
    """

    def objective(out, batch, info, task):
        share = jnp.asarray(weights)[batch.task]
        return share * (1 - cosine(out.aux["heads"], batch.targets, batch.task))

    return Problem(objective, {"likeness": likeness().build()})


def taught(
    train: Sequence[Taught], test: Sequence[Taught], *, batch: int = 32, epochs: int = 1,
    seed: int = 0,
) -> Stream:  # fmt: skip
    """One task with the examples of all teachers, mixed; a group for each.

    Args:
        train, test: of each teacher: inputs [N, ...] and what it says of them [N, d].
        batch: examples of a step.
        epochs: passes.
        seed: of the order.

    Raises:
        ValueError: numbers out of their ranges; inputs and answers of different lengths.

    >>> one = np.zeros((4, 3), np.float32), np.ones((4, 2), np.float32)
    >>> stream = taught([one, one], [one, one], batch=2)
    >>> stream.rows.shape, stream.groups.rows.shape
    ((1, 4, 2), (2, 4))
    """

    def together(parts: Sequence[Taught]):
        x, y = (np.concatenate(k) for k in zip(*parts, strict=True))
        return x, y, np.repeat(np.arange(len(parts)), [len(k[1]) for k in parts])

    (x, y, who), (tx, ty, tested) = together(train), together(test)
    order = [[k] for k in range(len(train))]
    stream = split((x, who), (tx, tested), order, batch=batch, epochs=epochs, seed=seed)
    stream = joint(stream, jax.random.key(seed))
    groups = stream.groups
    assert isinstance(groups, Groups)  # those of `split` are
    return stream._replace(targets=y, groups=groups._replace(targets=ty))
