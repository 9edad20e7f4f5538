"""EWC, L2, ER, DER and LwF are one objective of Bregman divergences; refresh learning wraps each.

    L(theta) = L_CE(x, y) + alpha D_Phi(h_theta(x'), z) + beta D_Psi(theta, theta_old)
    D_F(p, q) = F(p) - F(q) - <grad F(q), p - q>

Wang et al., A Unified and General Framework for Continual Learning, ICLR 2024.  Here it is built of
the convex functions alone, with a network, importances, buffers and teachers of the test's own; in
steps of a stream the mechanism's loss is its value, and what SGD did is its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, stream
from jax.scipy.special import logsumexp, xlogy

from jaxmerge.continual import stages
from jaxmerge.continual.methods import der, er, ewc, l2, lwf, refresh
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.stream_records import Setup

RATE = 0.3
OWN = np.repeat(np.eye(3, dtype=bool), (2, 3, 2), axis=1)  # columns of three tasks
CLASSES = OWN.shape[1]


# ------------------------------------------------------------------ the family


def bregman(convex: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """D(p, q) of a convex function of arrays or of leaves."""

    def divergence(p, q):
        value, slope = jax.value_and_grad(convex)(q)
        along = jax.tree.map(lambda s, p, q: jnp.sum(s * (p - q)), slope, p, q)
        return convex(p) - value - sum(jax.tree.leaves(along))

    return divergence


def negative_entropy(p):
    return jnp.sum(xlogy(p, p))


def half_square(h):
    return 0.5 * jnp.sum(h**2)


def half_quadratic(importance):
    return lambda theta: 0.5 * sum(jnp.sum(f * theta[n] ** 2) for n, f in importance.items())


def old_heads(heads, temperature):
    """Sum over heads of the log-sum-exp of their columns: convex in all logits."""
    return lambda h: sum(logsumexp(h[own] / temperature) for own in heads)


@jax.jit
def logits(theta, x):
    hidden = jnp.tanh(x @ theta["layer_0/kernel"] + theta["layer_0/bias"])
    return hidden @ theta["head/kernel"] + theta["head/bias"]


def cross_entropy(theta, x, y):
    return -jnp.mean(jax.nn.log_softmax(logits(theta, x))[jnp.arange(len(y)), y])


class Unified(NamedTuple):
    """The objective on (x, y), but for the numbers that a method counts otherwise."""

    outputs: tuple = ()  # of (alpha, divergence of (h(x'), z), x', z)
    weights: tuple = ()  # of (beta, divergence of (theta, theta_old), theta_old)
    times: float = 1.0  # the method's loss is `times` the objective
    plus: float = 0.0  # and so much more, whatever theta is

    def __call__(self, theta, x, y):
        value = cross_entropy(theta, x, y)
        for alpha, divergence, inputs, z in self.outputs:
            value += alpha * jnp.mean(jax.vmap(divergence)(logits(theta, inputs), z))
        for beta, divergence, old in self.weights:
            value += beta * divergence(theta, old)
        return self.times * value + self.plus


# ------------------------------------------------------------------ its members


class Past(NamedTuple):
    """What came before a step."""

    steps: list  # of (task, theta, x, y), the weights that the step looked at
    ends: list  # theta after each task

    def met(self, task=None):
        """Examples, of all tasks or of one: all that the buffers hold and replay."""
        chosen = [step[2:] for step in self.steps if task in (None, step[0])]
        return tuple(np.concatenate(part) for part in zip(*chosen, strict=True))


def labels_replayed(method, number):
    """ER: negative entropy against one-hot labels, which is the cross-entropy."""
    against = bregman(negative_entropy)
    divergence = lambda h, z: against(z, jax.nn.softmax(h))

    def objective(past, x):
        if not past.steps:
            return Unified()
        inputs, y = past.met()
        alpha, times = number(len(inputs), len(x))
        return Unified(((alpha, divergence, inputs, jnp.eye(CLASSES)[y]),), times=times)

    return method, objective


def logits_replayed(alpha):
    """DER: half the squared norm against the logits of when an example was met."""

    def objective(past, x):
        if not past.steps:
            return Unified()
        z = jnp.concatenate([logits(theta, inputs) for _, theta, inputs, _ in past.steps])
        inputs, _ = past.met()
        return Unified(((2 * alpha / CLASSES, bregman(half_square), inputs, z),))

    return der(40, alpha, replay=40), objective


def teacher_answers(strength, temperature, heads):
    """LwF: log-sum-exp on old heads, against the logits of the last model; less than the
    cross-entropy by the entropy of the teacher."""

    def objective(past, x):
        tasks = range(len(past.ends))
        columns = [np.flatnonzero(OWN[k]) for k in tasks]
        columns = [np.concatenate(columns)] if columns and heads == "joined" else columns
        if not columns:
            return Unified()
        z = logits(past.ends[-1], x)
        p = [jax.nn.softmax(z[:, own] / temperature) for own in columns]
        entropy = -sum(float(jnp.mean(jnp.sum(xlogy(p, p), -1))) for p in p)
        divergence = bregman(old_heads(columns, temperature))
        return Unified(((strength, divergence, x, z),), plus=strength * entropy)

    return lwf(strength, temperature, heads), objective


@jax.jit
def fisher(theta, x):
    """The diagonal of the Fisher information: the expectation over examples and the model's labels
    of squared gradients."""

    def one(x):
        log_p = lambda theta: jax.nn.log_softmax(logits(theta, x))
        p = jnp.exp(log_p(theta))
        return jax.tree.map(lambda g: jnp.tensordot(p, g**2, 1), jax.jacrev(log_p)(theta))

    return jax.tree.map(lambda f: jnp.mean(f, 0), jax.vmap(one)(x))


def weights_held(method, beta, importance, slots):
    """EWC and L2: half a quadratic form, around the weights after a task."""

    def objective(past, x):
        each = [importance(end, past.met(k)[0]) for k, end in enumerate(past.ends)]
        if each and slots == "sum":
            each = [jax.tree.map(lambda *f: sum(f), *each)]
        each = each[-1:] if slots == "last" else each
        ends = past.ends[len(past.ends) - len(each) :]
        terms = [(beta, bregman(half_quadratic(f)), end) for f, end in zip(each, ends, strict=True)]
        return Unified(weights=tuple(terms))

    return method, objective


ones = lambda theta, x: jax.tree.map(jnp.ones_like, theta)

FAMILY = {
    "er": lambda: labels_replayed(er(40, replay=40), lambda m, n: (m / n, n / (n + m))),
    "er strength": lambda: labels_replayed(er(40, 40, strength=0.7), lambda m, n: (0.7, 1)),
    "der": lambda: logits_replayed(0.4),
    "lwf": lambda: teacher_answers(0.7, 3.0, "each"),
    "lwf joined": lambda: teacher_answers(1.3, 0.5, "joined"),
    "ewc": lambda: weights_held(ewc(4.0, labels="expected"), 8.0, fisher, "each"),
    "ewc sum": lambda: weights_held(ewc(4.0, "expected", "sum"), 8.0, fisher, "sum"),
    "l2": lambda: weights_held(l2(0.2, first=False), 0.4, ones, "last"),
}


# ------------------------------------------------------------------ steps of the mechanism


def walk(*methods):
    """Every step of a stream of three tasks: ``(task, theta before, theta after, loss, x, y)``."""
    rng = np.random.default_rng(5)
    drawn = lambda *shape: rng.normal(size=shape)
    model = given((drawn(4, 5), drawn(CLASSES, 4)), (drawn(4), drawn(CLASSES)), "tanh")
    xs = [drawn(2, 4, 5) * (1 + t) - 0.3 * t for t in range(3)]
    ys = [rng.choice(np.flatnonzero(OWN[t]), (2, 4)) for t in range(3)]
    tasks = stream(xs, ys, own=OWN)
    setup = Setup(model, classification(metrics=("accuracy",)), sgd(RATE), methods)
    step = jax.jit(lambda state, t, part: stages.train(setup, tasks, state, t, part, 2))
    end = jax.jit(lambda state, t: stages.end(setup, tasks, state, t))
    state = stages.create(setup, tasks, jax.random.key(1))
    for t in range(3):
        state = stages.begin(setup, tasks, state, t)
        for s in range(len(xs[t])):
            part = tuple(x[t, s : s + 1] for x in (tasks.rows, tasks.origin, tasks.weight))
            before, (state, losses) = state.params, step(state, t, part)
            yield t, before, state.params, losses[0], xs[t][s], ys[t][s]
        state = end(state, t)


def compare(methods, objective, look=lambda theta, past, x, y: theta):
    """Value and gradient of the last step of every task; `look` says where a step looks."""
    past = Past([], [])
    for k, (t, before, after, loss, x, y) in enumerate(walk(*methods)):
        if len(past.ends) < t:
            past.ends.append(before)
        theta = look(before, past, x, y)
        if k % 2:
            both = jax.jit(jax.value_and_grad(objective(past, x)))
            value, gradient = both(theta, x, y)
            close(loss, value, 1e-12)
            for n, g in gradient.items():
                close((theta[n] - after[n]) / RATE, g, 1e-12)
        past.steps.append((t, theta, x, y))


@pytest.mark.parametrize("name", FAMILY)
def test_a_method_is_a_member_of_the_family(name, x64):
    method, objective = FAMILY[name]()
    compare([method], objective)


@pytest.mark.parametrize("name", ["er", "der", "lwf", "ewc"])
def test_refresh_learning_wraps_every_member(name, x64):
    """The step looks at weights that moved where L_CE rises, and relearns the same objective."""
    size, damping, decay = 0.05, 20.0, 0.5

    @jax.jit
    def importance(held, theta, x, y):
        def log_q(theta, x, y):
            return -cross_entropy(theta, x[None], y[None])

        value, h = jax.vmap(jax.value_and_grad(log_q), (None, 0, 0))(theta, x, y)
        fresh = jax.tree.map(lambda h: jnp.tensordot(jnp.exp(value), h**2, 1) / len(y), h)
        return jax.tree.map(lambda f, new: decay * f + new, held, fresh)

    @jax.jit
    def moved(theta, held, x, y):
        d, length = jax.grad(cross_entropy)(theta, x, y), lambda p: jnp.sqrt(jnp.sum(p**2))
        return jax.tree.map(
            lambda p, f, d: p + size / (1 + damping * f) * length(p) / length(d) * d, theta, held, d
        )

    def unlearnt(theta, past, x, y):
        held = {n: np.zeros(p.shape) for n, p in theta.items()}
        for k, end in enumerate(past.ends):
            held = importance(held, end, *past.met(k))
        return moved(theta, held, x, y)

    method, objective = FAMILY[name]()
    compare([refresh(size, 0.0, damping, decay), method], objective, unlearnt)


def test_the_divergences_are_those_with_names(x64):
    """KL both ways round: the convex conjugate of the negative entropy is the log-sum-exp."""
    rng = np.random.default_rng(0)
    h, z, scale = rng.normal(size=6), rng.normal(size=6), rng.uniform(size=6)
    p, q = jax.nn.softmax(h), jax.nn.softmax(z)
    kl = np.sum(q * np.log(q / p))
    close(bregman(negative_entropy)(q, p), kl, 1e-14)
    close(bregman(logsumexp)(h, z), kl, 1e-14)
    close(bregman(negative_entropy)(np.eye(6)[2], p), -np.log(p[2]), 1e-14)
    close(bregman(half_square)(h, z), 0.5 * np.sum((h - z) ** 2), 1e-14)
    quadratic = bregman(half_quadratic({"w": scale}))
    close(quadratic({"w": h}, {"w": z}), 0.5 * np.sum(scale * (h - z) ** 2), 1e-14)
