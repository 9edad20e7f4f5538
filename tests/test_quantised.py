"""Quantised checkpoints are read as the floats that they stand for, or refused by name.

The fixtures are packed entry by entry from the formats' definitions, in plain loops that share
nothing with the readers; live libraries are compared behind the `parity` marker.
"""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.errors import UserError
from jaxmerge.io.sources import open_source

BF = ml_dtypes.bfloat16
F8 = ml_dtypes.float8_e4m3fn
E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def rng(seed=0):
    return np.random.default_rng(seed)


def checkpoint(folder, tensors, setting=None, **config):
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"model.norm.weight": np.ones(4, BF)}
    tensors = {k: np.asarray(v) for k, v in {**plain, **tensors}.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "torch_dtype": "bfloat16", **config}
    if setting:
        config["quantization_config"] = setting
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def bits_to_words(rows, bits):
    """Rows of integers -> rows of int32 words, bit by bit from the lowest."""
    out = []
    for row in rows:
        stream = [(int(v) >> k) & 1 for v in row for k in range(bits)]
        stream += [0] * (-len(stream) % 32)
        words = [stream[i : i + 32] for i in range(0, len(stream), 32)]
        out.append([sum(b << k for k, b in enumerate(w)) for w in words])
    return np.array(out, np.uint64).astype(np.uint32).view(np.int32)


def opened(folder, name="model.layers.0.up.weight"):
    source = open_source(folder)
    assert [n for n in source if n != "model.norm.weight"] == [name]
    like = source.like[name]
    assert (like.dtype, like.stored) == (np.float32, BF)
    assert "quantization_config" not in source.config()
    return source[name]


# ---------------------------------------------------------------- GPTQ, AWQ, packed


