"""A frozen head of language in the place of a trained one."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.contrast import unit
from jaxmerge.continual.hook_calls import kind
from jaxmerge.continual.records import Method, Outputs
from jaxmerge.continual.registry import Positive, methods
from jaxmerge.continual.wraps.head import head_form, with_head
from jaxmerge.core.types import Array, concrete

ROWS, SCALE, PROJECTION = "language/rows", "language/scale", "language/projection"


@methods.register
def lingocl(embeddings: Array | Sequence[Sequence[float]], scale: Positive = 1.0) -> Method:
    """LingoCL's head, the published training is not known: frozen embeddings of the class names.

    Formula: logits = eta (x / |x|) (E / |E|)', x the features, E [C, d] what a language model says
    of the class names (`jaxmerge.models.heads.text_head` makes them), never trained; eta one
    trained number. Methods with a head of their own (`prd`) or for the one that is replaced
    (`slca`, `slcapp`) cannot stand beside it.

    Args:
        embeddings: E, a row for every column; random rows are the control that tells whether
            language helps or only that rows are fixed.
        scale: where eta starts.

    Raises:
        ValueError: embeddings that are no numbers [classes, d], or not a row for every column; one
            that is not finite, a row of zeros.

    Where the features have another width than E, a trained projection ``language/projection``
    without a bias comes between, a form of **ours**.

    Memory: C d numbers.

    Source: Ni et al., Enhancing Visual Continual Learning with Language-Guided Supervision, CVPR
    2024, section 3; no code of theirs was found. The formula is compared with the cosine classifier
    of KevinLight831/CTP; language models, prompts and the start of eta are not established.

    >>> lingocl([[1.0, 0.0], [0.0, 1.0]])
    lingocl(embeddings=((1.0, 0.0), (0.0, 1.0)))
    """

    def wrap(model, tasks):
        rows = _checked(embeddings)

        def leaves(params, key):
            head = head_form(model, params, "lingocl")
            (d, classes), kind = head.shape, head.dtype
            if rows.ndim != 2 or len(rows) != classes:
                raise ValueError(
                    f"lingocl: embeddings are [classes, d], {classes} rows here; got "
                    f"{list(rows.shape)}."
                )
            new = {ROWS: rows.astype(kind), SCALE: jnp.asarray(scale, kind)}
            if rows.shape[1] != d:
                bound = d**-0.5
                new[PROJECTION] = jax.random.uniform(key, (d, rows.shape[1]), kind, -bound, bound)
            return new

        def read(params, out):
            f = out.features @ params[PROJECTION] if PROJECTION in params else out.features
            logits = params[SCALE] * (unit(f) @ unit(params[ROWS]).T)
            return Outputs(logits, out.features, out.aux)

        return with_head(model, leaves, read, (SCALE, PROJECTION), (ROWS,))

    return Method(wrap=wrap, replaces=("the head",))


def _checked(embeddings: Array | Sequence[Sequence[float]]) -> Array:
    """The embeddings as an array, or a ValueError."""
    try:
        rows = jnp.asarray(embeddings, float)
    except (TypeError, ValueError):
        rows = jnp.zeros(())
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"lingocl: embeddings are numbers [classes, d]; got {kind(embeddings)}.")
    if concrete(rows):
        sizes = np.linalg.norm(np.asarray(rows), axis=1)
        if odd := np.flatnonzero(~np.isfinite(sizes) | (sizes == 0)).tolist():
            raise ValueError(
                f"lingocl: every row of the embeddings is finite and not zero; rows "
                f"{', '.join(map(str, odd[:5]))}{' and others' if len(odd) > 5 else ''} are not."
            )
    return rows
