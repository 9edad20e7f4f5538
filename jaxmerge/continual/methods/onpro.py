"""Online prototype learning."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmerge.continual import buffers
from jaxmerge.continual.contrast import between, prototypes, unit
from jaxmerge.continual.memories import feedback
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, Positive, Share, methods
from jaxmerge.continual.wraps.head import head_form
from jaxmerge.core.types import Array

KERNEL, BIAS = "projection/kernel", "projection/bias"


class Seen(NamedTuple):
    """Memory of `onpro`: the buffer; prototypes [C, p] and whether there is one; classes met."""

    buffer: Any
    prototypes: Array
    there: Array
    met: Array


@methods.register
def onpro(
    size: Count = 200,
    replay: Count = 64,
    per_class: Count = 7,
    temperature: Positive = 0.07,
    prototype_temperature: Positive = 0.5,
    similarity: Positive = 0.5,
    base: Share = 0.75,
    mix: Share = 0.6,
    projection: Count = 128,
    rotations: bool = True,
) -> Method:
    """OnPro: prototypes of new and old classes repel each other, and those too close are mixed.

    Formula: with P the unit rows of a projection of the features, of an image and of its augmented
    view, and prototypes the means of P for each class in each view,

        contrast of the prototypes of the batch, and of those of a replay batch
        + instance contrast of the batch in 16 rotations (`instance`)
        + CE of the augmented batch                       in the first task
        + instance contrast and CE of the replay batch    in the later ones (CE of the batch: none)

    From the second step of a task on, the replay batch of the last two terms is made of mixtures
    (`jaxmerge.continual.memories.feedback`): pairs of classes whose prototypes lie close have more.

    Args:
        size: examples in the buffer.
        replay, per_class: a replay batch is min(replay, per_class times the classes met).
        temperature: of the instance contrast.
        prototype_temperature: of the contrast of prototypes.
        similarity: lambda of the instance contrast from the second task on (0.5 on CIFAR-10, else
            1); 1 in the first.
        base, mix: share of a replay batch that is not mixed by pairs, and the probability of
            mixing: 0.75 and 0.6 on CIFAR-10, 0.9 and 0.2 else.
        projection: numbers of the projection; less than the features have.
        rotations: False for inputs that are not stored as square images [B, n, n, ...].

    The wrap adds ``projection/kernel`` and ``/bias``. The unaugmented image is the problem's view
    at evaluation. In the authors' settings the optimiser is Adam (0.9, 0.99) with rate 5e-4 and
    decay 1e-4 in the gradient, the stream's batch 10.

    A replay method beside it replays its objective, which is zero after the first task: nothing.

    Memory: `size` examples and C p numbers. A step passes each example of the batch, and from the
    second task on of the replay batch, 34 times through the network, and holds the likenesses of
    the 32 rows of each: (32 replay)^2 numbers, 4 million at 64.

    Source: Wei et al., Online Prototype Learning for Online Continual Learning, ICCV 2023, eq. 4 to
    9; weilllllls/OnPro.

    Differs:
        The buffer is an exact reservoir (`buffers.reservoir`; ``batchwise`` there is the authors').
        The optimiser is new for each task. Prototypes at a step are those of the last one, as
        theirs.

    >>> onpro(size=500, similarity=1, base=0.9, mix=0.2)
    onpro(size=500, similarity=1.0, base=0.9, mix=0.2)
    """

    def wrap(model, tasks):
        def init(key):
            own, below = jax.random.split(key)
            params = dict(model.init(below))
            head = head_form(model, params, "onpro")
            d, kind = head.shape[0], head.dtype
            if projection >= d:
                raise ValueError(
                    f"onpro: projection is {projection}, the features have {d} numbers; less is "
                    "needed."
                )
            draw = jax.random.uniform(own, (d, projection), kind, -(d**-0.5), d**-0.5)
            return params | {KERNEL: draw, BIAS: jnp.zeros(projection, kind)}

        own = lambda n: n in (KERNEL, BIAS)
        return model._replace(init=init, trainable=lambda n: own(n) or model.trainable(n))

    def init(model, params, batch, stored):
        shapes = [x.shape for x in jax.tree.leaves(stored)]
        if rotations and not all(len(s) > 2 and s[1] == s[2] for s in shapes):
            found = ", ".join(str(list(s)) for s in shapes)
            raise ValueError(
                f"onpro turns images as they are stored, [B, n, n, ...]; found {found}: give "
                "rotations=False."
            )
        classes = jax.eval_shape(lambda: model.apply(params, batch.inputs, 0).logits).shape[-1]
        buffer = buffers.empty(size, batch._replace(inputs=stored))
        none = jnp.zeros(classes, bool)
        return Seen(buffer, jnp.zeros((classes, projection), params[KERNEL].dtype), none, none)

    def projected(params, out):
        return unit(out.features @ params[KERNEL] + params[BIAS][None])

    def objective(out, batch, info, task):
        losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, batch.targets)
        return jnp.where(task == 0, losses, 0)

    def looked(model, step, stored, task, key):
        """Outputs of both views: as at evaluation, augmented."""
        one, two, three = jax.random.split(key, 3)
        plain = model.learn(step.params, step.view(stored, task, None), step.task, one)
        return plain, model.learn(step.params, step.view(stored, task, two), step.task, three)

    def replayed(step):
        """The replay batch, places in the buffer, how many, the most, classes met with these."""
        now = jnp.where(step.batch.weight > 0, step.batch.targets, step.memory.met.size)
        met = step.memory.met.at[now].set(True, mode="drop")
        places, batch = draw(step.memory.buffer, jax.random.fold_in(step.key, 1), replay)
        most = jnp.minimum(replay, per_class * jnp.sum(met))
        count = jnp.minimum(jnp.sum(batch.weight > 0), most)
        weight = (jnp.arange(batch.weight.size) < count).astype(step.batch.weight.dtype)
        return batch._replace(weight=weight), places, count, most, met

    def of_classes(model, step, batch, classes):
        """Prototypes of the replay batch in both views, and which classes have one."""
        looks = looked(model, step, batch.inputs, batch.task, jax.random.fold_in(step.key, 2))
        means = [
            prototypes(projected(step.params, out), batch.targets, batch.weight, classes)
            for out in looks
        ]
        return looks, means[0][0], means[1][0], means[0][1]

    def contrasted(model, step, stored, task, labels, weight, key, new, by):
        """The instance contrast of examples in all rotations, and outputs of those not rotated."""
        turned = rotated(stored) if rotations else stored
        many = 16 if rotations else 1
        again = lambda x: jnp.tile(x, many)
        looks = looked(model, step, turned, again(task), key)
        classes = looks[0].logits.shape[-1]
        kinds = jnp.repeat(jnp.arange(many), len(labels)).astype(labels.dtype)
        p = jnp.concatenate([projected(step.params, out) for out in looks])
        f = unit(jnp.concatenate([out.features for out in looks]))
        at = offset(jax.random.fold_in(key, 3), f.shape[1] - projection)
        f = jax.lax.dynamic_slice_in_dim(f, at, projection, 1)
        s = by * (p @ f.T + p @ p.T)
        value = instance(s, again(labels) + classes * kinds, again(weight), temperature, new)
        size = len(labels)
        return value, [jax.tree.map(lambda x: x[:size], out) for out in looks], classes

    def loss(model, step):
        batch, keys = step.batch, jax.random.split(jax.random.fold_in(step.key, 4), 2)
        by = jnp.where(step.task == 0, 1, similarity)
        value, looks, classes = contrasted(
            model, step, step.stored, batch.task, batch.targets, batch.weight, keys[0], True, by
        )
        ours = [
            prototypes(projected(step.params, o), batch.targets, batch.weight, classes)
            for o in looks
        ]
        value = value + between(ours[0][0], ours[1][0], ours[0][1], prototype_temperature)
        old, places, count, most, _ = replayed(step)
        _, one, two, there = of_classes(model, step, old, classes)
        value = value + between(one, two, there, prototype_temperature)
        again = mixtures(step, old, places, count, most)
        labels = (1 - again.by) * again.one + again.by * again.two
        more, looks, _ = contrasted(
            model, step, again.inputs, old.task, labels, again.weight, keys[1], False, by
        )
        ce = lambda y: optax.softmax_cross_entropy_with_integer_labels(looks[1].logits, y)
        losses = (1 - again.by) * ce(again.one) + again.by * ce(again.two)
        mean = jnp.sum(again.weight * losses) / jnp.maximum(jnp.sum(again.weight), 1)
        return value + jnp.where((step.task > 0) & (count > 0), more + mean, 0)

    def mixtures(step, old, places, count, most):
        memory = step.memory
        rows = memory.buffer["rows"]
        there = memory.there & (step.count > 0)
        held = (jnp.arange(size) < buffers.filled(memory.buffer)).astype(old.weight.dtype)
        first = step.count == 0  # not mixed
        return feedback.feedback(
            rows.inputs, rows.targets, held, places, count, jnp.where(first, count, most),
            memory.prototypes, there, jax.random.fold_in(step.key, 5), base,
            jnp.where(first, 0, mix),
        )  # fmt: skip

    def observe(model, step):
        old, _, count, _, met = replayed(step)
        _, one, two, there = of_classes(model, step, old, step.memory.met.size)
        keep = lambda new, before: jnp.where(count > 0, new, before)
        rows = step.batch._replace(inputs=step.stored)
        buffer = buffers.reservoir(step.memory.buffer, rows, step.batch.weight, step.key)
        return Seen(
            buffer, keep((one + two) / 2, step.memory.prototypes), keep(there, step.memory.there),
            met,
        )  # fmt: skip

    return Method(wrap=wrap, init=init, objective=objective, loss=loss, observe=observe)


def draw(buffer: Any, key: Array, count: int) -> tuple[Array, Any]:
    """`count` places drawn without replacement, and the examples there: weight 0 beyond the last.

    There may be more mixtures than the buffer has room for examples.
    """
    found = buffers.distinct_places(buffer, key, count)
    places, there = (jnp.pad(x, (0, count - len(x))) for x in found)
    batch = jax.tree.map(lambda x: x[places], buffer["rows"])
    return places, batch._replace(weight=there.astype(batch.weight.dtype))


def offset(key: Array, room: int) -> Array:
    """Where the window of the features begins."""
    return jax.random.randint(key, (), 0, room)


def instance(
    s: Array, labels: Array, weight: Array, temperature: float | Array, new: bool
) -> Array:
    """Contrast of examples of a class, in two views.

    Formula: E = exp((S - rowmax) / T), R = -log(E / (sum E + 1e-8) + 1e-8). With `new` E has no
    diagonal: 2 mean_i mean over i's class, i too, of R + mean of R over (image, its other view);
    else mean_i mean over i's class of R.

    Args:
        s: [2B, 2B], similarities, first view first; labels: [B], equal where alike; weight: [B].
        new: of the stream.
    """
    many = len(labels)
    twice = lambda x: jnp.concatenate([x, x])
    real, labels = twice(weight) > 0, twice(labels)
    most = jax.lax.stop_gradient(jnp.max(jnp.where(real, s, -jnp.inf), 1, keepdims=True))
    most = jnp.where(jnp.isfinite(most), most, 0)
    on = real & (~jnp.eye(2 * many, dtype=bool) if new else True)
    e = jnp.where(on, jnp.exp(jnp.where(on, s - most, 0) / temperature), 0)
    r = -jnp.log(e / (jnp.sum(e, 1, keepdims=True) + 1e-8) + 1e-8)
    alike = (labels[:, None] == labels) & real
    mean = jnp.sum(jnp.where(alike, r, 0), 1) / (jnp.sum(alike, 1) + 1e-8)
    count = jnp.maximum(jnp.sum(real), 1)
    value = jnp.sum(jnp.where(real, mean, 0)) / count
    if not new:
        return value
    place = jnp.arange(2 * many)
    other = r[place, (place + many) % (2 * many)]
    return 2 * value + jnp.sum(jnp.where(real, other, 0)) / count


def rotated(x: Array) -> Array:
    """[16 B, n, n, ...]: block 4 a + b turned by (0, 2, 1, 3)[a] quarters, after that b.

    b: nothing, the left half turned by two quarters in itself, both halves, the right half.
    """
    width = x.shape[2]
    left, right = x[:, :, : width // 2], x[:, :, width // 2 :]
    turn = lambda y: y[:, ::-1, ::-1]
    halves = [(left, right), (turn(left), right), (turn(left), turn(right)), (left, turn(right))]
    whole = [jnp.concatenate(h, 2) for h in halves]
    return jnp.concatenate([jnp.rot90(y, a, (1, 2)) for a in (0, 2, 1, 3) for y in whole])
