"""What models are made of: stacks, roles and keys of the config, for layouts that exist."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.errors import UserError
from jaxmerge.io.architectures import ROLES, architecture, part_of, role_of, table
from jaxmerge.io.architectures.config_changes import (
    dtype_changes,
    layer_changes,
    vocabulary_changes,
)
from jaxmerge.io.architectures.configs import changed
from jaxmerge.io.architectures.stacks import find_stacks
from jaxmerge.models import clip
from jaxmerge.models.bert import modeling as bert_model
from jaxmerge.models.bert import params as bert_keys
from jaxmerge.models.bert.config import Config as bert_config
from jaxmerge.models.clip import modeling as clip_model
from jaxmerge.models.clip import params as clip_keys
from jaxmerge.recipes.method_spec import of_family


def leaves(shapes: Mapping[str, tuple], dtype="float32") -> dict:
    return {n: np.zeros(s, dtype) for n, s in shapes.items()}


def decoder(prefix="model.", layers=3, experts=0, vocab=12, d=4) -> dict[str, tuple]:
    out = {f"{prefix}embed_tokens.weight": (vocab, d)}
    for i in range(layers):
        at = f"{prefix}layers.{i}."
        out |= {f"{at}self_attn.{n}_proj.weight": (d, d) for n in "qkvo"}
        out |= {f"{at}input_layernorm.weight": (d,), f"{at}post_attention_layernorm.weight": (d,)}
        if experts:
            out[f"{at}mlp.gate.weight"] = (experts, d)
        for e in range(experts):
            out |= {f"{at}mlp.experts.{e}.{n}_proj.weight": (d, d) for n in ("gate", "up", "down")}
    return out | {f"{prefix}norm.weight": (d,), "lm_head.weight": (vocab, d)}


def stacks(actual) -> dict:
    return {s.path: (s.layers, ".".join(map(str, s.count))) for s in actual.stacks}


def test_experts_are_no_layers():
    config = {"num_hidden_layers": 3, "num_experts": 16, "vocab_size": 12}
    arch = architecture(leaves(decoder(experts=16)), config)
    assert stacks(arch) == {"model.layers": (3, "num_hidden_layers")}
    assert arch.depth("model.layers.1.mlp.experts.15.up_proj.weight") == 0.5
    assert arch.role("model.layers.1.mlp.gate.weight") == "router"


def test_stages_are_counted_through():
    shapes = {}
    for stage, depth in enumerate((1, 3)):
        for i in range(depth):
            at = f"swin.encoder.layers.{stage}.blocks.{i}"
            shapes |= {
                f"{at}.attention.weight": (4 << stage, 4 << stage),
                f"{at}.norm.bias": (4 << stage,),
            }
        shapes[f"swin.encoder.layers.{stage}.downsample.weight"] = (8 << stage, 4 << stage)
    arch = architecture(leaves(shapes), {"depths": [1, 3]})
    assert [s.path for s in arch.stacks] == ["swin.encoder.layers.*.blocks"]
    at = lambda s, b: arch.layer(f"swin.encoder.layers.{s}.blocks.{b}.norm.bias").layer
    assert [at(0, 0), at(1, 0), at(1, 2)] == [0, 1, 3]
    assert arch.layer("swin.encoder.layers.0.downsample.weight") is None


def test_layers_that_predict_further_tokens_lie_beyond():
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1, "vocab_size": 12}
    arch = architecture(leaves(decoder(layers=5)), config)
    (stack,) = arch.stacks
    assert (stack.layers, stack.extra) == (4, ((4,),))
    assert arch.layer("model.layers.4.input_layernorm.weight") is None


def test_a_nested_config():
    shapes = decoder("language_model.model.") | {
        f"vision_tower.encoder.layers.{i}.{n}.weight": (4, 4) for i in range(3) for n in ("q", "k")
    }
    config = {
        "model_type": "never_seen",
        "dtype": "float32",
        "text_config": {"num_hidden_layers": 3, "vocab_size": 12, "layer_types": ["a", "b", "c"]},
        "vision_config": {"num_hidden_layers": 3, "dtype": "float32"},
    }
    arch = architecture(leaves(shapes), config)
    assert stacks(arch) == {
        "language_model.model.layers": (3, "text_config.num_hidden_layers"),
        "vision_tower.encoder.layers": (3, "vision_config.num_hidden_layers"),
    }
    (main,) = arch.main()
    changes = layer_changes(arch, main, [(arch, i) for i in (0, 1, 1, 2)])
    changes |= vocabulary_changes(arch, 12, 14) | dtype_changes(config, "bfloat16")
    assert changed(config, changes) == {
        "model_type": "never_seen",
        "dtype": "bfloat16",
        "text_config": {
            "num_hidden_layers": 4, "vocab_size": 14, "layer_types": ["a", "b", "b", "c"],
        },
        "vision_config": {"num_hidden_layers": 3, "dtype": "bfloat16"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("gpt_neox.embed_in.weight", (11, 4), "embedding"),
        ("embed_out.weight", (11, 4), "head"),
        ("cls.predictions.bias", (11,), "head"),
        ("bert.embeddings.position_embeddings.weight", (8, 4), "position"),
        ("encoder.rel_embeddings.weight", (11, 4), "position"),
        ("bert.embeddings.token_type_embeddings.weight", (2, 4), "table"),
        ("h.0.attn.bias", (1, 1, 8, 8), "buffer"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (2,), "buffer"),
        ("model.layers.0.self_attn.q_norm.weight", (4,), "norm"),
        ("h.0.ln_1.bias", (4,), "norm"),
        ("h.0.attn.c_attn.weight", (4, 12), "kernel"),
        ("h.0.attn.c_attn.bias", (12,), "bias"),
        ("layer1.0.bn1.running_mean", (4,), "statistic"),
        ("conv1.weight", (4, 3, 7, 7), "convolution"),
        ("vision_model.embeddings.class_embedding", (4,), "vector"),
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 4, 6), "experts"),
        ("decoder.embed_tokens.0.weight", (9, 4), "embedding"),
        ("model.embed_tokens.modules_to_save.default.weight", (9, 4), "embedding"),
        # a whole tower, or a layer, inside of what is called after tokens or positions
        ("model.vision_embed_tokens.vision_model.layers.0.mlp.fc1.weight", (8, 4), "kernel"),
        ("model.embed_tokens_extend.image_embed.img_projection.0.weight", (8, 4), "kernel"),
        ("time_text_embed.text_embedder.linear_1.weight", (8, 4), "kernel"),
        ("context_embedder.weight", (8, 4), "kernel"),
        ("model.layers.0.moe.shared.gate_proj.weight", (8, 4), "kernel"),
        ("layers.0.attention.continuous_position_bias_mlp.0.weight", (8, 4), "kernel"),
        ("layers.0.self_attn.linear_pos.weight", (8, 4), "kernel"),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 4), "kernel"),
        ("projector.pos_embed", (8, 4), "position"),
        # parameters of their own: what stands in for tokens, what scales, what shifts
        ("image_to_text_projection.latent_query", (6, 4), "table"),
        ("resampler.query", (6, 4), "table"),
        ("qformer.query_tokens", (1, 6, 4), "table"),
        ("embeddings.mask_token", (1, 4), "table"),
        ("patch_generator.cls_token.token", (3, 4), "table"),
        ("perceiver.embeddings.latents", (6, 4), "table"),
        ("encoder.layer.0.attn.query", (4, 4), "kernel"),
        ("tokens", (9, 4), "embedding"),
        ("backbone.layers.0.mixer.A_log", (8, 2), "vector"),
        ("layers.0.attn.q_clip.scale", (2, 4), "vector"),
        ("encoder.layers.0.self_attn.pos_bias_u", (2, 4), "bias"),
        ("encoder.layers.0.self_attn.bias_v", (2, 4), "bias"),
        ("encoder.stages.0.layers.0.grn.weight", (1, 1, 1, 4), "norm"),
        # of experts, and of heads, in one array
        ("model.layers.0.block_sparse_moe.input_linear.weight", (8, 6, 4), "experts"),
        ("model.layers.0.mlp.output_linear.weight", (8, 4, 6), "experts"),
        ("model.layers.0.mlp.depthwise_conv.weight", (8, 1, 3), "convolution"),
        ("model.layers.0.block_sparse_moe.router.layer.weight", (8, 4), "router"),
        ("encoder/attention/query/kernel", (4, 2, 2), "kernel"),
        ("patch_embedding.weight", (4, 3, 2, 2), "convolution"),
    ],
)
def test_roles(name, shape, role):
    assert role_of(name, shape, vocabularies=[11], experts=[8]) == role


@pytest.mark.parametrize(
    ("family", "name", "shape", "role"),
    [
        ("granitemoeshared", "model.layers.0.block_sparse_moe.input_linear.weight", (8, 6, 4),
         "experts"),
        ("minimax", "model.layers.0.self_attn.slope_rate", (4, 1, 1), "buffer"),
        ("zamba", "model.layers.0.mamba.x_proj_weight", (2, 6, 4), "kernel"),
        ("inkling_text", "model.layers.1.mlp.gate.weight", (10, 4), "router"),
    ],
)  # fmt: skip
def test_roles_that_modules_tell(family, name, shape, role):
    config = {"model_type": family, "num_local_experts": 8}
    assert architecture(leaves({name: shape}), config).role(name) == role


def test_vocabularies_of_an_unknown_family_are_found_by_their_rows():
    shapes = {f"net.units.{i}.w.weight": (12, 4) for i in range(3)}  # no vocabulary: a layer's
    shapes |= {"net.tok.weight": (12, 4), "net.out.weight": (12, 4), "net.out.bias": (12,)}
    shapes |= {"net.mix.weight": (4, 4), "net.last/kernel": (4, 12)}
    arch = architecture(leaves(shapes), {"model_type": "of our own", "vocab_size": 12})
    roles = {n: arch.role(n) for n in shapes}
    assert roles.pop("net.tok.weight") == "embedding"
    assert [n for n, r in roles.items() if r == "head"] == [
        "net.out.weight", "net.out.bias", "net.last/kernel",
    ]  # fmt: skip
    assert arch.token_axis("net.last/kernel") == 1
    arch = architecture(leaves(shapes), {"model_type": "llama", "vocab_size": 12})
    assert arch.role("net.tok.weight") == "kernel"  # the family is known: its modules decide


def test_a_head_comes_after_the_layers():
    shapes = {
        "embed.weight": (9, 4),
        "vocab_projector.bias": (9,),
        "vocab_transform.weight": (4, 4),
    }
    arch = architecture(leaves(shapes), {"model_type": "distilbert", "vocab_size": 9})
    assert [arch.early(n) for n in shapes] == [True, False, False]


def test_parts():
    names = {
        "transformer.h.0.attn.c_attn.weight": "attention",
        "gpt_neox.layers.0.attention.query_key_value.weight": "attention",
        "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": "mlp",
        "encoder.block.0.layer.1.DenseReluDense.wi.weight": "mlp",
        "model.layers.0.block_sparse_moe.experts.0.w1.weight": "mlp",
        "model.layers.0.post_attention_layernorm.weight": "",
        "model.norm.weight": "",
    }
    assert {n: part_of(n) for n in names} == names


def test_a_sequence_is_no_stack():
    assert not find_stacks({f"merger.mlp.{i}.weight": (4, 4) for i in (0, 2)})


def test_kernels_stored_in_out_give_methods_their_axis():
    shapes = {f"h.{i}.attn.c_attn.weight": (4, 12) for i in range(2)} | {"wte.weight": (9, 4)}
    gpt2 = architecture(leaves(shapes), {"model_type": "gpt2", "vocab_size": 9})
    signature = inspect.signature(jm.regmean).parameters
    kernels = [n for n in shapes if n.startswith("h.")]
    assert of_family("regmean", signature, gpt2)["axis"] == dict.fromkeys(kernels, 0)
    llama = architecture(leaves(decoder()), {"model_type": "llama", "vocab_size": 12})
    assert set(of_family("regmean", signature, llama)["axis"].values()) == {1}
    biases = {f"h.{i}.attn.c_attn.bias": (12,) for i in range(2)}
    square = {"h.0.attn.c_proj.weight": (4, 4)}  # as all others of a family that nobody knows
    unknown = architecture(leaves(shapes | biases | square), {"model_type": "never_seen"})
    expected = dict.fromkeys([*kernels, *square], 0)
    assert of_family("regmean", signature, unknown)["axis"] == expected


def stacked(config: dict, at: str, layers: int, placed: list[int], **more: int) -> dict:
    """What a config says once a stack is made of these of its layers."""
    stacks = {at: layers, **more}
    shapes = {
        f"{p}.{i}.{n}.weight": (4, 4) for p, c in stacks.items() for i in range(c) for n in "qk"
    }
    arch = architecture(leaves(shapes), config)
    (stack,) = [s for s in arch.stacks if s.path == at]
    return changed(config, layer_changes(arch, stack, [(arch, i) for i in placed]))


def test_lists_of_an_encoder_are_not_the_decoders():
    config = {"encoder_layers": 2, "decoder_layers": 2, "window": [8, 4], "decoder_span": [1, 2]}
    both = {"encoder.layers": 2, "decoder.layers": 2}
    grown = {p: stacked(config, p, 2, [0, 1, 1], **{q: n for q, n in both.items() if q != p})
             for p in both}  # fmt: skip
    assert grown["encoder.layers"] == {**config, "encoder_layers": 3, "window": [8, 4, 4]}
    assert grown["decoder.layers"] == {**config, "decoder_layers": 3, "decoder_span": [1, 2, 2]}


def test_lists_as_long_by_chance_stay():
    config = {"num_hidden_layers": 3, "tubelet_size": [2, 16, 16], "video_size": [8, 32, 32],
              "architectures": ["A", "B", "C"], "eos_token_id": [1, 2, 3],
              "norm_mean": [0.5, 0.4, 0.4], "norm_std": [0.3, 0.3, 0.3],
              "bias_args": [{"type": "1d"}, {"type": "2d"}, {"type": "3d"}],
              "intermediate_size": [4, 5, 6]}  # fmt: skip
    assert stacked(config, "layers", 3, [0, 1, 2, 2]) == {
        **config, "num_hidden_layers": 4, "intermediate_size": [4, 5, 6, 6],
    }  # fmt: skip


def test_numbers_of_layers_are_told_from_a_value_for_each():
    config = {"num_hidden_layers": 3, "moe_layers": [0, 1, 2], "no_rope_layers": [1, 1, 0]}
    assert stacked(config, "layers", 3, [0, 1, 2, 2]) == {
        "num_hidden_layers": 4, "moe_layers": [0, 1, 2, 3], "no_rope_layers": [1, 1, 0, 0],
    }  # fmt: skip
    config["moe_layers"] = [1]
    assert stacked(config, "layers", 3, [1, 1, 2])["moe_layers"] == [0, 1]


def test_a_vocabulary_of_0_is_none():
    config = {"num_hidden_layers": 3, "vocab_size": 12, "vocab_size_per_layer_input": 0}
    arch = architecture(leaves(decoder()), config)
    assert vocabulary_changes(arch, 12, 14) == {("vocab_size",): 14}


def test_a_layer_reads_the_cache_of_one_before_it():
    config = {"num_hidden_layers": 4, "kv_source_layers": [0, 0, 2, 2]}
    got = stacked(config, "layers", 4, [0, 1, 2, 3, 2, 3])
    assert got == {"num_hidden_layers": 6, "kv_source_layers": [0, 0, 2, 2, 4, 4]}
    with pytest.raises(UserError, match=r"layer 1 .* cache of layer 2 .*kv_source_layers"):
        stacked(config, "layers", 4, [0, 3])


def test_a_layer_of_which_no_config_says_what_it_is():
    small, large = (
        architecture(
            leaves({f"layers.{i}.{n}.weight": (4, 4) for i in range(c) for n in "qk"}), config
        )
        for c, config in (
            (2, {"num_hidden_layers": 2, "layer_types": ["a", "b"], "moe_layers": [1]}),
            (3, {"num_hidden_layers": 3, "moe_layers": 7}),
        )
    )
    (stack,) = small.stacks
    changes = layer_changes(small, stack, [(small, 1), (large, 1), (small, 0)])
    assert changes == {
        ("num_hidden_layers",): 3, ("layer_types",): ["b", "b", "a"], ("moe_layers",): [0],
    }  # fmt: skip
    with pytest.raises(UserError, match=r"layer_types of layer 1 of the output, layer 2"):
        layer_changes(small, stack, [(small, 0), (large, 2)])


def test_a_config_that_counts_one_more_goes_on_doing_so():
    config = {"model_type": "mask2former", "decoder_layers": 4}
    at = "transformer_module.decoder.layers"
    assert stacked(config, at, 3, [0, 1, 2, 2])["decoder_layers"] == 5
    assert stacked(config, at, 3, [0, 1, 2]) == config


def test_what_lies_in_a_known_container_is_no_stack():
    shapes = {f"model.decoder.layers.{i}.{n}.weight": (4, 4) for i in range(3) for n in "qk"}
    shapes |= {
        f"model.enc_out_bbox_embed.{g}.layers.{i}.weight": (4, 4)
        for g in range(4) for i in range(3)
    }  # fmt: skip
    arch = architecture(leaves(shapes), {"model_type": "lw_detr", "decoder_layers": 3})
    assert list(stacks(arch)) == ["model.decoder.layers"]
    assert arch.depth("model.enc_out_bbox_embed.3.layers.2.weight") == 0


def test_a_head_whose_tokens_are_columns():
    shapes = {
        "mobilebert.embeddings.word_embeddings.weight": (9, 2),
        "cls.predictions.dense.weight": (4, 9),
        "cls.predictions.bias": (9,),
    }
    arch = architecture(leaves(shapes), {"model_type": "mobilebert", "vocab_size": 9})
    assert [(arch.role(n), arch.token_axis(n), arch.rows(n)) for n in shapes] == [
        ("embedding", 0, 9), ("head", 1, 9), ("head", 0, 9),
    ]  # fmt: skip


def test_the_table_is_sound():
    assert len(table.families()) > 400
    for family in table.families():
        entry = table.known(family)
        assert entry is not None
        assert set(entry.roles.values()) <= set(ROLES)
        assert all(len(group) > 1 for group in entry.ties)
        for path, count in entry.stacks.items():
            assert path, family
            assert all(count.split(".")), family


def test_names_of_modules_become_names_of_a_checkpoint():
    shapes = {f"visual.blocks.{i}.attn.qkv.weight": (4, 4) for i in range(2)} | decoder()
    arch = architecture(leaves(shapes), {"model_type": "qwen2_vl", "vocab_size": 12})
    stored = {
        "model.visual.blocks.1.attn.qkv.weight": "visual.blocks.1.attn.qkv.weight",
        "model.language_model.layers.2.self_attn.q_proj.weight":
            "model.layers.2.self_attn.q_proj.weight",
        "lm_head.weight": "lm_head.weight", "no.such.weight": "no.such.weight",
    }  # fmt: skip
    assert {n: arch.stored(n) for n in stored} == stored


@pytest.mark.parametrize(
    ("family", "stored"),
    [
        ("d_fine", {  # a number of the module's is a word of the checkpoint's
            "model.decoder.layers.1.mlp.layers.0.weight": "model.decoder.layers.1.fc1.weight",
            "model.decoder.layers.0.mlp.layers.1.weight": "model.decoder.layers.0.fc2.weight",
        }),
        ("mistral_large4_text", {  # one prefix of the module's is two of the checkpoint's
            "layers.0.mlp.down_proj.weight": "layers.0.feed_forward.down_proj.weight",
            "layers.1.mlp.gate.weight": "layers.1.gate.weight",
        }),
        ("nemotron_h_omni", {  # numbers behind words
            "multi_modal_projector.linear_1.weight": "mlp1.1.weight",
            "multi_modal_projector.linear_2.weight": "mlp1.3.weight",
        }),
        ("sam3_tracker", {  # the checkpoint has a prefix more
            "mask_decoder.conv_s0.weight": "tracker_model.mask_decoder.conv_s0.weight",
        }),
    ],
)  # fmt: skip
def test_modules_whose_names_differ(family, stored):
    arch = architecture(leaves(dict.fromkeys(stored.values(), (4, 4))), {"model_type": family})
    assert {n: arch.stored(n) for n in stored} == stored


def ports():
    """Shapes by our names, and the table of keys, of the towers that the package has."""
    mini = clip.load(Path(jm.__file__).parent / "assets" / "mini").config
    yield clip_model.param_shapes(mini), clip_keys.hf_table(mini)
    for config in (bert_config(layers=1), bert_config(layers=1, types=0, buckets=32)):
        yield bert_model.param_shapes(config), bert_keys.hf_table(config)


def test_a_leaf_of_our_own_ports_has_the_role_of_its_key():
    """Tables of token types and of relative positions have two axes, and are no kernels."""
    compared = {}
    for shapes, entries in ports():
        for entry in entries:
            if len(entry.names) == 1:
                (name,) = entry.names
                compared[name] = role_of(name, shapes[name]), role_of(entry.key, shapes[name])
    assert {n: both for n, both in compared.items() if both[0] != both[1]} == {}
    assert compared["text/type"] == ("table", "table")
    assert compared["text/relative"] == ("position", "position")
    assert role_of("text/type/kernel", (8, 8)) == role_of("prototype", (8, 8)) == "kernel"
