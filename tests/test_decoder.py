"""Decoders against transformers' numbers (golden files), folders both ways, and bad input."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmerge.models import decoder

GOLDEN = Path(__file__).parent / "golden" / "decoder"
HERE = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())

# Mean loss over the 26 targets that a real position predicts, and the norms of its gradient in
# layer 0's query kernel and in the final norm: a float64 transcription of the formulas.
LOSSES = {
    "llama": (14.700124, 23.823453, 2.604554),
    "llama_untied_bias": (5.575991, 2.146716, 0.455814),
    "llama_rope_llama3": (12.348894, 7.033218, 2.551833),
    "llama_rope_linear": (13.151796, 6.811220, 2.493033),
    "llama_rope_yarn": (11.500828, 6.496491, 2.287992),
    "llama_rope_dynamic": (11.550079, 6.608260, 2.227225),
    "mistral_window": (5.218743, 1.770236, 0.441714),
    "qwen2_tied": (11.816604, 8.168827, 2.320420),
    "qwen2_window": (15.667636, 9.238439, 2.871128),
    "qwen3": (11.656178, 3.984240, 2.087297),
    "gemma": (14.833715, 2.515363, 2.674227),
    "gemma2": (6.184894, 0.338972, 0.447275),
    "gemma3": (21.639288, 0.640090, 4.431303),
}


def check(folder: Path, compute: decoder.Compute) -> None:
    """States, logits, loss, gradients and texts of one tiny model against its golden file."""
    model, expected = decoder.load(folder, dtype="float32"), np.load(folder / "expected.npz")
    tokens, mask = expected["ids"], expected["mask"].astype(bool)
    positions = decoder.positions_of(expected["mask"])
    scored = mask[:, 1:] & mask[:, :-1]

    def loss(params):
        actual = decoder.logits(model.config, params, tokens, positions, compute=compute)
        log_p = jax.nn.log_softmax(actual[:, :-1])
        chosen = jnp.take_along_axis(log_p, jnp.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(chosen * scored) / scored.sum(), actual

    (value, actual), grads = jax.value_and_grad(loss, has_aux=True)(dict(model.params))
    np.testing.assert_allclose(actual[mask], expected["logits"][mask], atol=1e-4, rtol=0)
    norms = [grads["block_00/attn/query/kernel"], grads["final_norm/scale"]]
    measured = [float(value), *(float(jnp.linalg.norm(g)) for g in norms)]
    np.testing.assert_allclose(measured, LOSSES[folder.name], rtol=1e-4)
    if compute == decoder.Compute():
        inner = decoder.states(model.config, model.params, tokens, positions, inner=True)
        layers = inner[expected["hidden_layers"]]
        difference = np.abs(layers - expected["hidden_states"]) * mask[None, :, :, None]
        scale = np.abs(expected["hidden_states"]).max()
        assert difference.max() < 1e-5 * max(1.0, scale)
        if "greedy_ids" in expected.files:
            rows = [row[on].tolist() for row, on in zip(tokens, mask, strict=True)]
            written = decoder.generate(model, rows, most=expected["greedy_ids"].shape[1])
            assert [one.tokens for one in written] == expected["greedy_ids"].tolist()


@pytest.mark.parametrize("name", HERE)
def test_states_logits_loss_and_gradients_equal_transformers(name):
    check(GOLDEN / name, decoder.Compute())


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_thirteen_tiny_models_equal_transformers(shared, name):
    folder = shared / "golden" / "tiny_lms" / name
    if not folder.exists():
        pytest.skip("no golden/tiny_lms")
    check(folder, decoder.Compute())
    check(folder, decoder.Compute(scan=True, remat="dots"))


def test_scanned_blocks_give_the_same():
    check(GOLDEN / "gemma3", decoder.Compute(scan=True))


def test_documents_in_one_row_do_not_see_each_other():
    model = decoder.load(GOLDEN / "qwen2_window", dtype="float32")
    a, b = np.array([[5, 6, 7, 8, 9, 10, 11]]), np.array([[20, 21, 22, 23]])
    both = np.concatenate([a, b, [[0]]], axis=1)
    index = np.array([[*range(7), *range(4), 0]])
    segment = np.array([[1] * 7 + [2] * 4 + [0]])
    together = decoder.logits(model.config, model.params, both, decoder.Positions(index, segment))
    apart = [decoder.logits(model.config, model.params, x) for x in (a, b)]
    np.testing.assert_allclose(together[:, :11], jnp.concatenate(apart, axis=1), atol=1e-4)


@pytest.mark.parametrize("shard_size", [None, 20_000])
def test_folders_come_back_bit_for_bit(tmp_path, shard_size):
    folder = GOLDEN / "gemma3"
    model = decoder.load(folder)
    assert {str(leaf.dtype) for leaf in model.params.values()} == {"float16"}
    decoder.save(model, tmp_path / "out", shard_size=shard_size)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size is not None)
    leaves = {key: leaf for file in files for key, leaf in load_file(file).items()}
    stored = load_file(folder / "model.safetensors")
    assert leaves.keys() == stored.keys()
    for key, leaf in stored.items():
        assert leaves[key].dtype == leaf.dtype
        assert leaves[key].tobytes() == leaf.tobytes()
    again = decoder.load(tmp_path / "out")
    assert again.config == model.config
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((folder / "config.json").read_text())
    assert {key: written[key] for key in before} == before


def test_a_decoder_goes_to_orbax_and_back(tmp_path):
    from jaxmerge.cli import convert

    convert.run(str(GOLDEN / "gemma3"), tmp_path / "orbax", to="orbax", quiet=True)
    loaded, model = decoder.load(tmp_path / "orbax"), decoder.load(GOLDEN / "gemma3")
    assert loaded.config == model.config
    for name, leaf in model.params.items():
        assert loaded.params[name].dtype == leaf.dtype
        np.testing.assert_array_equal(loaded.params[name], leaf, err_msg=name)


def test_tied_weights_may_be_stored_twice_if_both_agree(tmp_path):
    stored = load_file(GOLDEN / "gemma3" / "model.safetensors")
    (tmp_path / "config.json").write_text((GOLDEN / "gemma3" / "config.json").read_text())
    embedding = stored["model.embed_tokens.weight"]
    save_file({**stored, "lm_head.weight": embedding.copy()}, tmp_path / "model.safetensors")
    assert "head/kernel" not in decoder.load(tmp_path).params
    save_file({**stored, "lm_head.weight": embedding * 2}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"ties head and embedding.*differ"):
        decoder.load(tmp_path)


def test_the_dtype_asked_for():
    model = decoder.load(GOLDEN / "gemma3", dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in model.params.values()} == {"bfloat16"}
    with pytest.raises(ValueError, match="dtype: found 'int8'"):
        decoder.load(GOLDEN / "gemma3", dtype="int8")


def config(**entries):
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 16}
    return {"model_type": "llama", **sizes, **entries}


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"model_type": "lama"}, "'lama' .did you mean llama.*expected a decoder of gemma,"),
        ({"model_type": "olmo2", "clip_qkv": 8}, "no known family has 'clip_qkv'"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "text part is"),
        ({"model_type": None}, "no model_type, expected"),
        ({"hidden_size": 0, "vocab_size": "3"}, "vocab_size is '3'.*hidden_size is 0"),
        ({"num_key_value_heads": 3}, "4 heads of queries over 3 of keys"),
        ({"hidden_size": 10}, "hidden_size 10 is no multiple of 4 heads"),
        ({"hidden_act": "mish"}, "activation 'mish', expected one of"),
        ({"rope_scaling": {"type": "spiral"}}, "rope_type 'spiral', expected one of default"),
        ({"rope_scaling": {"type": "llama3"}}, "'llama3' without factor, low_freq_factor"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "1 entries .* expected 2"),
        ({"use_bidirectional_attention": True}, "expected a causal decoder"),
    ],
)
def test_configs_that_cannot_be(entries, message):
    with pytest.raises(ValueError, match=message):
        decoder.Config.from_hf(config(**entries))


def test_configs_of_transformers_4_are_read():
    old = config(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4.0}, head_dim=6)
    new = config(
        head_dim=6, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    )
    assert decoder.Config.from_hf(old) == decoder.Config.from_hf(new)
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 6, "rope_local_base_freq": 1e4}
    scaled = {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    actual = decoder.Config.from_hf(config(**gemma, **scaled))
    assert actual.rope == (0, 0, 0, 0, 0, 1)
    assert [(rope.kind, rope.theta) for rope in actual.ropes] == [("default", 1e4), ("linear", 1e6)]


def test_bad_input_says_what_is_wrong(tmp_path):
    parsed = decoder.Config.from_hf(config())
    params = decoder.init(parsed, jax.random.key(0))
    with pytest.raises(ValueError, match="found 17 in a row, expected at most 16"):
        decoder.logits(parsed, params, np.zeros((1, 17), np.int32))
    with pytest.raises(ValueError, match="found ids 0 to 20, expected 0 to 19"):
        decoder.logits(parsed, params, np.array([[0, 20]]))
    with pytest.raises(TypeError, match="found dtype float32"):
        decoder.logits(parsed, params, np.zeros((1, 4), np.float32))
    where = decoder.positions_of(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"positions: found shapes \(1, 3\)"):
        decoder.logits(parsed, params, np.zeros((1, 4), np.int32), where)
    decoder.save((parsed, params), tmp_path)
    wide = {**parsed.to_hf(), "intermediate_size": 12, "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(wide))
    with pytest.raises(
        ValueError, match=r"missing: model.layers.2.*found \(16, 8\), expected \(12"
    ):
        decoder.load(tmp_path)


def test_few_rows_meet_large_kernels_with_the_operands_swapped():
    """The same product, the same gradient, and statistics still see what meets the kernel."""
    from jaxmerge.models.transformer import FEW_ROWS, product
    from jaxmerge.statistics.capture import dense_inputs

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(FEW_ROWS.start, 256)).astype(np.float32)
    kernel = rng.normal(size=(256, 300)).astype(np.float32)
    for transposed, stored in ((False, kernel), (True, kernel.T.copy())):
        call = lambda w, x, transposed=transposed: product(x, w, transposed)
        assert "optimization_barrier" in str(jax.make_jaxpr(call)(stored, rows))
        np.testing.assert_allclose(jax.jit(call)(stored, rows), rows @ kernel, atol=1e-4)
        gradient = jax.jit(jax.grad(lambda w, x, call=call: call(w, x).sum()))(stored, rows)
        expected = np.broadcast_to(rows.sum(0)[:, None], kernel.shape)
        np.testing.assert_allclose(gradient, expected.T if transposed else expected, atol=1e-5)
        caught = dense_inputs(lambda p, x, call=call: call(p["w"], x), {"w": stored}, rows)[1]["w"]
        assert caught.axis == int(transposed)
        np.testing.assert_array_equal(caught.x, rows)
