"""Makes `tests/golden/resnet_*.safetensors` and `resnet18_*.safetensors` with torchvision.

    pip install torch==2.14.1 torchvision==0.29.1 safetensors    # in an environment of its own
    python tests/golden/make_resnet.py

`resnet_*`: small networks of torchvision's own `ResNet` class, weights and running statistics drawn
at random; features, logits, gradients and the running statistics after a batch in training.
`resnet18_*`: torchvision's `resnet18` at its full size, in float64 on weights and images that
`tests/drawn_weights.py` draws on both sides, so the files hold what comes out and the weights' sums
alone. Recorded with torch 2.14.1 and torchvision 0.29.1.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.models.resnet import BasicBlock, ResNet, resnet18

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from drawn_weights import drawn, sums  # noqa: E402

BLOCKS = {"imagenet": [1, 1, 1], "cifar": [2, 1]}


def network(stem: str, width: int, seed: int) -> ResNet:
    torch.manual_seed(seed)
    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=5)
    # torchvision fixes the width at 64 and has one stem; the same class with narrower stages.
    model.inplanes = width
    size, stride = (7, 2) if stem == "imagenet" else (3, 1)
    model.conv1 = torch.nn.Conv2d(3, width, size, stride, size // 2, bias=False)
    model.bn1 = torch.nn.BatchNorm2d(width)
    if stem == "cifar":
        model.maxpool = torch.nn.Identity()
    blocks = BLOCKS[stem]
    for stage in range(4):
        layer = torch.nn.Identity()
        if stage < len(blocks):
            stride = 2 if stage else 1
            layer = model._make_layer(BasicBlock, width * 2**stage, blocks[stage], stride)
        setattr(model, f"layer{stage + 1}", layer)
    model.fc = torch.nn.Linear(width * 2 ** (len(blocks) - 1), 5)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.normal_(0, 0.2)
        elif tensor.is_floating_point():
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
    return model


def record(stem: str, width: int, side: int, seed: int) -> None:
    model = network(stem, width, seed)
    weights = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}
    images = torch.randn(3, 3, side, side)
    out = {"images": images.permute(0, 2, 3, 1).contiguous()}
    seen = {}
    model.avgpool.register_forward_hook(lambda m, i, o: seen.update(features=o.flatten(1)))
    for mode in ("eval", "train"):
        model.train(mode == "train")
        images.requires_grad_(True)
        logits = model(images)
        (loss,) = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3, 1]))[None]
        model.zero_grad()
        loss.backward()
        out |= {f"{mode}/logits": logits.detach(), f"{mode}/features": seen["features"].detach()}
        for name in ("conv1.weight", "layer2.0.downsample.0.weight", "layer2.0.bn2.weight"):
            out[f"{mode}/grad/{name}"] = model.get_parameter(name).grad.clone()
    running = {k: v for k, v in model.state_dict().items() if "running" in k}
    out |= {f"after/{k}": v.clone() for k, v in running.items()}
    save_file(
        {f"weights/{k}": v for k, v in weights.items()} | out, HERE / f"resnet_{stem}.safetensors"
    )


def record_full(stem: str, classes: int, side: int, seed: int) -> None:
    model = resnet18(num_classes=classes)
    if stem == "cifar":  # as the code of the papers on 32 x 32 pictures changes it
        model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        model.maxpool = torch.nn.Identity()
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if v.is_floating_point()}
    weights = drawn(shapes, seed)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, strict=False)
    model.double()
    images = np.random.default_rng(seed).normal(size=(2, side, side, 3)).astype(np.float32)
    seen, out = {}, {"sums": torch.tensor(sums(weights))}
    model.avgpool.register_forward_hook(lambda m, i, o: seen.update(features=o.flatten(1)))
    for mode in ("eval", "train"):
        model.train(mode == "train")
        logits = model(torch.tensor(images).permute(0, 3, 1, 2).double())
        out |= {f"{mode}/logits": logits, f"{mode}/features": seen["features"]}
    out |= {f"after/{k}": v for k, v in model.state_dict().items() if "running" in k}
    out = {k: v if k == "sums" else v.float().contiguous() for k, v in out.items()}
    save_file(out, HERE / f"resnet18_{stem}.safetensors")


with torch.no_grad():
    record_full("imagenet", classes=1000, side=224, seed=2)
    record_full("cifar", classes=100, side=32, seed=3)
with torch.enable_grad():
    record("imagenet", width=6, side=40, seed=0)
    record("cifar", width=6, side=12, seed=1)
