"""A decoder as the model of a stream: next tokens in windows of text."""

from __future__ import annotations

import json
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models, problems
from jaxmerge.continual.stream_records import Evaluator, Problem
from jaxmerge.core.types import Array, Leaves
from jaxmerge.data.language import Windows
from jaxmerge.models.decoder import modeling
from jaxmerge.models.decoder.config import Config
from jaxmerge.models.decoder.modeling import Decoder, Positions
from jaxmerge.models.decoder.scoring import target_scores
from jaxmerge.models.transformer import Compute, bind


@models.register
def decoder(
    config: str,
    dtype: Literal["float32", "bfloat16"] = "float32",
    scan: bool = False,
    remat: Literal["dots", "full"] | None = None,
    attention: Literal["plain", "fused", "cudnn"] = "plain",
) -> Model:
    """A decoder that learns the targets of `Windows`; its inputs are the whole `Windows`.

    Logits never leave the model: ``aux["log_p"]`` is `[B, L]`, the log-probability of every
    target, and ``aux["best"]`` whether it is the most likely token.

    Args:
      config: config.json as text; params come from the key, or from a state made with others.
      dtype, scan, remat, attention: see `Compute`; parameters and moments stay as they are.
    """
    parsed = Config.from_hf(json.loads(config))
    compute = Compute(dtype, attention, scan, remat)

    def apply(params: Leaves, inputs: Any, task: Any) -> Outputs:
        inputs = Windows(*inputs)
        model = bind(Decoder, parsed, params)
        where = Positions(inputs.index, inputs.segment)
        states = model(inputs.tokens, where, compute)[0]
        log_p, best = target_scores(model, states, jnp.maximum(inputs.targets, 0))
        return Outputs(None, states, {"log_p": log_p, "best": best})

    return Model(lambda key: modeling.init(parsed, key), apply)


def token_loss(out: Outputs, targets: Array) -> Array:
    """`[B]`: mean negative log-likelihood of the targets `[B, L]` that are not -1."""
    real = (targets >= 0).astype(jnp.float32)
    total = jnp.sum(out.aux["log_p"] * real, axis=-1)
    return -total / jnp.maximum(jnp.sum(real, axis=-1), 1)


@problems.register
def language() -> Problem:
    """Next tokens of a decoder.

    The loss of a batch is the mean over all its targets, not over rows: a row counts as many times
    as it has targets.
    """

    def objective(out: Outputs, batch: Any, info: Any, task: Any) -> Array:
        real = (batch.targets >= 0).astype(jnp.float32)
        share = jnp.sum(real, axis=-1) * batch.weight
        share = share * jnp.sum(batch.weight) / jnp.maximum(jnp.sum(share), 1)
        return token_loss(out, batch.targets) * jax.lax.stop_gradient(share)

    perplexity = Evaluator(
        lambda out, targets, info: token_loss(out, targets), finish=jnp.exp, lower_is_better=True
    )
    return Problem(objective, {"perplexity": perplexity})
