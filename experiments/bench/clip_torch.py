"""The torch side of clip_train.py and clip_eval.py: times transformers' CLIP image tower.

Run by those two with the interpreter given as --torch-python; imports neither jax nor jaxmerge.
Reads a JSON job from stdin, writes a JSON result to stdout.
"""

import json
import statistics
import sys
import time

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection


def main() -> None:
    job = json.load(sys.stdin)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**job["config"])).to(device)
    side = job["config"]["image_size"]
    images = torch.randn(job["batch"], 3, side, side, device=device)
    labels = torch.randint(0, job["classes"], (job["batch"],), device=device)
    head = torch.randn(job["config"]["projection_dim"], job["classes"], device=device)
    head = torch.nn.functional.normalize(head, dim=0)
    half = torch.autocast(device, torch.bfloat16, enabled=job["dtype"] == "bfloat16")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")

    def forward():
        with half:
            features = model(pixel_values=images).image_embeds
        return torch.nn.functional.normalize(features.float(), dim=1)

    def train():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(100 * forward() @ head, labels).backward()
        optimizer.step()

    @torch.no_grad()
    def evaluate():
        return ((forward() @ head).argmax(1) == labels).float().mean()

    step = train if job["train"] else evaluate
    model.train(job["train"])
    if job["compile"]:
        forward = torch.compile(forward)
    for _ in range(job["warmup"]):
        step()
    wall, cpu = [], []
    for _ in range(job["steps"]):
        if device == "cuda":
            torch.cuda.synchronize()
        start, used = time.perf_counter(), time.process_time()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    result = {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}
    print(json.dumps({**result, "device": device, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
