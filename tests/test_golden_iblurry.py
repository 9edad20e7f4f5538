"""CLIB's and PL-FMS's memory and learning rate against the authors' code: slots exact, 1e-12."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, load

from jaxmerge.continual.memories import importance, rate
from jaxmerge.continual.methods.pl_fms import keep_probability


@jax.jit
def come(memory, row, label, level):
    one = lambda x: jnp.asarray(x)[None]
    return importance.insert(memory, one(row), one(label), jnp.ones(1), level)[0]


def compare(memory, z, i):
    """The contents and counts after sample i."""
    assert np.array_equal(
        np.where(memory.label >= 0, memory.rows, -1), z["content_after_sample"][i]
    )
    counts = np.bincount(memory.label[memory.label >= 0], minlength=memory.first.size)
    assert np.array_equal(counts, z["class_count_after_sample"][i])


def weighed(memory, z, k, losses):
    """Use, losses and importances of update k."""
    batch = z["batch_indices"][k]
    memory = importance.use(memory, jnp.asarray(np.maximum(batch, 0)), jnp.asarray(batch >= 0))
    period = int(z["importance_update_period"])
    full = np.asarray(memory.label) >= 0
    stored = np.nan_to_num(z["losses_after_update"][k])
    if (k + 1) % period == 0:
        now = np.zeros(len(full))
        now[full] = losses(np.asarray(memory.rows)[full])
        close(now[full], stored[full], 1e-12)
        memory = jax.jit(importance.update)(memory, jnp.asarray(now))
    close(memory.value[full], z["importance_after_update"][k][full], 1e-12)
    return memory


def cross_entropy(logits, labels):
    logits = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


@pytest.mark.parametrize("name", ["importance_memory_a", "importance_memory_b"])
def test_importance_memory(name, x64):
    z = load("iblurry", name)
    labels, updates = z["labels"], int(z["updates_per_sample"])
    classes = int(labels.max()) + 1
    order = list(dict.fromkeys(labels.tolist()))
    memory = importance.empty(int(z["capacity"]), classes, jnp.zeros((1,), int), jnp.float64)
    for i, label in enumerate(labels):
        memory = come(memory, i, label, jnp.zeros(classes, int))
        compare(memory, z, i)
        met = [c for c in order if c in labels[: i + 1]]
        place = {c: k for k, c in enumerate(met)}
        for k in range(updates * i, updates * (i + 1)):
            weights = (z["weights"] + z["weight_drift_per_update"][k])[: len(met)]
            losses = lambda rows, w=weights, place=place: cross_entropy(
                z["features"][rows] @ w.T, [place[c] for c in labels[rows]]
            )
            memory = weighed(memory, z, k, losses)


def test_importance_memory_of_a_hierarchy(x64):
    """PL-FMS with the losses of its code, which are cut to integers."""
    z = load("hle", "importance_memory_integer_losses")
    labels, coarse = z["labels"], int(z["n_coarse_classes"])
    classes = z["class_count_after_sample"].shape[1]
    level = jnp.asarray(np.arange(classes) >= coarse, int)
    order = list(dict.fromkeys(labels.tolist()))
    memory = importance.empty(int(z["capacity"]), classes, jnp.zeros((1,), int), jnp.float64)
    for i, label in enumerate(labels):
        memory = come(memory, i, label, level)
        compare(memory, z, i)
        if not i:
            continue
        met = [c for c in order if c in labels[: i + 1]]
        weights = z["weights"] + z["weight_drift_per_update"][i - 1]

        def losses(rows, met=met, weights=weights):
            values = []
            for r in rows:
                same = [k for k, c in enumerate(met) if (c >= coarse) == (labels[r] >= coarse)]
                logits = (weights[same] @ z["features"][r])[None]
                values.append(cross_entropy(logits, [[met[k] for k in same].index(labels[r])])[0])
            return np.trunc(values)

        memory = weighed(memory, z, i - 1, losses)


def test_flexible_memory_sampling(x64):
    z = load("hle", "flexible_memory_sampling")
    labels, size = z["labels"], int(z["stream_batch"])
    first = np.full(int(labels.max()) + 1, np.iinfo(np.int32).max)
    for k in range(len(z["kept"])):
        part = labels[k * size : (k + 1) * size]
        for i, y in enumerate(part):
            first[y] = min(first[y], k * size + i)
        met, total = (k * size, (k + 1) * size), int(z["total_samples"])
        p = keep_probability(jnp.asarray(first), part, *met, total)
        close(p, z["keep_probability"][k], 1e-12)
        kept = z["draw_uniform"][k] <= np.asarray(p)
        assert kept.tolist() == z["kept"][k].tolist()
        ids = (k * size + np.arange(size))[kept]
        assert z["batch_sample_ids"][k][: len(ids)].tolist() == ids.tolist()
        slots = np.sum(z["memory_slots_drawn"][k] >= 0)
        assert slots == min(int(z["batch"]) - len(ids), (k + 1) * size, int(z["capacity"]))


def test_learning_rate(x64):
    z = load("iblurry", "adaptive_lr")
    size = z["losses"].shape[1]
    state, lr = rate.start(size, jnp.float64), float(z["lr"])
    step = jax.jit(
        lambda s, losses, written: rate.advance(s, losses, jnp.ones(size, bool), written)
    )
    used, pairs = [], []
    for losses, dropped in zip(z["losses"], z["dropped_index"], strict=True):
        state = step(state, jnp.asarray(losses), jnp.arange(size) == dropped)
        used.append(float(state.now) * lr)
        pairs.append([float(state.high) * lr, float(state.high) * 0.95 * lr])
    close(used, z["lr_after_step"], 1e-12)
    close(pairs, z["high_low"], 1e-12)
