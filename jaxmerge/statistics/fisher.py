"""The diagonal Fisher information of a classifier: how much each weight matters to its outputs.

    true       F = E_x sum_c p(c|x) (d log p(c|x) / d theta)^2      exact expectation over labels
    sampled    the same with one label drawn from p(.|x)            cheap for many classes
    empirical  the same with the data's own labels

The square is taken of each example's gradient, not of a batch's: per-example gradients come from
`vmap`, a chunk of examples at a time, so memory is `chunk` models, whatever the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.names import is_float
from jaxmerge.core.types import Array, Leaves, Tree
from jaxmerge.numerics.fisher import model_labels, sum_of_squares
from jaxmerge.statistics.store import Statistic, weights_hash

Kind = Literal["true", "sampled", "empirical"]


def fisher(
    apply: Callable[[Leaves, Tree], Array],
    params: Leaves,
    batches: Iterable[tuple[Tree, Array | None]],
    *,
    kind: Kind = "true",
    chunk: int = 8,
    key: jax.Array | None = None,
    about: dict[str, Any] | None = None,
) -> Statistic:
    """The diagonal Fisher information, averaged over examples.

    Args:
        apply: ``(params, inputs [B, ...]) -> logits [B, C]``.
        params: name -> array.
        batches: of ``(inputs, labels)``; labels may be None unless `kind` is "empirical".
        kind: see the module's docstring.
        chunk: examples (times classes for "true") differentiated at once.
        key: PRNG key, for "sampled".
        about: further facts that are stored with it, such as the name of the data.

    Returns:
        A `Statistic` whose values have the shapes of `params`, float32, all >= 0.

    Raises:
        ValueError: no data, labels outside the head, NaN or Inf in a gradient (leaves named).

    Memory: `chunk` + 2 models.

    Source: Matena & Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022, eq. 3.

    Example:
        >>> apply = lambda p, x: x @ p["w"]
        >>> batch = (np.eye(2, dtype=np.float32), np.array([0, 1]))
        >>> f = fisher(apply, {"w": np.zeros((2, 2), np.float32)}, [batch])
        >>> f.samples, f.values["w"].tolist()
        (2, [[0.125, 0.125], [0.125, 0.125]])
    """
    if kind not in ("true", "sampled", "empirical"):
        raise ValueError(f"kind must be 'true', 'sampled' or 'empirical', got {kind!r}.")
    if kind == "sampled" and key is None:
        raise ValueError("kind='sampled' draws labels: pass key=jax.random.key(seed).")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    params = {n: jnp.asarray(x) for n, x in params.items() if is_float(x)}
    total = {n: jnp.zeros(x.shape, jnp.float32) for n, x in params.items()}
    samples = 0
    for i, batch in enumerate(batches):
        inputs, labels = pair(batch)
        shape = jax.eval_shape(apply, params, inputs).shape
        if len(shape) != 2:
            raise ValueError(f"apply must return logits [B, C], got shape {list(shape)}.")
        if not shape[0]:
            continue
        if kind == "empirical":
            check_labels(labels, shape)
        draw = None if key is None else jax.random.fold_in(key, i)
        total = _add(apply, kind, chunk, total, params, inputs, labels, draw)
        samples += shape[0]
    if not samples:
        raise ValueError("The Fisher information needs data, got no batch.")
    refuse_nonfinite(total, "the Fisher information")
    values = {n: np.asarray(x) / samples for n, x in total.items()}
    return Statistic(
        "fisher", values, samples, weights_hash(params), {"variant": kind, **(about or {})}
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _add(apply, kind, chunk, total, params, inputs, labels, key):
    logits = apply(params, inputs)
    count, classes = logits.shape
    if kind == "true":  # every example with every label, weighted by its probability
        weight = jax.nn.softmax(logits).ravel().astype(jnp.float32)
        which = jnp.repeat(jnp.arange(count), classes)
        labels = jnp.tile(jnp.arange(classes), count)
    else:
        weight, which = jnp.ones(count, jnp.float32), jnp.arange(count)
        if kind == "sampled":
            labels = model_labels("sampled", logits, key)

    def gradient(item):
        i, label = item
        example = jax.tree.map(lambda x: x[i][None], inputs)
        log_prob = lambda params: jax.nn.log_softmax(apply(params, example)[0])[label]
        return jax.grad(log_prob)(params)

    return sum_of_squares(gradient, (which, jnp.asarray(labels)), weight, total, chunk=chunk)


def pair(batch: Any) -> tuple[Any, Any]:
    """The inputs and the labels of a batch; raise ValueError if it is something else."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            "A batch must be a pair (inputs, labels), found something else; without labels write "
            "(inputs, None)."
        )
    return batch[0], batch[1]


def check_labels(labels: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless every label indexes a class of logits [B, C]."""
    if labels is None:
        raise ValueError("kind='empirical' needs labels, got none.")
    labels = np.asarray(labels)
    if labels.shape != shape[:1]:
        raise ValueError(
            f"Found labels of shape {list(labels.shape)} for {shape[0]} examples; give one class "
            "number for each."
        )
    if labels.dtype.kind not in "iub":
        raise ValueError(f"Labels must be whole numbers, got {labels.dtype}; number the classes.")
    wrong = sorted({int(x) for x in labels if not 0 <= x < shape[1]})
    if wrong:
        raise ValueError(
            f"Labels {wrong[:10]} are outside the head's {shape[1]} classes (0 to {shape[1] - 1}); "
            "remap the labels or use the head that belongs to the data."
        )


def refuse_nonfinite(tree: Leaves, what: str) -> None:
    """Raise ValueError that names every leaf with NaN or Inf."""
    wrong = [n for n, x in tree.items() if not np.isfinite(np.asarray(x)).all()]
    if wrong:
        raise ValueError(
            f"NaN or Inf in {what}, leaves {wrong[:10]}{' ...' * (len(wrong) > 10)}: check the "
            "inputs and the checkpoint, or compute in float32."
        )
