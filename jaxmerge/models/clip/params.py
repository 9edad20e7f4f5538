"""The layouts of CLIP's checkpoints: Hugging Face's, and OpenCLIP's (which is OpenAI's too).

Ours keeps query, key and value apart, as Hugging Face does, because merges that look at a matrix
(its singular vectors, its largest entries) mean something else on the three of them stacked. The
other layout stacks them in one `in_proj_weight`; splitting and stacking loses nothing.
"""

from __future__ import annotations

from jaxmerge.io.key_tables import Entry, Table
from jaxmerge.models.clip.config import Config


def hf_table(config: Config) -> list[Entry]:
    """The layout of transformers' `CLIPModel` (a tower alone: of `CLIP...ModelWithProjection`)."""
    table = Table()
    add, add_norm, add_dense = table.add, table.norm, table.dense

    def add_blocks(tower, key_tower, name_tower):
        for index in range(tower.layers):
            key, name = f"{key_tower}.encoder.layers.{index}", f"{name_tower}/block_{index:02d}"
            add_norm(f"{key}.layer_norm1", f"{name}/norm1")
            for theirs, ours in _ATTENTION.items():
                add_dense(f"{key}.self_attn.{theirs}_proj", f"{name}/attn/{ours}")
            add_norm(f"{key}.layer_norm2", f"{name}/norm2")
            add_dense(f"{key}.mlp.fc1", f"{name}/mlp/up")
            add_dense(f"{key}.mlp.fc2", f"{name}/mlp/down")

    if config.vision is not None:
        key = "vision_model"
        add(f"{key}.embeddings.class_embedding", "vision/class_token")
        add(f"{key}.embeddings.patch_embedding.weight", "vision/patch/kernel", kind="patch")
        add(f"{key}.embeddings.position_embedding.weight", "vision/position")
        add_norm(f"{key}.pre_layrnorm", "vision/pre_norm")  # the typo is theirs
        add_blocks(config.vision, key, "vision")
        add_norm(f"{key}.post_layernorm", "vision/post_norm")
        if config.projection_dim is not None:
            add("visual_projection.weight", "vision/projection/kernel", kind="dense")
    if config.text is not None:
        key = "text_model"
        add(f"{key}.embeddings.token_embedding.weight", "text/token")
        add(f"{key}.embeddings.position_embedding.weight", "text/position")
        add_blocks(config.text, key, "text")
        add_norm(f"{key}.final_layer_norm", "text/final_norm")
        if config.projection_dim is not None:
            add("text_projection.weight", "text/projection/kernel", kind="dense")
    if config.vision is not None and config.text is not None:
        add("logit_scale", "logit_scale")
    return table.entries


_ATTENTION = {"q": "query", "k": "key", "v": "value", "out": "out"}


def open_clip_table(config: Config) -> list[Entry]:
    """The layout of OpenCLIP's `CLIP` and of OpenAI's state dicts.

    Raises:
      ValueError: the config lacks a tower or the projection, which that layout always has.
    """
    if config.vision is None or config.text is None or config.projection_dim is None:
        raise ValueError(
            "OpenCLIP's layout needs both towers and the projection; the config lacks one"
        )
    table = Table()
    _add_open_clip_blocks(table, config.vision.layers, "visual.transformer", "vision")
    _add_open_clip_blocks(table, config.text.layers, "transformer", "text")
    table.add("visual.class_embedding", "vision/class_token")
    table.add("visual.conv1.weight", "vision/patch/kernel", kind="patch")
    table.add("visual.positional_embedding", "vision/position")
    table.norm("visual.ln_pre", "vision/pre_norm")
    table.norm("visual.ln_post", "vision/post_norm")
    table.add("visual.proj", "vision/projection/kernel")
    table.add("token_embedding.weight", "text/token")
    table.add("positional_embedding", "text/position")
    table.norm("ln_final", "text/final_norm")
    table.add("text_projection", "text/projection/kernel")
    table.add("logit_scale", "logit_scale")
    return table.entries


def _add_open_clip_blocks(table: Table, layers: int, key_tower: str, name_tower: str) -> None:
    for index in range(layers):
        key, name = f"{key_tower}.resblocks.{index}", f"{name_tower}/block_{index:02d}"
        qkv = [f"{name}/attn/{part}" for part in ("query", "key", "value")]
        table.norm(f"{key}.ln_1", f"{name}/norm1")
        table.add(f"{key}.attn.in_proj_weight", *(f"{n}/kernel" for n in qkv), kind="fused")
        table.add(f"{key}.attn.in_proj_bias", *(f"{n}/bias" for n in qkv), kind="fused")
        table.dense(f"{key}.attn.out_proj", f"{name}/attn/out")
        table.norm(f"{key}.ln_2", f"{name}/norm2")
        table.dense(f"{key}.mlp.c_fc", f"{name}/mlp/up")
        table.dense(f"{key}.mlp.c_proj", f"{name}/mlp/down")
