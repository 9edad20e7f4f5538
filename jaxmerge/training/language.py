"""Fine-tuning a decoder on windows of text, with the common mechanism: a stream of one task.

The steps run in compiled chunks; behind each one the state can be written to disk, and a run that
was killed goes on behind the last one with the same figures. All weights are trained, or what
methods add to the model (`lora`); any registered optimiser, gradient accumulation, bfloat16
products over float32 weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.continual import stages
from jaxmerge.continual.optimisers import cosine
from jaxmerge.continual.parts import build, stored
from jaxmerge.continual.stream_records import Groups, Setup, State, Stream
from jaxmerge.core.draws import draws
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Leaves
from jaxmerge.data.language import Windows
from jaxmerge.models.decoder.checkpoint import Model
from jaxmerge.models.decoder.learner import decoder, language
from jaxmerge.training import checkpoint

_begin = jax.jit(stages.begin)
_train = jax.jit(stages.train, donate_argnums=2)


class Finetuned(NamedTuple):
    """What fine-tuning gives.

    Attributes:
      model: with the changes in its weights.
      params: all leaves, those of adapters apart.
      losses: of every step.
    """

    model: Model
    params: Leaves
    losses: np.ndarray


def finetune(
    model: Model,
    windows: Windows,
    *,
    epochs: int = 1,
    batch: int = 8,
    accumulate: int = 1,
    optimiser: Spec | None = None,
    methods: Sequence[Spec] = (),
    dtype: str = "float32",
    scan: bool = False,
    remat: str | None = None,
    attention: str = "plain",
    seed: int = 0,
    chunk: int = 16,
    folder: str | Path | None = None,
    on_chunk: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> Finetuned:
    """Trains a decoder on windows (`jaxmerge.data.language` makes them).

    Args:
      model: a decoder; its parameters are trained in the dtype and on the devices that they have:
        `jm.shard(params, mesh, rules)` cuts them, and the optimiser's moments follow. The rows of
        a batch are cut over all axes of that mesh, where they divide it: on one axis this is
        FSDP, with rules that leave an axis out (`jm.mesh(models=2, params=4)`) the weights are
        whole along it.
      windows: rows of tokens with their targets.
      epochs: passes over the rows, each in a new order; the last batch of an epoch is full.
      batch: rows a step.
      accumulate: parts in which a batch passes through the model.
      optimiser: a registered one; AdamW with warm-up and a cosine unless given.
      methods: what is added to plain fine-tuning, such as `lora(8, use="shared")`.
      dtype, scan, remat, attention: of the forward pass, see `Compute`.
      seed: of the order of rows, and of adapters.
      chunk: steps in one compiled call.
      folder: where the state is kept; a run with the same settings goes on from there.
      on_chunk: called with steps done, steps in all, and the mean loss of the chunk.

    Raises:
      ValueError: numbers below 1, fewer rows than a batch, windows longer than the model's
        context, ids outside of its vocabulary, a loss that is not finite.

    Memory: weights, gradients and two moments of what is trained; activations of a batch's part.
    """
    rows = _rows(model, windows, epochs, batch, accumulate, seed, chunk)
    setup = Setup(
        decoder(model.config.hf, dtype=dtype, scan=scan, remat=remat, attention=attention),
        language(), optimiser or cosine(rate=1e-4), tuple(methods), accumulate=accumulate,
    )  # fmt: skip
    windows = Windows(*(jnp.asarray(x) for x in windows))
    place = _placing(model.params, batch // accumulate)
    total, weight = len(rows), np.ones((chunk, batch), np.float32)
    stream = _stream(windows, rows[None])
    state = _start(setup, stream, model, seed)
    state = _begin(setup, stream, state, jnp.int32(0))
    state = _settled(state._replace(moments=_beside(state.moments, state.params)))
    state, losses = _resumed(folder, state, [total, batch, seed, str(setup)])
    for first in range(len(losses), total, chunk):
        part = np.full((chunk, batch), 0, np.int32)
        now = rows[first : first + chunk]
        part[: len(now)] = now
        on = weight * (np.arange(chunk) < len(now))[:, None]
        steps = jax.tree.map(place, (part, np.zeros_like(part), on))
        state, new_losses = _train(setup, stream, state, jnp.int32(0), steps, jnp.int32(total))
        losses = np.concatenate([losses, np.asarray(new_losses)[: len(now)]])
        if not np.isfinite(losses).all():
            step = int(np.argmin(np.isfinite(losses)))
            raise ValueError(f"the loss of step {step} is not finite; lower the rate")
        if folder is not None:
            settings = [total, batch, seed, str(setup)]
            checkpoint.save(Path(folder) / "state.safetensors", _record_of(state, losses), settings)
        on_chunk(len(losses), total, float(np.mean(losses[first:])))
    parts = build(setup, 1)
    merged = parts.model.weights(state.params, jnp.int32(0))
    trained = {n: x.astype(model.params[n].dtype) for n, x in merged.items()}
    return Finetuned(model_with(model, trained), state.params, losses)


def model_with(model: Model, params: Leaves) -> Model:
    """The same model with other weights."""
    return Model(model.config, params, model.tokenizer)


def _rows(
    model: Model, windows: Windows, epochs: int, batch: int, accumulate: int, seed: int, chunk: int
) -> np.ndarray:
    """Row numbers of every step, `[steps, batch]`."""
    tokens = np.asarray(windows.tokens)
    count, length = tokens.shape
    numbers = {"epochs": epochs, "batch": batch, "accumulate": accumulate, "chunk": chunk}
    if low := [f"{name} is {value}" for name, value in numbers.items() if value < 1]:
        raise ValueError(f"this cannot be trained: {', '.join(low)}, expected 1 or more")
    wrong = []
    if count < batch:
        wrong.append(
            f"found {count} rows, a batch has {batch}: take a smaller one, or shorter rows"
        )
    if length > model.config.context:
        wrong.append(
            f"rows of {length} tokens, the model's context has {model.config.context}: cut texts "
            "into shorter rows"
        )
    targets = np.asarray(windows.targets)
    ids = np.concatenate([tokens.ravel(), targets[targets >= 0]])
    if ids.max() >= model.config.vocab or ids.min() < 0:
        wrong.append(
            f"ids {ids.min()} to {ids.max()}, the model has 0 to {model.config.vocab - 1}: they "
            "are of another tokenizer"
        )
    if not (targets >= 0).any():
        wrong.append("every target is masked, there is nothing to learn")
    if batch % accumulate:
        wrong.append(f"a batch of {batch} rows in {accumulate} parts")
    if wrong:
        raise ValueError(f"this cannot be trained: {'; '.join(wrong)}")
    rng = draws(seed)
    steps = count // batch
    orders = [rng.permutation(count)[: steps * batch] for _ in range(epochs)]
    return np.stack(orders).reshape(-1, batch).astype(np.int32)


def _stream(windows: Windows, rows: np.ndarray) -> Stream:
    zero = jnp.zeros(rows.shape, jnp.int32)
    one = jnp.ones(rows.shape, jnp.float32)
    none = jnp.zeros((1, 1), jnp.int32)
    groups = Groups(windows, windows.targets, none, jnp.ones((1, 1)), none[0], {})
    return Stream(windows, windows.targets, jnp.asarray(rows), zero, one, {}, groups)


def _start(setup: Setup, stream: Stream, model: Model, seed: int) -> State:
    """The state at the model's own weights, with what methods add to it."""
    parts = build(setup, 1)
    key, rest = jax.random.split(jax.random.key(seed))
    shapes = jax.eval_shape(parts.model.init, key)
    added = [n for n in shapes if n not in model.params]
    drawn = _added(parts.model.init, key, tuple(added), dict(model.params)) if added else {}
    base = {**model.params, **drawn}
    take = lambda x: jnp.asarray(x)[0, 0]
    batch = stored(stream, *map(take, (stream.rows, stream.origin, stream.weight)))
    state = stages.create_from(setup, parts, stream.info, base, batch, rest)
    return jax.tree.map(jnp.array, state)  # the model's own arrays are not given away


