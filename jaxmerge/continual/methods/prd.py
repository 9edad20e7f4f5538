"""Prototype-sample relation distillation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual import columns
from jaxmerge.continual.contrast import supervised, unit
from jaxmerge.continual.memories.leaves import shared
from jaxmerge.continual.records import Method, Outputs, Step
from jaxmerge.continual.registry import Count, NonNegative, Positive, methods
from jaxmerge.continual.wraps.head import head_form, with_head
from jaxmerge.core.types import Array

PROTOTYPES, KERNEL, BIAS = "prototypes", "projection/kernel", "projection/bias"


@methods.register
def prd(
    prototypes: NonNegative = 2.0,
    distill: NonNegative = 4.0,
    temperature: Positive = 0.1,
    distill_temperature: Positive = 1.0,
    projection: Count = 128,
) -> Method:
    """PRD: a contrastive representation, prototypes beside it, and old relations to them held.

    Formula: over two views of a batch of N, features f [2N, d],

        supervised contrast of the unit rows of a linear projection of f
        + prototypes mean (1 - cos(stopgrad f, P_y))
        + distill sum over earlier tasks h of mean KL(softmax(s_last / T_d) || softmax(s / T_d))

    with s = f P_c / |P_c| over the columns c of task h (f is not normalised), s_last those of the
    last model and its prototypes. Nothing of the past is stored. Prediction: cosine of f with the
    prototypes of all classes.

    Args:
        prototypes, distill: weights of the terms.
        temperature: of the contrast.
        distill_temperature: T_d.
        projection: numbers of the projection.

    The wrap adds ``prototypes`` [C, d] and ``projection/kernel``, ``/bias``; the model's own head
    is not used. A replay method beside it replays the term of the prototypes alone. The second view
    is the problem's, with another key. In the authors' settings SGD has momentum 0.9 and decay
    1e-4, and neither for the prototypes::

        by_name((("prototypes", sgd(0.01)), (".*", sgd(0.01, momentum=0.9, weight_decay=1e-4))))

    Memory: 1 model, and one more forward pass a step and view.

    Source: Asadi et al., Prototype-Sample Relation Distillation, ICML 2023, eq. 2 to 6;
    naderAsadi/Probing-Continual-Learning, ``methods/repe.py``, whose softmax is over the classes of
    a head (the paper's, over samples).

    Differs:
        The optimiser is new for each task; the authors have one for the stream. The teacher is the
        model as at evaluation; theirs stays in training mode.

    >>> prd(temperature=0.2)
    prd(temperature=0.2)
    """

    def wrap(model, tasks):
        def leaves(params, key):
            head = head_form(model, params, "prd")
            d, classes = head.shape
            one, two = jax.random.split(key)
            kind, bound = head.dtype, d**-0.5
            draw = lambda key, shape: jax.random.uniform(key, shape, kind, -bound, bound)
            return {
                PROTOTYPES: draw(one, (classes, d)), KERNEL: draw(two, (d, projection)),
                BIAS: jnp.zeros(projection, kind),
            }  # fmt: skip

        def read(params, out):
            f, rows = out.features, unit(params[PROTOTYPES])
            aux = {**(out.aux or {}), "detached": unit(jax.lax.stop_gradient(f)) @ rows.T}
            return Outputs(unit(f) @ rows.T, f, aux)

        return with_head(model, leaves, read, (PROTOTYPES, KERNEL, BIAS))

    def objective(out, batch, info, task):
        near = jnp.take_along_axis(out.aux["detached"], batch.targets[:, None], 1)[:, 0]
        return prototypes / 2 * (1 - near)

    def loss(model, step):
        one, two = jax.random.split(step.key)
        again = second_view(step, one)
        out = model.learn(step.params, again, step.task, two)
        labels, weight = step.batch.targets, step.batch.weight
        both = lambda a, b: jnp.concatenate([a, b])
        f = both(step.outputs.features, out.features)
        z = unit(f @ step.params[KERNEL] + step.params[BIAS][None])
        twice = both(weight, weight)
        contrast = supervised(z, both(labels, labels), twice, temperature)
        near = jnp.sum(weight * objective(out, step.batch, step.info, step.task)) / jnp.sum(weight)
        return contrast + near + distill * held(model, step, f, again, twice)

    def held(model, step, f, again, weight):
        before = {**step.params, **step.memory}
        look = lambda x: model.apply(before, x, step.task).features
        old = jax.lax.stop_gradient(jnp.concatenate([look(step.batch.inputs), look(again)]))
        table = columns.table(step.info)
        earlier = table & (jnp.arange(table.shape[0]) < step.task)[:, None]

        def soft(f, params):
            scores = f @ unit(params[PROTOTYPES]).T / distill_temperature
            return jax.nn.log_softmax(jnp.where(earlier[:, None], scores, -1e30))

        last, now = jax.lax.stop_gradient(soft(old, before)), soft(f, step.params)
        apart = jnp.where(earlier[:, None], jnp.exp(last) * (last - now), 0)
        return jnp.sum(weight * jnp.sum(apart, (0, 2))) / jnp.sum(weight)

    return Method(
        wrap=wrap, init=lambda model, params, batch, stored: shared(model, params),
        objective=objective, loss=loss, replaces=("the head",),
        end=lambda model, params, memory, border: (params, {n: params[n] for n in memory}),
    )  # fmt: skip


def second_view(step: Step, key: Array) -> Array:
    """The batch seen once more."""
    return step.view(step.stored, step.batch.task, key)
