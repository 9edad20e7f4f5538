"""Makes tests/golden/open_clip, clip_tokens.json and clip_pixels.safetensors.

    pip install open_clip_torch transformers
    python tests/golden/make_open_clip.py

`open_clip` is a small random model of OpenCLIP's with what it computes; `clip_tokens.json` holds
the ids that OpenAI's byte-pair encoder (as OpenCLIP ships it, with ftfy) gives to difficult texts;
`clip_pixels.safetensors` holds pictures and what transformers' CLIPImageProcessorPil makes of them.
"""

import json
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = Path(__file__).parent
TEXTS = [
    "a photo of a cat.",
    "A  PHOTO   of\tthe\n\nlarge dog",
    "it's the cat's, isn't it? they'll say we've won; I'd be, you're",
    "the cat\u2019s \u201cquoted\u201d name, a \u2018single\u2019 one",
    "fish &amp; chips &lt;b&gt; &quot;x&quot; &amp;amp;",
    "12345 67,89 3.14 1st 2nd",
    "naïve café Übergröße Ångström São Paulo",
    "北京 東京 한국 смысл Ελλάδα",
    "emoji 😀👍🏽 and symbols ©®™ → ∑ ½",
    "e = mc^2; f(x):={x|x>0}; a_b-c/d\\e",
    "hyphen-ated under_scored CamelCase ALLCAPS",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "",
]


@torch.no_grad()
def model() -> None:
    torch.manual_seed(3)
    config = {
        "embed_dim": 16,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": 16,
            "patch_size": 8,
            "width": 24,
            "layers": 2,
            "head_width": 8,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": 10,
            "vocab_size": 40,
            "width": 16,
            "heads": 2,
            "layers": 2,
            "mlp_ratio": 3.0,
        },
    }
    model = CLIP(**config).eval()
    for key, leaf in model.named_parameters():
        if key != "logit_scale":
            centre = 1.0 if "ln_" in key and key.endswith("weight") else 0.0
            leaf.copy_(centre + 0.2 * torch.randn_like(leaf))
    pixels = torch.randn(3, 3, 16, 16)
    tokens = torch.randint(1, 38, (4, 10))
    for row, length in zip(tokens, (10, 4, 2, 7), strict=True):
        row[0], row[length - 1] = 38, 39
        row[length:] = 0
    image, text, scale = model(pixels, tokens)
    folder = HERE / "open_clip"
    folder.mkdir(exist_ok=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=1) + "\n")
    expected = {
        "pixels": pixels.permute(0, 2, 3, 1).contiguous(),
        "tokens": tokens.int(),
        "image_features": model.encode_image(pixels),
        "text_features": model.encode_text(tokens),
        "logits": (scale * image @ text.T).contiguous(),
    }
    save_file(expected, HERE / "open_clip_expected.safetensors")


def tokens() -> None:
    encoder = SimpleTokenizer()
    rows = [{"text": text, "ids": encoder.encode(text)} for text in TEXTS]
    (HERE / "clip_tokens.json").write_text(json.dumps(rows, indent=1) + "\n")


def pixels() -> None:
    draw = np.random.default_rng(0)
    side = 24
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    out = {}
    for index, (height, width) in enumerate(
        [(40, 30), (24, 60), (17, 19), (24, 24), (61, 25), (33, 90), (12, 12)]
    ):
        rows, columns = np.mgrid[:height, :width] / 7.0
        waves = np.stack([np.sin(rows * k + columns / k) for k in (1, 2, 3)], axis=-1)
        noisy = 127 + 90 * waves + draw.normal(scale=40, size=waves.shape)
        picture = np.clip(noisy, 0, 255).astype(np.uint8)
        ready = processor(picture, return_tensors="np")["pixel_values"][0]
        out[f"picture_{index}"] = picture
        out[f"expected_{index}"] = np.ascontiguousarray(ready.transpose(1, 2, 0), np.float32)
    save_numpy(out, HERE / "clip_pixels.safetensors")


if __name__ == "__main__":
    model()
    tokens()
    pixels()
