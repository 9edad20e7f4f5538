"""A decoder against transformers on one machine: training, scoring and generating, tokens a second.

    python experiments/bench/decoder.py                           # SmolLM2-135M, float32
    python experiments/bench/decoder.py --small --out out.json    # a tiny one, to try the script

Both sides have the same weights (ours are written to a folder that transformers reads), run the
same batches, and the first call of each shape is not counted. torch runs eager in its default
attention, compiled with --compile. Each figure is the best of --repeat. The last column compares
processor seconds, which other work on the machine stretches less than the clock's. Loading is
compared with reading the bytes of the same file.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
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
from jaxmerge.training.language import finetune

SMALL = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
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


def ours(model, ids, options) -> dict[str, float]:
    """Tokens a second of this library."""
    rows, length = ids.shape
    rates = {}
    score = lambda: np.asarray(
        decoder.token_scores(
            model.config, model.params, ids[:, :-1], ids[:, 1:],
            decoder.positions_of(np.ones((rows, length - 1))),
        )[0]
    )  # fmt: skip
    rates["scoring"] = rows * length / best(options.repeat, score, "scoring")
    for batch in (1, 16):
        prompts = [row[:16].tolist() for row in np.resize(ids, (batch, length))]
        write = lambda prompts=prompts: decoder.generate(
            decoder.Model(model.config, model.params), prompts, most=options.new
        )
        name = f"generation {batch}"
        rates[name] = batch * options.new / best(options.repeat, write, name)
    data = windows([(row.tolist(), [True] * length) for row in ids], length)
    for name, methods in (("training", []), ("training LoRA", [lora(**LORA)])):
        times = [now()]
        tick = lambda done, total, loss, times=times: times.append(now())
        finetune(
            model, data, epochs=1 + options.repeat, batch=rows, chunk=1, methods=methods,
            optimiser=optimisers.adamw(rate=1e-4), on_chunk=tick,
        )  # fmt: skip
        rates[name] = rows * length / shortest(name, "jaxmerge", list(np.diff(times, axis=0)))
    return rates


def loading(folder: Path, repeat: int) -> dict[str, float]:
    """Seconds to read the weights' file, and to load the model from it (float32, turned)."""
    read = lambda: np.fromfile(folder / "model.safetensors", np.uint8)
    load = lambda: jax.block_until_ready(dict(decoder.load(folder).params))
    return {"reading": best(repeat, read, side=""), "loading": best(repeat, load, side="")}


def theirs(folder: Path, ids, options) -> dict[str, float]:
    """Tokens a second of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    forward = torch.compile(model) if options.compile else model
    tokens, (rows, length) = torch.tensor(ids), ids.shape
    rates = {}

    def score():
        with torch.no_grad():
            log_p = forward(tokens).logits[:, :-1].log_softmax(-1)
            log_p.gather(2, tokens[:, 1:, None]).sum().item()

    timed = functools.partial(best, options.repeat, side="transformers")
    rates["scoring"] = rows * length / timed(score, "scoring")
    for batch in (1, 16):
        prompts = torch.tensor(np.resize(ids, (batch, length))[:, :16])
        write = lambda prompts=prompts: model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=options.new,
            min_new_tokens=options.new, do_sample=False, pad_token_id=0,
        )  # fmt: skip
        name = f"generation {batch}"
        rates[name] = batch * options.new / timed(write, name)

    def trained(module, name: str) -> float:
        weights = [p for p in module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=1e-4)

        def step():
            optimiser.zero_grad(set_to_none=True)
            module(tokens, labels=tokens).loss.backward()
            optimiser.step()

        return rows * length / timed(step, name)

    rates["training"] = trained(forward.train(), "training")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return rates
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    rates["training LoRA"] = trained(get_peft_model(model, settings).train(), "training LoRA")
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
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.small:
        config = decoder.Config.from_hf(SMALL)
        model = decoder.Model(config, decoder.init(config, jax.random.key(0)))
    else:
        model = decoder.load(options.model, dtype="float32")
    shape = (options.rows, options.length)
    ids = np.random.default_rng(0).integers(3, model.config.vocab, shape)
    with tempfile.TemporaryDirectory() as folder:
        decoder.save(decoder.Model(model.config, model.params), folder)
        mine = ours(model, ids, options)
        del model  # transformers needs the room
        seconds = loading(Path(folder), options.repeat)
        other = theirs(Path(folder), ids, options)
    table = {name: {"jaxmerge": mine[name], "transformers": other.get(name)} for name in mine}
    load = os.getloadavg()[0]
    about = {"machine": platform.machine(), "cores": os.cpu_count(), "load": load}
    about |= {"device": jax.devices()[0].device_kind, "rows": options.rows}
    about |= {"length": options.length, "new": options.new, "compiled": options.compile}
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
    ratio = seconds["loading"] / seconds["reading"]
    print("first calls, seconds: " + ", ".join(f"{n} {x:.1f}" for n, x in FIRST.items()))
    print(f"loading {seconds['loading']:.2f} s, {ratio:.2f} x reading the file")


if __name__ == "__main__":
    main()
