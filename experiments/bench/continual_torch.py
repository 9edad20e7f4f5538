"""The torch side of continual.py: the same class-incremental run, in plain torch.

Run by it with the interpreter given as --torch-python; imports neither jax nor jaxmerge.  Reads a
folder with job.json and job.npz, writes a JSON result to stdout.  Each batch is padded to its
longest sentence, as a data collator does.
"""

import argparse
import json
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="with job.json and job.npz")
folder = parser.parse_args().folder  # --help is answered before torch is looked for

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import BertModel  # noqa: E402

job, data = json.loads((folder / "job.json").read_text()), np.load(folder / "job.npz")
device = "cuda" if torch.cuda.is_available() else "cpu"
model = BertModel.from_pretrained(job["model"], dtype=torch.float32).to(device).train(False)
head = torch.tensor(data["head"]).to(device)
tokens, labels = torch.tensor(data["tokens"]), torch.tensor(data["labels"])
named = dict(model.named_parameters())
base = {n: p.detach().clone() for n, p in named.items()}


def logits(batch):
    """Mean of the token states, unit length, against the head."""
    keep = batch != 0
    longest = int(keep.sum(1).max())
    batch, keep = batch[:, :longest].to(device), keep[:, :longest].to(device)
    states = model(input_ids=batch, attention_mask=keep.long()).last_hidden_state
    weight = keep.unsqueeze(2).float()
    pooled = (states * weight).sum(1) / weight.sum(1)
    return job["scale"] * torch.nn.functional.normalize(pooled, dim=1) @ head


def rate(step, total):
    """Linear warm-up, then a half cosine, as `jaxmerge.continual.optimisers.learning_rate`."""
    warm = job["warmup"] * total
    if step + 1 <= warm:
        return (step + 1) / max(warm, 1)
    part = min(max((step + 1 - warm) / max(total - warm + 1, 1), 0), 1)
    return 0.5 * (1 + np.cos(np.pi * part))


def learn(rows, own):
    """One task: AdamW, clipped gradients, cross-entropy over the task's own columns."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=job["rate"], weight_decay=job["decay"], fused=device == "cuda"
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: rate(k, len(rows)))
    outside = ~torch.tensor(own, device=device)
    losses = []
    for batch in rows:
        optimiser.zero_grad(set_to_none=True)
        masked = logits(tokens[batch]).masked_fill(outside, float("-inf"))
        loss = torch.nn.functional.cross_entropy(masked, labels[batch].to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job["clip"])
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy():
    """On the test sentences."""
    test, right = torch.tensor(data["test"]), torch.tensor(data["test_labels"]).to(device)
    predictions = [logits(test[i : i + 128]).argmax(1) for i in range(0, len(test), 128)]
    return (torch.cat(predictions) == right).float().mean().item()


@torch.no_grad()
def magmax(winner):
    """The running merge: the larger change of each weight."""
    for n, p in named.items():
        change = p - base[n]
        winner[n] = torch.where(change.abs() >= winner[n].abs(), change, winner[n])


@torch.no_grad()
def put(params):
    """Load weights into the model."""
    for n, p in named.items():
        p.copy_(params[n])


began, used = time.perf_counter(), time.process_time()
losses, winner = [], {n: torch.zeros_like(p) for n, p in named.items()}
train = merge = 0.0
for task in range(job["tasks"]):
    start = time.perf_counter()
    losses += learn(data[f"rows_{task}"], data["own"][task])
    train += time.perf_counter() - start
    start = time.perf_counter()
    magmax(winner)
    merge += time.perf_counter() - start
start = time.perf_counter()
last = accuracy()
put({n: base[n] + job["factor"] * winner[n] for n in base})
merged = accuracy()
ended = time.perf_counter()
print(
    json.dumps(
        {
            "seconds": ended - began,
            "cpu_seconds": time.process_time() - used,
            "training": train,
            "merging": merge,
            "evaluation": ended - start,
            "last": last,
            "magmax": merged,
            "losses": losses,
            "device": device,
            "version": torch.__version__,
        }
    )
)