def _added(init: Callable, key: Any, names: tuple[str, ...], params: Leaves) -> dict:
    """The leaves that methods add; what is drawn for the others is never computed."""
    added = jax.jit(lambda key: {n: x for n, x in init(key).items() if n in names})(key)
    for n in names:  # lengths of DoRA are those of the weights that are trained from
        kernel = params.get(n.removesuffix("/lora_m"))
        if kernel is not None:
            added[n] = jnp.broadcast_to(jnp.linalg.norm(kernel, axis=0), added[n].shape)
    return added


def _mesh_of(params: Leaves) -> Mesh | None:
    """The mesh that weights lie on, None for a single device."""
    shardings = [getattr(leaf, "sharding", None) for leaf in params.values()]
    meshes = (s.mesh for s in shardings if isinstance(s, NamedSharding))
    return next((m for m in meshes if isinstance(m, Mesh)), None)


def _settled(state: State) -> State:
    """Every leaf committed to where it lies, as steps return it, so that they are compiled once."""
    mesh = _mesh_of(state.params)

    def put(x):
        if mesh is None or isinstance(x.sharding, NamedSharding):
            return jax.device_put(x, x.sharding)
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(put, state)


def _placing(params: Leaves, rows: int) -> Callable[[np.ndarray], Any]:
    """Puts numbers of rows, `[steps, batch]`, on the mesh of the weights, cut over its axes."""
    mesh = _mesh_of(params)
    if mesh is None:
        return lambda x: x
    cut = PartitionSpec(None, mesh.axis_names) if rows % mesh.size == 0 else PartitionSpec()
    return lambda x: jax.device_put(x, NamedSharding(mesh, cut))


