"""A decoder against transformers on one machine: training, scoring and generating, tokens a second.

    python experiments/bench/decoder.py                           # SmolLM2-135M, float32
    python experiments/bench/decoder.py --small --out out.json    # a tiny one, to try the script
    python experiments/bench/decoder.py --gpu --out experiments/results/decoder_gpu.json

Both sides have the same weights (ours are written to a folder that transformers reads), run the
same batches, and the first call of each shape is not counted. torch runs eager in its default
attention, compiled with --compile. Each figure is the best of --repeat. The last column compares
processor seconds, which other work on the machine stretches less than the clock's. Loading is
compared with reading the bytes of the same file.

--gpu is what the figures for one GPU need: a random model of the shape of Llama 3.2 1B, 8 rows of
1024 tokens, bfloat16 products over float32 weights, cuDNN's flash attention, torch compiled under
autocast; nothing is written to a disk. "MFU" is the share of --peak (989e12 FLOP/s, the bfloat16
tensor cores of an H100 or H200) that a step of full training needs by `training_flops`.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import jax
import numpy as np

from jaxmerge.continual import optimisers
from jaxmerge.continual.methods.lora import lora
from jaxmerge.data.language import windows
from jaxmerge.models import decoder
from jaxmerge.models.transformer import Compute
from jaxmerge.training.language import finetune

SMALL = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
ONE_BILLION = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "rope_theta": 500000.0,
}  # fmt: skip
GPU = {"rows": 8, "length": 1024, "dtype": "bfloat16", "attention": "cudnn", "compile": True}
GPU |= {"new": 128, "peak": 989e12, "repeat": 5}
LORA = {"rank": 8, "alpha": 16.0, "target": "attn/(query|value)", "use": "shared"}


FIRST: dict[str, float] = {}  # seconds of our first calls, which compile
PROCESSOR: dict[str, dict[str, float]] = {
    "jaxmerge": {},
    "transformers": {},
    "": {},
}  # seconds of a call


def now() -> np.ndarray:
    """Seconds of the clock, and of all processors that this process used."""
    return np.array([time.perf_counter(), time.process_time()])


def shortest(name: str, side: str, spans: list[np.ndarray]) -> float:
    """The shortest run behind the first, seconds; its processor seconds are written down."""
    if side == "jaxmerge":
        FIRST[name] = spans[0][0]
    seconds, processor = np.min(spans[1:], axis=0)
    PROCESSOR[side][name] = float(processor)
    return float(seconds)


def best(repeat: int, call, name: str = "", side: str = "jaxmerge") -> float:
    """The shortest of several runs, seconds; one more in front is not counted."""
    spans = []
    for _ in range(repeat + 1):
        began = now()
        call()
        spans.append(now() - began)
    return shortest(name, side, spans)


def training_flops(config: decoder.Config, length: int) -> float:
    """Operations that a trained token needs: 6 a weight of a product, attention's causal half.

    6 (weights of all kernels and of the head) + 6 layers heads depth length.
    """
    shapes = decoder.param_shapes(config)
    weights = sum(math.prod(s) for n, s in shapes.items() if n.endswith("kernel"))
    if config.tied:
        weights += config.vocab * config.width
    return 6 * weights + 6 * config.layers * config.heads * config.depth * length


def ours(model, ids, options) -> dict[str, float]:
    """Tokens a second of this library."""
    rows, length = ids.shape
    rates = {}
    compute = Compute(options.dtype, options.attention)
    score = lambda: np.asarray(
        decoder.token_scores(
            model.config, model.params, ids[:, :-1], ids[:, 1:],
            decoder.positions_of(np.ones((rows, length - 1))), compute=compute,
        )[0]
    )  # fmt: skip
    rates["scoring"] = rows * length / best(options.repeat, score, "scoring")
    for batch in (1, 16):
        prompts = [row[:16].tolist() for row in np.resize(ids, (batch, length))]
        write = lambda prompts=prompts: decoder.generate(
            decoder.Model(model.config, model.params), prompts, most=options.new, compute=compute
        )
        name = f"generation {batch}"
        rates[name] = batch * options.new / best(options.repeat, write, name)
    data = windows([(row.tolist(), [True] * length) for row in ids], length)
    for name, methods in (("training", []), ("training LoRA", [lora(**LORA)])):
        times = [now()]
        tick = lambda done, total, loss, times=times: times.append(now())
        finetune(
            model, data, epochs=1 + options.repeat, batch=rows, chunk=1, methods=methods,
            optimiser=optimisers.adamw(rate=1e-4), on_chunk=tick, dtype=options.dtype,
            attention=options.attention,
        )  # fmt: skip
        rates[name] = rows * length / shortest(name, "jaxmerge", list(np.diff(times, axis=0)))
    return rates


def loading(folder: Path, repeat: int) -> dict[str, float]:
    """Seconds to read the weights' file, and to load the model from it (float32, turned)."""
    read = lambda: np.fromfile(folder / "model.safetensors", np.uint8)
    load = lambda: jax.block_until_ready(dict(decoder.load(folder).params))
    return {"reading": best(repeat, read, side=""), "loading": best(repeat, load, side="")}