def gptq(bits, inputs=64, out=32, group=16, order=None, second=False, seed=0):
    g = rng(seed)
    q = g.integers(0, 1 << bits, (inputs, out))
    z = g.integers(1, 1 << bits, (inputs // group, out))
    s = g.random((inputs // group, out)).astype(np.float16)
    index = np.arange(inputs) // group if order is None else order
    n = "model.layers.0.up"
    tensors = {
        f"{n}.qweight": np.ascontiguousarray(bits_to_words(q.T, bits).T),
        f"{n}.qzeros": bits_to_words(z - (not second), bits),
        f"{n}.scales": s,
        f"{n}.g_idx": index.astype(np.int32),
    }
    want = np.empty((out, inputs), np.float32)
    for o in range(out):
        for i in range(inputs):
            want[o, i] = (q[i, o] - z[index[i], o]) * np.float32(s[index[i], o])
    return tensors, want


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(tmp_path, bits):
    tensors, want = gptq(bits)
    folder = checkpoint(tmp_path / "m", tensors, {"quant_method": "gptq", "bits": bits})
    np.testing.assert_array_equal(opened(folder), want)


def test_gptq_in_another_order_of_inputs_and_the_second_format(tmp_path):
    order = rng(3).permutation(64) // 16
    tensors, want = gptq(4, order=order, second=True)
    setting = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}
    np.testing.assert_array_equal(opened(checkpoint(tmp_path / "m", tensors, setting)), want)


def test_awq(tmp_path):
    g, inputs, out, group = rng(1), 32, 16, 8
    q, z = g.integers(0, 16, (inputs, out)), g.integers(0, 16, (inputs // group, out))
    s = g.random((inputs // group, out)).astype(np.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # the column in each nibble

    def pack(x):
        words = np.zeros((len(x), out // 8), np.uint32)
        for c in range(out // 8):
            for nibble, column in enumerate(order):
                words[:, c] |= x[:, 8 * c + column].astype(np.uint32) << np.uint32(4 * nibble)
        return words.view(np.int32)

    n = "model.layers.0.up"
    tensors = {f"{n}.qweight": pack(q), f"{n}.qzeros": pack(z), f"{n}.scales": s}
    setting = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    want = ((q - np.repeat(z, group, 0)) * np.repeat(s.astype(np.float32), group, 0)).T
    got = opened(checkpoint(tmp_path / "m", tensors, setting))
    np.testing.assert_array_equal(got, want.astype(np.float32))


@pytest.mark.parametrize("zeros", [False, True])
def test_compressed_tensors_packed(tmp_path, zeros):
    g, out, inputs, group = rng(2), 24, 20, 10
    q, s = g.integers(-8, 8, (out, inputs)), g.random((out, 2)).astype(BF)
    z = g.integers(-8, 8, (out, 2)) if zeros else np.zeros((out, 2), int)
    n = "model.layers.0.up.weight"
    tensors = {
        f"{n}_packed": bits_to_words(q + 8, 4),
        f"{n}_scale": s,
        f"{n}_shape": np.int64([out, inputs]),
    }
    if zeros:
        tensors[f"{n}_zero_point"] = np.ascontiguousarray(bits_to_words((z + 8).T, 4).T)
    setting = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    want = (q - np.repeat(z, group, 1)) * np.repeat(s.astype(np.float32), group, 1)
    got = opened(checkpoint(tmp_path / "m", tensors, setting))
    np.testing.assert_array_equal(got, want.astype(np.float32))


# ---------------------------------------------------------------- 8 bits with scales


@pytest.mark.parametrize(
    ("shape", "scales", "block"),
    [
        ((20, 12), (3, 2), [8, 8]),
        ((20, 12), (20, 1), None),
        ((20, 12), (20,), None),
        ((20, 12), (), None),
        ((20, 12), (20, 3), None),
        ((3, 20, 12), (3, 3, 2), [8, 8]),
        ((3, 20, 12), (3,), None),
    ],
)
@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale", "qscale_weight"])
def test_float8_with_scales(tmp_path, shape, scales, block, name):
    g = rng(4)
    w, s = g.normal(size=shape).astype(F8), np.asarray(g.random(scales), np.float32)
    want = np.empty(shape, np.float32)
    for at in np.ndindex(*shape):
        if s.ndim == 0:
            k = ()
        elif s.ndim < len(shape):
            k = at[: s.ndim]
        else:
            lead, (r, c) = at[:-2], at[-2:]
            size = block or (shape[-2] // scales[-2], shape[-1] // scales[-1])
            k = (*lead, r // size[0], c // size[1])
        want[at] = np.float32(w[at]) * s[k]
    n = "model.layers.0.up"
    tensors = {f"{n}.weight": w, f"{n}.{name}": s, f"{n}.input_scale": np.float32([2])}
    setting = {"quant_method": "fp8", "weight_block_size": block}
    np.testing.assert_array_equal(opened(checkpoint(tmp_path / "m", tensors, setting)), want)


def test_float8_without_scales_is_a_dtype_like_any_other(tmp_path):
    folder = checkpoint(tmp_path / "m", {"w": rng().normal(size=(4, 4)).astype(F8)})
    assert open_source(folder).like["w"].dtype == F8


def test_integers_with_scales_and_zero_points(tmp_path):
    g = rng(5)
    q, s = g.integers(-128, 128, (6, 4)).astype(np.int8), g.random((6, 1)).astype(np.float32)
    z = g.integers(-9, 9, (6, 1)).astype(np.int8)
    n = "model.layers.0.up.weight"
    tensors = {n: q, f"{n}_scale": s, f"{n}_zero_point": z}
    setting = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    got = opened(checkpoint(tmp_path / "m", tensors, setting))
    np.testing.assert_array_equal(got, (q.astype(np.float32) - z) * s)


# ---------------------------------------------------------------- four-bit floats


def test_mxfp4_of_experts(tmp_path):
    g, experts, out, groups = rng(6), 2, 6, 3
    codes = g.integers(0, 16, (experts, out, groups * 32))
    exponents = g.integers(120, 130, (experts, out, groups)).astype(np.uint8)
    blocks = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
    n = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {
        f"{n}_blocks": blocks.reshape(experts, out, groups, 16),
        f"{n}_scales": exponents,
    }
    want = np.empty((experts, groups * 32, out), np.float32)
    for e, o, i in np.ndindex(experts, out, groups * 32):
        want[e, i, o] = E2M1[codes[e, o, i]] * 2.0 ** (int(exponents[e, o, i // 32]) - 127)
    folder = checkpoint(tmp_path / "m", tensors, {"quant_method": "mxfp4"})
    np.testing.assert_array_equal(opened(folder, n), want)


@pytest.mark.parametrize("maker", ["compressed-tensors", "modelopt"])
def test_nvfp4(tmp_path, maker):
    g, out, inputs = rng(7), 6, 32
    codes = g.integers(0, 16, (out, inputs))
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
    s, world = (g.random((out, 2)) * 4).astype(F8), np.float32(0.25)
    n = "model.layers.0.up.weight"
    if maker == "modelopt":
        tensors = {n: packed, f"{n}_scale": s, f"{n}_scale_2": world}
    else:
        tensors = {f"{n}_packed": packed, f"{n}_scale": s, f"{n}_global_scale": 1 / world[None]}
    want = E2M1[codes] * np.repeat(s.astype(np.float32), 16, 1) * world
    folder = checkpoint(tmp_path / "m", tensors, {"quant_method": maker})
    np.testing.assert_array_equal(opened(folder), want)


# ---------------------------------------------------------------- bitsandbytes


def bnb4(nested, out=6, inputs=40, block=64):
    g, n = rng(8), "model.layers.0.up.weight"
    size = out * inputs
    codes = g.integers(0, 16, size)
    table = np.sort(g.normal(size=16)).astype(np.float32)
    count = -(-size // block)
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [out, inputs]}
    tensors = {
        n: (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None],
        f"{n}.quant_map": table,
    }
    if nested:
        state |= {"nested_blocksize": 2, "nested_offset": 0.125, "nested_dtype": "float32"}
        second = np.sort(g.normal(size=256)).astype(np.float32)
        inner = g.integers(0, 256, count).astype(np.uint8)
        above = g.random(-(-count // 2)).astype(np.float32)
        tensors |= {
            f"{n}.absmax": inner, f"{n}.nested_absmax": above, f"{n}.nested_quant_map": second,
        }  # fmt: skip
        scales = second[inner] * np.repeat(above, 2)[:count] + np.float32(0.125)
    else:
        scales = tensors[f"{n}.absmax"] = g.random(count).astype(np.float32)
    text = json.dumps(state).encode()
    tensors[f"{n}.quant_state.bitsandbytes__nf4"] = np.frombuffer(text, np.uint8)
    want = np.float32([table[c] * scales[i // block] for i, c in enumerate(codes)])
    return tensors, want.reshape(out, inputs)


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4_bit(tmp_path, nested):
    tensors, want = bnb4(nested)
    setting = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    np.testing.assert_array_equal(opened(checkpoint(tmp_path / "m", tensors, setting)), want)


def test_bitsandbytes_8_bit(tmp_path):
    g, n = rng(9), "model.layers.0.up"
    q, s = g.integers(-127, 128, (6, 4)).astype(np.int8), g.random(6).astype(np.float32)
    tensors = {f"{n}.weight": q, f"{n}.SCB": s, f"{n}.weight_format": np.uint8(0)}
    setting = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    got = opened(checkpoint(tmp_path / "m", tensors, setting))
    np.testing.assert_allclose(got, q * s[:, None] / 127, rtol=3e-7)


# ---------------------------------------------------------------- the whole way


def test_a_merge_of_quantised_models_is_that_of_their_floats(tmp_path):
    """Two schemes and a plain model; the output is plain, in the model's dtype."""
    a, wa = gptq(4, seed=1)
    b, wb = gptq(8, seed=2)
    g = rng(10)
    plain = g.normal(size=wa.shape).astype(BF)
    checkpoint(tmp_path / "a", a, {"quant_method": "gptq"})
    checkpoint(tmp_path / "b", b, {"quant_method": "gptq"})
    checkpoint(tmp_path / "base", {"model.layers.0.up.weight": plain})
    for base in (None, tmp_path / "base"):
        method = jm.mean() if base is None else jm.task_arithmetic(0.5)
        report = jm.merge_files(
            method, base=base, models=[tmp_path / "a", tmp_path / "b"], out=tmp_path / "out",
            force=True,
        )  # fmt: skip
        out = load_file(tmp_path / "out/model.safetensors")["model.layers.0.up.weight"]
        p = plain.astype(np.float32)
        want = (wa + wb) / 2 if base is None else p + 0.5 * ((wa - p) + (wb - p))
        assert out.dtype == BF
        assert report.merged == 2
        np.testing.assert_array_equal(out, want.astype(BF))
        config = json.loads((tmp_path / "out/config.json").read_text())
        assert "quantization_config" not in config


def test_a_large_leaf_in_pieces_costs_one_load(tmp_path, monkeypatch):
    from jaxmerge.io.computed import Computed

    g, n = rng(11), "model.layers.0.up.weight"
    w = g.normal(size=(1024, 2048)).astype(F8)
    for k in "ab":
        checkpoint(tmp_path / k, {n: w, f"{n}_scale": np.float32(0.5)}, {"quant_method": "fp8"})
    loads, load = [], Computed.load
    monkeypatch.setattr(Computed, "load", lambda self, m: (loads.append(m), load(self, m))[1])
    jm.merge_files(jm.mean(), models=[tmp_path / "a", tmp_path / "b"], out=tmp_path / "out")
    assert loads == [n, n]
    out = load_file(tmp_path / "out/model.safetensors")[n]
    np.testing.assert_array_equal(out, (w.astype(np.float32) * 0.5).astype(BF))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "quark"}, "quark"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "awq", "version": "gemv"}, "gemv"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "marlin-24"),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized",
             "transform_config": {"config_groups": {}, "x": 1}}, "rotations",
        ),
    ],
)  # fmt: skip
def test_other_schemes_are_refused_by_name_with_a_way_out(tmp_path, setting, words):
    folder = checkpoint(tmp_path / "m", {"w.codes": np.zeros((4, 4), np.int32)}, setting)
    with pytest.raises(UserError, match="is quantised with") as error:
        open_source(folder)
    assert words in str(error.value)
    assert "dequantize" in str(error.value)
    assert set(open_source(folder, stored=True)) == {"w.codes", "model.norm.weight"}


def test_inspect_shows_what_is_stored_or_what_it_stands_for(tmp_path, capsys):
    from jaxmerge.cli import inspect

    tensors, want = gptq(4)
    folder = checkpoint(tmp_path / "m", tensors, {"quant_method": "gptq"})
    for stored, names in ((False, {"model.layers.0.up.weight"}), (True, set(tensors))):
        inspect.run(str(folder), stored=stored, json=True)
        content = json.loads(capsys.readouterr().out)["leaves"]
        assert {x["name"] for x in content} == names | {"model.norm.weight"}
    assert content[0]["name"] in tensors
    assert want.shape == (32, 64)


def test_what_does_not_fit_its_scheme_is_refused(tmp_path):
    n = "model.layers.0.up"
    good, _ = gptq(4)
    for i, (tensors, words) in enumerate([
        ({k: v for k, v in good.items() if not k.endswith("scales")}, "has no"),
        ({**good, f"{n}.scales": np.ones((4, 31), np.float16)}, "laid out"),
        ({f"{n}.weight": np.zeros((4, 4), np.int8)}, "packed integers"),
        ({f"{n}.weight": np.zeros((4, 4), F8), f"{n}.weight_scale": np.ones((3, 3), "f")}, "fit"),
        ({f"{n}.weight": np.zeros((8, 1), np.uint8), f"{n}.weight.absmax": np.ones(1, "f")},
         "quant_state"),
    ]):  # fmt: skip
        with pytest.raises(UserError, match=words):
            open_source(checkpoint(tmp_path / str(i), tensors))


def test_hostile_quant_states_are_refused(tmp_path):
    tensors, _ = bnb4(False)
    key = next(k for k in tensors if "quant_state" in k)
    for i, state in enumerate([
        b"[]", b"{", b'{"shape": [-1, 4], "blocksize": 64}', b'{"shape": [6, 40], "blocksize": 0}',
        b'{"shape": [6, 4000000000], "blocksize": 64}', b'{"shape": "x", "blocksize": 64}',
    ]):  # fmt: skip
        tensors[key] = np.frombuffer(state, np.uint8)
        with pytest.raises(UserError, match="quantised"):
            open_source(checkpoint(tmp_path / str(i), tensors))


# ---------------------------------------------------------------- live libraries


@pytest.mark.parity
def test_parity_with_bitsandbytes(tmp_path):
    torch = pytest.importorskip("torch")
    bnb = pytest.importorskip("bitsandbytes")
    w = torch.randn(48, 80, generator=torch.Generator().manual_seed(0))
    n = "model.layers.0.up.weight"
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            q, state = bnb.functional.quantize_4bit(
                w, blocksize=64, quant_type=kind, compress_statistics=nested
            )
            tensors = {n: q.numpy()}
            for k, v in state.as_dict(packed=True).items():
                tensors[f"{n}.{k}"] = v.numpy()
            folder = checkpoint(tmp_path / f"{kind}{nested}", tensors)
            want = bnb.functional.dequantize_4bit(q, state).float().numpy()
            got = open_source(folder)[n]
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    q, s, _ = bnb.functional.int8_vectorwise_quant(w.half())
    m = n.removesuffix(".weight")
    folder = checkpoint(tmp_path / "8", {n: q.numpy(), f"{m}.SCB": s.numpy()})
    want = bnb.functional.int8_vectorwise_dequant(q, s).float().numpy()
    np.testing.assert_allclose(open_source(folder)[n], want, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("form", "weights"),
    [
        ("pack-quantized", dict(num_bits=4, strategy="group", group_size=16, symmetric=True)),
        ("pack-quantized", dict(num_bits=4, strategy="group", group_size=16, symmetric=False)),
        ("pack-quantized", dict(num_bits=3, strategy="channel", symmetric=True)),
        ("int-quantized", dict(num_bits=8, strategy="channel", symmetric=True)),
        ("float-quantized", dict(num_bits=8, type="float", strategy="channel", symmetric=True)),
        ("float-quantized", dict(num_bits=8, type="float", strategy="tensor", symmetric=True)),
        ("nvfp4-pack-quantized",
         dict(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)),
    ],
)  # fmt: skip
def test_parity_with_compressed_tensors(tmp_path, form, weights):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    g = torch.Generator().manual_seed(1)
    w = torch.randn(24, 32, generator=g)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    groups = {"group": 2, "tensor_group": 2, "channel": 1}.get(weights["strategy"])
    shape = (1,) if groups is None else (24, groups)
    scale = torch.rand(shape, generator=g) * 0.05 + 0.05
    state = {"weight": w, "weight_scale": scale}
    if not weights["symmetric"]:
        state["weight_zero_point"] = torch.randint(-8, 8, shape, generator=g, dtype=torch.int8)
    if form.startswith("nvfp4"):
        state["weight_global_scale"] = torch.tensor([8.0])
        state["weight_scale"] = scale * 8
    codec = BaseCompressor.get_value_from_registry(form)
    packed = codec.compress(state, scheme)
    want = codec.decompress(packed, scheme)["weight"].float().numpy()
    m = "model.layers.0.up"
    tensors = {
        f"{m}.{k}": v.view(torch.uint8).numpy().view(F8)
        if v.dtype == torch.float8_e4m3fn
        else v.numpy()
        for k, v in packed.items()
    }
    folder = checkpoint(tmp_path / "m", tensors, {"quant_method": "compressed-tensors"})
    np.testing.assert_allclose(open_source(folder)[f"{m}.weight"], want, rtol=1e-6, atol=1e-7)


@pytest.mark.parity
def test_parity_with_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    g = rng(12)
    n = "model.layers.0.mlp.experts.down_proj"
    blocks = g.integers(0, 256, (2, 6, 3, 16)).astype(np.uint8)
    scales = g.integers(120, 130, (2, 6, 3)).astype(np.uint8)
    folder = checkpoint(tmp_path / "x", {f"{n}_blocks": blocks, f"{n}_scales": scales})
    want = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales)).float().numpy()
    np.testing.assert_array_equal(open_source(folder)[n], want)

    w, s = g.normal(size=(256, 384)).astype(F8), g.random((2, 3)).astype(np.float32)
    torch_w = torch.tensor(w.view(np.uint8)).view(torch.float8_e4m3fn)
    want = Fp8Dequantize(None)._dequantize_one(torch_w, torch.tensor(s), torch.float32).numpy()
    n = "model.layers.0.up.weight"
    folder = checkpoint(
        tmp_path / "y", {n: w, f"{n}_scale_inv": s},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    )  # fmt: skip
    np.testing.assert_array_equal(open_source(folder)[n], want)
