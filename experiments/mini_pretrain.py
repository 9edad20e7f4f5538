"""Pre-train ``mini``, the small CLIP shipped in jaxmerge/assets/mini, on the glyph world.

    python experiments/mini_pretrain.py --work runs/mini

Time: 83 minutes of steps and a few to start, two CPU cores of a shared machine (340 images/s).
Figures (``experiments/mini_evaluate.py``): zero-shot accuracy 96.0 % on scikit-learn's 1,797
handwritten digits, none of which it has seen, and 85.6 % on 62 characters in held-out fonts and
handwriting. The whole table is in jaxmerge/assets/mini/README.md. Expected: 60 % on the digits.

Contrastive learning on images rendered as they are needed (``jaxmerge.data.glyphs``), two CPU
cores, no data file. In a batch many captions are true of many images ("the digit 7" of every
seven, "the handwritten 7" of some), so the targets of InfoNCE spread over all pairs that are true.
The learning rate warms up, stays, and falls in the last third of the steps; what is exported is an
exponential moving average of the weights. Interrupted, the same command goes on from the last
checkpoint in ``--work``; ``--steps`` may then differ.
"""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmerge.data.glyphs import bank as banks
from jaxmerge.data.glyphs import concepts as world_of
from jaxmerge.data.glyphs.vocabulary import CONTEXT, build_tokenizer, encode, write_tokenizer
from jaxmerge.data.glyphs.world import World
from jaxmerge.models import clip
from jaxmerge.models.clip.preprocess import MEAN, STD


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    steps: int = 6600
    batch: int = 256
    subjects: int = 64  # draws from the world a batch; each is rendered batch / subjects times
    captions: int = 96  # captions a batch, each written about another image of it
    rate: float = 1.5e-3
    warmup: int = 400
    cooldown: float = 0.35  # share of the steps in which the rate falls
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    average: float = 0.998
    drawings: int = 150  # handwritten drawings a character in the bank; digits four times as many
    seed: int = 0


def get_config() -> Config:
    """The configuration of the shipped weights."""
    return Config()


def model_config(vocabulary: int) -> clip.Config:
    """The architecture of ``mini``: 32 x 32 pixels in patches of 8, 1.1 million parameters."""
    return clip.Config.from_hf(
        {
            "model_type": "clip",
            "architectures": ["CLIPModel"],
            "projection_dim": 96,
            "logit_scale_init_value": 2.6592,
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
                "num_channels": 3,
                "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5,
                "projection_dim": 96,
            },
            "text_config": {
                "model_type": "clip_text_model",
                "hidden_size": 96,
                "intermediate_size": 384,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": CONTEXT,
                "vocab_size": vocabulary,
                "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5,
                "projection_dim": 96,
                "bos_token_id": vocabulary - 2,
                "eos_token_id": vocabulary - 1,
                "pad_token_id": 0,
            },
        }
    )


def normalise(images):
    """uint8 pixels to the numbers the image tower sees, as ``clip.preprocess`` does."""
    mean, std = np.float32(MEAN), np.float32(STD)
    return (images.astype(jnp.float32) / 255 - mean) / std


