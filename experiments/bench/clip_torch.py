"""The torch side of clip_train.py and clip_eval.py: times transformers' CLIP image tower.

Run by those two with the interpreter given as --torch-python; imports neither jax nor jaxmerge.
Reads a JSON job from stdin, writes a JSON result to stdout: seconds a step of each form, "eager"
and "compiled" (torch.compile).
"""

import argparse
import json
import statistics
import sys
import time

if __name__ == "__main__":  # --help is answered before torch is looked for
    argparse.ArgumentParser(description=__doc__).parse_args()

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection


def main() -> None:
    job = json.load(sys.stdin)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**job["config"])).to(device)
    model.train(job["train"])
    side = job["config"]["image_size"]
    images = torch.randn(job["batch"], 3, side, side, device=device)
    labels = torch.randint(0, job["classes"], (job["batch"],), device=device)
    head = torch.randn(job["config"]["projection_dim"], job["classes"], device=device)
    head = torch.nn.functional.normalize(head, dim=0)
    half = torch.autocast(device, torch.bfloat16, enabled=job["dtype"] == "bfloat16")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-4, fused=True)

    def forward():
        with half:
            features = model(pixel_values=images).image_embeds
        return torch.nn.functional.normalize(features.float(), dim=1)

    def train(forward):
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(100 * forward() @ head, labels).backward()
        optimizer.step()

    @torch.no_grad()
    def evaluate(forward):
        return ((forward() @ head).argmax(1) == labels).float().mean()

    step = train if job["train"] else evaluate
    rates = {"device": device, "torch": torch.__version__}
    for form in job["forms"]:
        run = torch.compile(forward) if form == "compiled" else forward
        rates[form] = timed(lambda run=run: step(run), job, device)
    print(json.dumps(rates))


def timed(step, job: dict, device: str) -> float:
    """Median seconds a step, over `rounds` rounds of `steps` steps."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(job["warmup"]):
        step()
    rounds = []
    for _ in range(job["rounds"]):
        wait()
        start = time.perf_counter()
        for _ in range(job["steps"]):
            step()
        wait()
        rounds.append((time.perf_counter() - start) / job["steps"])
    return statistics.median(rounds)


if __name__ == "__main__":
    main()
