"""Makes tests/golden/clip_*: small random CLIP models and what torch computes with them.

Run in an environment with torch and transformers (the `parity` extra):

    python tests/golden/make_clip.py

Each folder is a Hugging Face checkpoint with `expected.safetensors` beside it: the inputs
(`pixels` [b, h, w, 3], `tokens`), the image and text features, the state before and
after each block, and the features in bfloat16.
Weights are random, biases and norms too, so that no term is invisible.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

HERE = Path(__file__).parent
SMALL = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
CASES = {
    # OpenAI's activation, the end token searched for
    "clip_quick": {"hidden_act": "quick_gelu", "eos": 59, "eps": 1e-5, "heads": 4},
    # exact gelu, the old config's end token 2: the largest id marks the end
    "clip_gelu": {"hidden_act": "gelu", "eos": 2, "eps": 1e-6, "heads": 3},
}


def make(name: str, hidden_act: str, eos: int, eps: float, heads: int) -> None:
    torch.manual_seed(len(name))
    shared = {
        **SMALL,
        "num_attention_heads": heads,
        "hidden_act": hidden_act,
        "layer_norm_eps": eps,
        "projection_dim": 16,
    }
    ids = {"eos_token_id": eos, "bos_token_id": 58, "pad_token_id": 1}
    config = CLIPConfig(
        vision_config={**shared, "image_size": 24, "patch_size": 8},
        text_config={**shared, "vocab_size": 60, "max_position_embeddings": 12, **ids},
        projection_dim=16,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for key, leaf in model.named_parameters():
            if key != "logit_scale":
                centre = 1.0 if "norm" in key.rsplit(".", 2)[-2] and "weight" in key else 0.0
                leaf.copy_(centre + 0.2 * torch.randn_like(leaf))
    pixels = torch.randn(5, 3, 24, 24)
    tokens = torch.randint(3, 58, (4, 12))
    for row, length in zip(tokens, (12, 7, 3, 10), strict=True):
        row[0], row[length - 1] = 58, 59
        row[length:] = 1
    folder = HERE / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with torch.no_grad():
        image = model.get_image_features(pixels)
        text = model.get_text_features(tokens)
        states = model.vision_model(pixels, output_hidden_states=True).hidden_states
        expected = {
            "pixels": pixels.permute(0, 2, 3, 1).contiguous(),
            "tokens": tokens.int(),
            "image_features": image.pooler_output,
            "text_features": text.pooler_output,
            "vision_states": torch.stack(states),
            "logits": model(tokens, pixels).logits_per_image,
        }
        half = model.to(torch.bfloat16)
        expected["image_features_bf16"] = half.get_image_features(pixels.bfloat16()).pooler_output
        expected["text_features_bf16"] = half.get_text_features(tokens).pooler_output
    expected = {key: x.float() if x.is_floating_point() else x for key, x in expected.items()}
    expected = {key: value.contiguous() for key, value in expected.items()}
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    for name, case in CASES.items():
        make(name, **case)
