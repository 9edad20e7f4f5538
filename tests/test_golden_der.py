"""ER, DER, DER++ and the reservoir against mammoth's code: slots exact, weights to 1e-12."""

from __future__ import annotations

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, learn, load, stream

from jaxmerge.continual import buffers
from jaxmerge.continual.methods.der import der, derpp
from jaxmerge.continual.methods.er import er
from jaxmerge.continual.optimisers import sgd

FILES = ("er_1", "der_2", "der_5", "derpp_3", "derpp_4")


def drawn(z):
    """Draws of the file in place of random ones; which batch it is, the buffer's counter says."""
    batch, size = int(z["batch"]), int(z["capacity"])
    calls = iter(range(10**6))

    def reservoir(key, shape, low, high):
        return jnp.asarray(z["draw_reservoir"])[(jnp.max(high) - batch) // batch]

    def draw_distinct(buffer, key, count):
        which = ("first", "second")[next(calls) % 2] if str(z["method"]) == "derpp" else "first"
        slots = jnp.asarray(z[f"draw_buffer_indices_{which}"])[buffer["met"] // batch]
        slots = slots[: min(count, size)]
        return jax.tree.map(lambda x: x[slots], buffer["rows"]), (slots >= 0).astype(jnp.float64)

    return mock.patch.object(jax.random, "randint", reservoir), mock.patch.object(
        buffers, "draw_distinct", draw_distinct
    )


@pytest.mark.parametrize("name", FILES)
def test_a_stream_of_the_original(name, x64):
    z = load("der", name)
    size, replay = int(z["capacity"]), int(z["buffer_batch"])
    alpha, beta = float(z["alpha"]), float(z["beta"])
    method = {
        "er": lambda: er(size, replay),
        "der": lambda: der(size, alpha, replay),
        "derpp": lambda: derpp(size, alpha, beta, replay),
    }[str(z["method"])]()
    model = given((z["init_w1"], z["init_w2"]), (z["init_b1"], z["init_b2"]), "tanh")
    optimiser = sgd(
        rate=float(z["lr"]), momentum=float(z["momentum"]), weight_decay=float(z["weight_decay"])
    )
    one, two = drawn(z)
    with one, two:
        tasks = stream([z["stream_x"]], [z["stream_y"]], classes=4)
        result, (state,) = learn(model, tasks, method, optimiser=optimiser)
    close(result.losses[0], z["losses"], 1e-12)
    for n, leaf in {"w1": "layer_0/kernel", "w2": "head/kernel"}.items():
        close(state.params[leaf].T, z[f"final_{n}"], 1e-12)
    close(state.params["head/bias"], z["final_b2"], 1e-12)
    rows, held = state.memory[0]["rows"], int(buffers.filled(state.memory[0]))
    close(rows.inputs[:held], z["final_buffer_x"][:held], 0)
    assert not z["final_buffer_x"][held:].any()  # free places: zeros there
    if z["final_buffer_y"].size:
        assert np.array_equal(rows.targets[:held], z["final_buffer_y"][:held])
    if "final_buffer_logits" in z and z["final_buffer_logits"].size:
        close(rows.logits[:held], z["final_buffer_logits"][:held], 1e-12)


@pytest.mark.parametrize("case", range(3))
def test_reservoir_slots(case):
    z = load("der", "reservoir")
    slots, draws, size = z[f"c{case}_slot"], z[f"c{case}_draw"], int(z[f"c{case}_capacity"])
    for batch in (1, 3, len(slots)):
        buffer = buffers.empty(size, jnp.zeros((1,)))
        for first in range(0, len(slots), batch):
            part = draws[first : first + batch]
            with mock.patch.object(jax.random, "randint", lambda *a, part=part: jnp.asarray(part)):
                rows = jnp.arange(first, first + len(part)) + 1.0
                buffer = buffers.reservoir(buffer, rows, jnp.ones(len(part)), jax.random.key(0))
            stored = np.zeros(size)
            for item, slot in enumerate(slots[: first + len(part)]):
                if slot >= 0:
                    stored[slot] = item + 1
            close(buffer["rows"], stored, 0)


@functools.partial(jax.jit, static_argnames="classes")
def write(buffer, rows, draws, classes):
    """One call of `buffers.balanced` as released, with given draws."""
    with mock.patch.object(jax.random, "randint", return_value=draws):
        return buffers.balanced(
            buffer, rows, jnp.ones(len(rows["item"])), jax.random.key(0), rows["label"],
            buffer["rows"]["label"], classes, released=True,
        )  # fmt: skip


@pytest.mark.parametrize("case", range(2))
@pytest.mark.parametrize("batch", [1, 7])
def test_balanced_slots(case, batch):
    z = load("der", "reservoir")
    labels, size = z[f"b{case}_labels"], int(z[f"b{case}_capacity"])
    draws = np.concatenate([np.zeros(size, int), z[f"b{case}_draw"]])
    buffer = buffers.empty(size, {"item": jnp.zeros((1,)), "label": jnp.zeros((1,), int)})
    for first in range(0, len(labels), batch):
        part = slice(first, first + batch)
        count = len(labels[part])
        rows = {"item": np.arange(first, first + count) * 1.0, "label": labels[part]}
        buffer = write(buffer, rows, draws[part], int(labels.max()) + 1)
        used = np.arange(size) < int(buffer["met"])
        actual = np.where(used, buffer["rows"]["item"], -1)
        close(actual, z[f"b{case}_content"][first + count - 1], 0)


def test_balanced_shares_are_equal():
    """A long stream of class 0 and a short one of class 1 have equal shares (not as released)."""
    labels = jnp.asarray([0] * 200 + [1] * 40)
    buffer = buffers.empty(20, jnp.zeros((1,), int))
    put = jax.jit(lambda b, x, key: buffers.balanced(b, x, jnp.ones(8), key, x, b["rows"], 2))
    for first in range(0, 240, 8):
        buffer = put(
            buffer, labels[first : first + 8], jax.random.fold_in(jax.random.key(1), first)
        )
    assert abs(int(jnp.sum(buffer["rows"] == 1)) - 10) <= 1