def theirs(folder: Path | None, ids, options) -> dict[str, float]:
    """Tokens a second of transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() and options.gpu else "cpu"
    if folder is None:
        shape = dict(ONE_BILLION if options.gpu else SMALL)
        shape = AutoConfig.for_model(shape.pop("model_type"), **shape)
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = model.to(device)
    half = functools.partial(
        torch.autocast, device, torch.bfloat16, enabled=options.dtype == "bfloat16"
    )
    forward = torch.compile(model) if options.compile else model
    tokens, (rows, length) = torch.tensor(ids, device=device), ids.shape
    rates = {}

    def score():
        with torch.no_grad(), half():
            log_p = forward(tokens).logits[:, :-1].log_softmax(-1)
            log_p.gather(2, tokens[:, 1:, None]).sum().item()

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    timed = functools.partial(best, options.repeat, side="transformers")
    rates["scoring"] = rows * length / timed(score, "scoring")
    for batch in (1, 16):
        prompts = torch.tensor(np.resize(ids, (batch, length))[:, :16], device=device)

        def write(prompts=prompts):
            with half():
                model.generate(
                    prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=options.new,
                    min_new_tokens=options.new, do_sample=False, pad_token_id=0,
                )  # fmt: skip
            wait()

        name = f"generation {batch}"
        rates[name] = batch * options.new / timed(write, name)

    def trained(module, name: str) -> float:
        weights = [p for p in module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=1e-4)

        def step():
            optimiser.zero_grad(set_to_none=True)
            with half():
                loss = module(tokens, labels=tokens).loss
            loss.backward()
            optimiser.step()
            wait()

        return rows * length / timed(step, name)

    rates["training"] = trained(forward.train(), "training")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return rates
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    rates["training LoRA"] = trained(get_peft_model(model, settings).train(), "training LoRA")
    return rates


def elsewhere() -> dict[str, float]:
    """`theirs` in a process of its own, which gives its memory of the GPU back."""
    command = [sys.executable, *sys.argv, "--only-transformers"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rates, PROCESSOR["transformers"] = json.loads(done.stdout.strip().splitlines()[-1])
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--small", action="store_true", help="a tiny random model")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward pass")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--attention", choices=["plain", "fused", "cudnn"], default="plain")
    parser.add_argument("--peak", type=float, help="FLOP/s of the device, for the MFU")
    parser.add_argument("--gpu", action="store_true", help=f"defaults for one GPU: {GPU}")
    parser.add_argument("--only-transformers", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    if "--gpu" in sys.argv:
        parser.set_defaults(**GPU)
    options = parser.parse_args()
    if options.gpu and not options.small and jax.default_backend() == "cpu":
        parser.error("--gpu: JAX sees none here; --gpu --small tries the script on a tiny model")
    warnings.simplefilter("ignore")
    shape = SMALL if options.small else ONE_BILLION if options.gpu else None
    if shape is None:
        config = decoder.load(options.model, dtype="float32").config
        model = lambda: decoder.load(options.model, dtype="float32")
    else:
        config = decoder.Config.from_hf(shape)
        model = lambda: decoder.Model(config, decoder.init(config, jax.random.key(0)))
    size = (options.rows, options.length)
    ids = np.random.default_rng(0).integers(3, config.vocab, size)
    if options.only_transformers:
        print(json.dumps([theirs(None, ids, options), PROCESSOR["transformers"]]))
        return
    if options.gpu:
        other, seconds = elsewhere(), {}
        mine = ours(model(), ids, options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            decoder.save(model(), folder)
            mine = ours(model(), ids, options)
            seconds = loading(Path(folder), options.repeat)
            other = theirs(Path(folder), ids, options)
    table = {name: {"jaxmerge": mine[name], "transformers": other.get(name)} for name in mine}
    load = os.getloadavg()[0]
    about = {"machine": platform.machine(), "cores": os.cpu_count(), "load": load}
    about |= {"device": jax.devices()[0].device_kind, "rows": options.rows}
    about |= {"length": options.length, "new": options.new, "compiled": options.compile}
    about |= {"dtype": options.dtype, "attention": options.attention, "jax": jax.__version__}
    if options.peak:
        needed = training_flops(config, options.length)
        about["mfu"] = mine["training"] * needed / options.peak
        about["torch_mfu"] = other["training"] * needed / options.peak
        print(f"MFU {about['mfu']:.3f}, torch {about['torch_mfu']:.3f}")
    if options.out:
        report = {"about": about, "tokens_per_second": table, "seconds": seconds, "first": FIRST}
        sides = ("jaxmerge", "transformers")
        report["processor_seconds"] = {side: PROCESSOR[side] for side in sides}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"tokens/s on {about['device']}, {about['cores']} cores, load {load:.1f}")
    for name, row in table.items():
        if row["transformers"] is None:
            print(f"{name:16} {row['jaxmerge']:9.1f}")
            continue
        ratio = row["jaxmerge"] / row["transformers"]
        work = PROCESSOR["transformers"][name] / PROCESSOR["jaxmerge"][name]
        numbers = f"{row['jaxmerge']:9.1f} {row['transformers']:9.1f}"
        print(f"{name:16} {numbers} {ratio:6.2f}x, by processor seconds {work:.2f}x")
    print("first calls, seconds: " + ", ".join(f"{n} {x:.1f}" for n, x in FIRST.items()))
    if seconds:
        ratio = seconds["loading"] / seconds["reading"]
        print(f"loading {seconds['loading']:.2f} s, {ratio:.2f} x reading the file")


if __name__ == "__main__":
    main()