def unit(x):
    """Rows of length one."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def contrast(config, params, images, tokens, true):
    """Symmetric InfoNCE with several true captions an image and several true images a caption.

    Args:
      images: uint8 [B, 32, 32, 3].
      tokens: int32 [K, L].
      true: bool [B, K]; images without a true caption only serve as negatives.
    """
    image = unit(clip.image_features(config, params, normalise(images)))
    text = unit(clip.text_features(config, params, tokens))
    logits = jnp.exp(jnp.minimum(params["logit_scale"], jnp.log(60.0))) * image @ text.T
    true = true.astype(jnp.float32)
    per_image, per_text = true.sum(1), true.sum(0)
    to_text = -(true * jax.nn.log_softmax(logits, 1)).sum(1) / jnp.maximum(per_image, 1)
    to_image = -(true * jax.nn.log_softmax(logits, 0)).sum(0) / jnp.maximum(per_text, 1)
    entropy = jnp.log(jnp.maximum(per_image, 1)).sum() / (per_image > 0).sum()
    loss_text = to_text.sum() / (per_image > 0).sum()
    return (loss_text + to_image.mean()) / 2, loss_text - entropy


def optimiser(settings: Config):
    """AdamW with clipping; the rate warms up, stays and falls to zero as a cosine."""
    fall = int(settings.cooldown * settings.steps)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, settings.rate, settings.warmup),
            optax.constant_schedule(settings.rate),
            optax.cosine_decay_schedule(settings.rate, fall, alpha=0.01),
        ],
        [settings.warmup, settings.steps - fall],
    )
    decays = lambda params: {name: x.ndim >= 2 for name, x in params.items()}
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(rate, b2=0.98, weight_decay=settings.weight_decay, mask=decays),
    )


def make_step(config, settings: Config):
    """The jitted training step on (params, optimiser state, average)."""
    tx = optimiser(settings)

    @jax.jit
    def step(carry, images, tokens, true):
        params, state, average = carry
        (loss, excess), grads = jax.value_and_grad(
            lambda p: contrast(config, p, images, tokens, true), has_aux=True
        )(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        keep = settings.average
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)
        return (params, state, average), loss, excess

    return tx, step


def batches(world, tokenizer, settings: Config, start: int):
    """Batches from step ``start`` on, each from its own seed, rendered ahead by a thread."""
    ready: queue.Queue = queue.Queue(maxsize=4)

    def produce():
        for number in range(start, settings.steps):
            rng = np.random.default_rng([settings.seed, 1, number])
            subjects = world.subjects(rng, settings.subjects)
            images, rows = world.sample(rng, settings.batch, np.resize(subjects, settings.batch))
            pairs = [world_of.caption(row, rng) for row in rows[: settings.captions]]
            tokens = encode(tokenizer, [text for text, _ in pairs])
            ready.put((images, tokens, world_of.true_of(np.stack([s for _, s in pairs]), rows)))

    threading.Thread(target=produce, daemon=True).start()
    for _ in range(start, settings.steps):
        yield ready.get()


PROMPTS = ("a photo of {}", "an image of {}", "{}")


def evaluator(config, tokenizer, seed: int = 10_001):
    """A function params -> zero-shot accuracies on drawings and fonts held out of training."""
    fresh = banks.build(seed=seed, drawings=8, fonts=banks.HELD_OUT_FONTS)
    sets = {
        "digits": world_of.by_kind("digit"),
        "characters": world_of.by_kind("digit", "upper", "lower"),
        "all": list(range(len(world_of.CONCEPTS))),
    }
    data = {}
    for name, members in sets.items():
        rng = np.random.default_rng([seed, len(members)])
        chosen = np.array(members)[np.arange(1024) % len(members)]
        data[name] = (World(fresh).sample(rng, 1024, chosen)[0], np.arange(1024) % len(members))
    coarse = World(fresh, domains={"pixelated": 1.0})
    rng = np.random.default_rng([seed, 7])
    images, _ = coarse.sample(rng, 1000, np.arange(1000) % 10, style="handwritten")
    sets["coarse digits"] = sets["digits"]
    data["coarse digits"] = (images, np.arange(1000) % 10)
    texts = [[p.format(world_of.class_phrase(i)) for i in range(len(world_of.CONCEPTS))]
             for p in PROMPTS]  # fmt: skip
    tokens = jnp.asarray(np.stack([encode(tokenizer, t) for t in texts]))
    see = jax.jit(lambda p, x: clip.image_features(config, p, normalise(x)))
    read = jax.jit(lambda p, t: clip.text_features(config, p, t))

    def evaluate(params):
        head = unit(sum(unit(read(params, t)) for t in tokens))
        scores = {}
        for name, (images, labels) in data.items():
            guess = jnp.argmax(see(params, images) @ head[np.array(sets[name])].T, 1)
            scores[name] = float(np.mean(np.asarray(guess) == labels))
        return scores

    return evaluate


def save(path: Path, carry, step: int, log: list) -> None:
    """Write a checkpoint in one go (to a temporary name first)."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(carry)]
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, step=step, log=json.dumps(log), **{f"x{i}": x for i, x in
                                                           enumerate(leaves)})  # fmt: skip
    temporary.replace(path)


def restore(path: Path, carry):
    """Read a checkpoint into the structure of ``carry``."""
    with np.load(path) as file:
        leaves = [jnp.asarray(file[f"x{i}"]) for i in range(len(jax.tree.leaves(carry)))]
        return (
            jax.tree.unflatten(jax.tree.structure(carry), leaves),
            int(file["step"]),
            json.loads(str(file["log"])),
        )


def export(config, params, folder: Path) -> None:
    """Write the model in Hugging Face's layout, float16."""
    folder.mkdir(parents=True, exist_ok=True)
    clip.save((config, params), folder, dtype="float16")
    write_tokenizer(folder)


def main() -> None:
    """Train, report, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/mini"))
    parser.add_argument("--steps", type=int, default=get_config().steps)
    parser.add_argument("--export", type=Path, default=None, help="where the model goes at the end")
    parser.add_argument("--stop", action="store_true", help="export the checkpoint as it is")
    arguments = parser.parse_args()
    settings = Config(steps=arguments.steps)
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    config = model_config(tokenizer.get_vocab_size())
    params = clip.init(config, jax.random.key(settings.seed))
    tx, step = make_step(config, settings)
    carry, start, log = (params, tx.init(params), params), 0, []
    checkpoint = arguments.work / "checkpoint.npz"
    if checkpoint.exists():
        carry, start, log = restore(checkpoint, carry)
    print(sum(x.size for x in params.values()), "parameters; from step", start, flush=True)
    if arguments.stop:
        export(config, carry[2], arguments.export or arguments.work / "mini")
        return
    world = World(banks.build(settings.seed, settings.drawings))
    evaluate = evaluator(config, tokenizer)
    began = time.time()
    for number, batch in enumerate(batches(world, tokenizer, settings, start), start + 1):
        carry, loss, excess = step(carry, *batch)
        if number % 50 == 0:
            speed = (number - start) * settings.batch / (time.time() - began)
            print(f"{number} loss {float(loss):.3f} excess {float(excess):.3f} "
                  f"scale {float(jnp.exp(carry[0]['logit_scale'])):.1f} {speed:.0f} images/s",
                  flush=True)  # fmt: skip
        if number % 500 == 0 or number == settings.steps:
            scores = evaluate(carry[2])
            log.append({"step": number, "loss": float(loss), **scores,
                        "seconds": time.time() - began})  # fmt: skip
            print(json.dumps(log[-1]), flush=True)
            save(checkpoint, carry, number, log)
    (arguments.work / "log.json").write_text(json.dumps(log, indent=1))
    export(config, carry[2], arguments.export or arguments.work / "mini")


if __name__ == "__main__":
    main()