def _beside(moments: Any, params: Leaves) -> Any:
    """Moments on the devices of the weights that they belong to."""

    def place(path, leaf):
        name = next((k.key for k in reversed(path) if isinstance(k, jax.tree_util.DictKey)), None)
        like = params.get(name) if isinstance(name, str) else None
        alike = like is not None and like.shape == leaf.shape
        return jax.device_put(leaf, like.sharding) if like is not None and alike else leaf

    return jax.tree_util.tree_map_with_path(place, moments)


def _record_of(state: State, losses: np.ndarray) -> dict[str, Any]:
    keep = state._replace(base={}, merges={}, key=jax.random.key_data(state.key))
    flat, _ = jax.tree.flatten(keep)
    return {f"{i:06d}": x for i, x in enumerate([*flat, losses])}


def _resumed(folder: str | Path | None, state: State, settings: list) -> tuple[State, np.ndarray]:
    """The state of a run with the same settings, or the one that is given."""
    none = np.zeros(0, np.float32)
    path = None if folder is None else Path(folder) / "state.safetensors"
    if path is None:
        return state, none
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return state, none
    flat, record = checkpoint.load(path)
    if json.loads(json.dumps(settings)) != record:
        raise ValueError(f"{path} is of a run with other settings; delete it, or change the folder")
    keep = state._replace(base={}, merges={}, key=jax.random.key_data(state.key))
    leaves, form = jax.tree.flatten(keep)
    form_now = [np.shape(x) for x in leaves]
    if [np.shape(flat[name]) for name in sorted(flat)][:-1] != form_now or not flat:
        raise ValueError(f"{path} is of another model or optimiser; delete it to begin again.")
    *stored, losses = (flat[name] for name in sorted(flat))
    put = lambda x, like: jax.device_put(x, like.sharding)
    restored = jax.tree.unflatten(form, [put(*x) for x in zip(stored, leaves, strict=True)])
    key = jax.random.wrap_key_data(restored.key)
    back = restored._replace(base=state.base, merges=state.merges, key=key)
    return back, losses
