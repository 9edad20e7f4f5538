"""What a decoder cannot do is said by the command line in one line, and nothing else happens."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmerge.cli import main
from jaxmerge.models import decoder
from jaxmerge.models.decoder import templates

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "gguf_tiny" / "tiny_llama.gguf"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `jaxmerge ...`, which must be refused; what it says."""

    def run(*words) -> str:
        monkeypatch.setattr(sys, "argv", ["jaxmerge", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, message = capsys.readouterr()
        message = "\n".join(
            line for line in message.splitlines() if not line.startswith("warning: ")
        )
        assert caught.value.code == 2, message
        assert not out
        assert message.startswith("error: ")
        assert "\n" not in message.strip()
        assert len(message) < 1500
        return message

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny model as a folder of Hugging Face, with its tokenizer."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("whole")
    decoder.save(decoder.load(TINY), folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it to be spoilt."""
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit(path: Path, drop=(), **entries) -> None:
    content = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in drop}))


def test_a_family_that_is_not_known(folder, command):
    edit(folder / "config.json", model_type="jamba", mamba_d_state=16)
    message = command("generate", folder, "the")
    assert f"{folder}: config.json: found model_type 'jamba'" in message
    assert all(family in message for family in decoder.FAMILIES)
    assert "no known family has 'mamba_d_state'" in message


@pytest.mark.parametrize(
    "entries, said",
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000, expected at most"),
        ({"num_experts": 10**9}, "num_experts is 1,000,000,000, expected at most"),
        ({"rope_theta": "x"}, "rope_theta is 'x', expected finite numbers"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x', expected a finite number"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": float("nan")}}, "factor is nan"),
    ],
)
def test_numbers_that_no_decoder_has(folder, command, entries, said):
    edit(folder / "config.json", drop=("rope_parameters",), **entries)
    message = command("generate", folder, "the")
    assert "config.json" in message
    assert said in message


def test_weights_that_contradict_the_config(folder, command):
    edit(folder / "config.json", intermediate_size=100, num_hidden_layers=3)
    message = command("generate", folder, "the")
    assert "model.layers.2." in message
    assert "found (96, 64), expected (100, 64)" in message
    assert "take config.json and weights from the same model" in message


def test_a_prompt_longer_than_the_context(folder, command):
    assert "has 76 tokens, the model's context 64: shorten it" in command(
        "generate", folder, "7" * 76
    )


def test_a_tokenizer_of_another_vocabulary(folder, command):
    edit(folder / "config.json", vocab_size=200)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:200].copy()
    save_file(weights, folder / "model.safetensors")
    message = command("generate", folder, "the")
    assert "the tokenizer has 275 tokens, the embedding 200 rows" in message
    assert "the tokenizer of another model" in message


@pytest.mark.parametrize("damage", ["cut", "form", "bytes"])
def test_a_damaged_tokenizer(folder, command, damage):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = [[0]] if damage == "form" else content["model"]["merges"]
    text = json.dumps(content)
    path.write_text(text[: len(text) // 2] if damage == "cut" else text)
    if damage == "bytes":
        path.write_bytes(b"\xff\xfe")
    assert "tokenizer.json" in command("generate", folder, "the")


@pytest.mark.parametrize(
    "entries, expected",
    [
        ({"eos_token_id": "</s>"}, "eos_token_id is ['</s>']; expected whole numbers"),
        ({"eos_token_id": [1, None]}, "config.json: eos_token_id is [1, None]"),
    ],
)
def test_tokens_that_are_no_numbers(folder, command, entries, expected):
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit(folder / "config.json", **entries)
    assert expected in command("generate", folder, "the")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ messages + 1 }}",
        "{{ missing.attribute }}",
        "{{ 'x' * 10 ** 11 }}",
        "{{ [1] * 99999999 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{{ 'x'|center(10 ** 11) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ 'x'.ljust(10 ** 11) }}",
        "{{ 'x'|indent(10 ** 11) }}",
        "{{ 'x' * 9000000 }}{{ 'x' * 9000000 }}",
        "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
        "{% endfor %}",
        # two trees of 2^60 leaves that are compared inside one call
        "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
        "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    ],
)
def test_templates_that_fail_are_refused_in_one_line(folder, command, template, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 1.0)
    edit(folder / "tokenizer_config.json", chat_template=template)
    message = command("generate", folder, "the", "--chat")
    assert "the chat template refuses this conversation: " in message


def test_no_tokenizer(folder, command):
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json in its folder" in command("generate", folder, "the")


def test_a_file_that_was_cut(tmp_path, command):
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 20, 500, 3000, 70_000):
        cut.write_bytes(TINY.read_bytes()[:size])
        assert "cut.gguf" in command("generate", cut, "the")


def test_an_adapter_for_other_shapes(folder, tmp_path, command):
    message = command("generate", f"{folder}+{GOLDEN / 'peft_lora' / 'plain'}", "the")
    assert "q_proj" in message


def test_a_chat_without_a_template(folder, command):
    edit(folder / "tokenizer_config.json", drop=["chat_template"])
    message = command("generate", folder, "the", "--chat")
    assert "no chat template" in message
    assert "give it plain text" in message


def test_tasks_that_are_not_there(folder, command):
    pytest.importorskip("lm_eval")
    assert "none.yaml" in command("evaluate", folder, "--tasks", "none.yaml")


def test_settings_that_cannot_be(folder, command):
    message = command("generate", folder, "the", "--temperature", "-1", "--top-p", "0")
    assert "temperature is -1.0, expected 0 or more; top_p is 0.0" in message
    assert "--most is 0" in command("generate", folder, "the", "--most", "0")
    assert "dtype: found 'int8'" in command("generate", folder, "the", "--dtype", "int8")


def test_a_type_that_gguf_files_are_not_written_in(folder, tmp_path, command):
    message = command("convert", folder, tmp_path / "out.gguf", "--dtype", "q4_0")
    assert "found 'q4_0', expected f32, f16, bf16, q8_0" in message
    assert not (tmp_path / "out.gguf").exists()


def test_a_family_without_a_form_in_gguf(tmp_path, command):
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = decoder.Config.from_hf(
        {"model_type": "llama", "num_attention_heads": 2, "max_position_embeddings": 8, **sizes}
    )
    decoder.save((config, decoder.init(config, jax.random.key(0))), tmp_path / "m")
    edit(tmp_path / "m" / "config.json", model_type="olmo2")
    assert "olmo2" in command("convert", tmp_path / "m", tmp_path / "m.gguf")


def test_values_that_are_not_finite(folder, command):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], np.nan)
    save_file(weights, folder / "model.safetensors")
    assert "NaN" in command("generate", folder, "the")


def test_templates_go_on_after_one_was_ended():
    for _ in range(2):
        with pytest.raises(Exception, match="memory"):
            templates.rendered("{{ 'x'|center(10 ** 11) }}", {})
        assert templates.rendered("{{ a }}-{{ 'b'.upper() }}", {"a": "é\u2028"}) == "é\u2028-B"
    templates._process.end()
    assert templates.rendered("{{ 1 + 1 }}", {}) == "2"


def test_what_json_cannot_hold_is_no_variable():
    with pytest.raises(TypeError, match="not JSON serializable"):
        templates.rendered("{{ a }}", {"a": object()})
