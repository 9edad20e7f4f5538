"""Language models in use: scoring, generation, fine-tuning, adapters, the harness."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmerge as jm
from jaxmerge.continual import optimisers
from jaxmerge.continual.methods.lora import lora
from jaxmerge.data import language as data
from jaxmerge.errors import UserError
from jaxmerge.evaluation import language
from jaxmerge.evaluation.lm_eval import tasks_of
from jaxmerge.models import decoder
from jaxmerge.models.decoder.adapters import load_adapter, save_adapter
from jaxmerge.models.decoder.generate import _Text, choose
from jaxmerge.models.decoder.scoring import windows
from jaxmerge.training import language as training
from jaxmerge.training.language import _placing, finetune

GOLDEN = Path(__file__).parent / "golden"
PEFT = GOLDEN / "peft_lora"


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("gguf")
    return decoder.load(GOLDEN / "gguf_tiny" / "tiny_llama.gguf")


ROOM = 32


def all_logits(model, ids):
    """Logits of one row; all rows have one length, so that one program is compiled."""
    tokens = np.zeros((1, ROOM), np.int32)
    tokens[0, : len(ids)] = ids
    return np.asarray(decoder.logits(model.config, model.params, tokens)[0, : len(ids)])


def by_hand(model, ids):
    """log p of every token behind the first, from all logits at once."""
    logits = all_logits(model, ids)[:-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p[np.arange(len(ids) - 1), np.array(ids[1:])]


def test_scores_are_those_of_all_logits(tiny, monkeypatch):
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(3, 270, n).tolist(), rng.integers(3, 270, m).tolist())
             for n, m in ((3, 4), (10, 1), (1, 7))]  # fmt: skip
    for actual, (context, more) in zip(decoder.score(tiny, pairs, batch=2), pairs, strict=True):
        expected = by_hand(tiny, context + more)[-len(more) :]
        np.testing.assert_allclose(actual.tokens, expected, atol=2e-5)
        np.testing.assert_allclose(actual.log_likelihood, expected.sum(), atol=1e-4)
    greedy = decoder.generate(tiny, [pairs[0][0]], most=3)[0].tokens
    assert decoder.score(tiny, [(pairs[0][0], greedy)])[0].greedy
    with pytest.raises(ValueError, match="1 of 1 pairs have an empty context"):
        decoder.score(tiny, [([], [3])])
    with pytest.raises(ValueError, match="1 a continuation longer than the model's context of 64"):
        decoder.score(tiny, [([1], [3] * 65)])
    with pytest.raises(ValueError, match="found ids 3 to 275, expected 0 to 274"):
        decoder.score(tiny, [([1], [3, 275])])


def test_logits_in_pieces_are_the_same(tiny, monkeypatch):
    from jaxmerge.models.decoder import scoring

    model, ids = tiny, np.arange(3, 43).reshape(2, 20)
    where = decoder.positions_of(np.ones((2, 20)))

    def loss(params):
        actual = scoring._scores.__wrapped__(
            model.config, params, ids, np.roll(ids, -1), where, decoder.Compute()
        )
        return actual[0].sum()

    whole, slope = jax.value_and_grad(loss)(dict(model.params))
    monkeypatch.setitem(scoring.CHUNK, "cpu", 275 * 7)
    pieces, slopes = jax.value_and_grad(loss)(dict(model.params))
    np.testing.assert_allclose(pieces, whole, rtol=1e-6)
    np.testing.assert_allclose(slopes["token"], slope["token"], atol=1e-4)


def test_windows_score_every_token_once():
    for count in (1, 7, 8, 9, 23):
        actual = windows(range(count), first=99, room=8)
        assert [token for _, more in actual for token in more] == list(range(count))
        assert all(len(context) + len(more) <= 9 for context, more in actual)
    assert windows(range(20), 99, 8)[-1] == (list(range(11, 16)), [16, 17, 18, 19])


def test_perplexity_is_that_of_the_definition(tiny):
    texts = ["the man and the  42", "in\n\nThere"]
    actual = language.perplexity(tiny, texts)
    ids = [[1, *tiny.tokenizer.encode(text)] for text in texts]
    ll = sum(float(by_hand(tiny, row).sum()) for row in ids)
    np.testing.assert_allclose(actual.log_likelihood, ll, rtol=1e-5)
    assert (actual.tokens, actual.words, actual.bytes) == (sum(map(len, ids)) - 2, 7, 28)
    np.testing.assert_allclose(actual.per_token, np.exp(-ll / actual.tokens), rtol=1e-5)
    with pytest.raises(ValueError, match="found 2 texts without a token"):
        language.perplexity(tiny, ["", ""])


def test_multiple_choice_and_exact_match(tiny):
    asked = language.Question("the", (" man", "and", "in there"), 1)
    actual = language.multiple_choice(tiny, [asked], mutual_info=True)
    scores = language.continuations(tiny, [("the", f" {c}") for c in asked.choices])
    ll = np.array([s.log_likelihood for s in scores])
    assert actual["acc"] == (ll.argmax() == 1)
    assert actual["acc_norm"] == ((ll / [4, 3, 8]).argmax() == 1)
    written = decoder.generate(tiny, ["the"], most=3)[0].text
    assert language.exact_match(tiny, ["the"], [written], most=3, stop=()) == 1
    with pytest.raises(ValueError, match="label 3 of 1 choices"):
        language.Question("?", ("a",), 3)
    with pytest.raises(ValueError, match="needs questions, found none"):
        language.multiple_choice(tiny, [])


# ------------------------------------------------------------------ generation


def test_a_batch_of_ragged_prompts_writes_what_each_writes_alone(tiny):
    prompts = [[5, 6, 7, 8, 9, 30, 31], [40], [50, 51, 52]]
    together = decoder.generate(tiny, prompts, most=12)
    for prompt, reply in zip(prompts, together, strict=True):
        ids = list(prompt)
        for _ in range(12):  # without a cache: all logits anew for every token
            ids.append(int(all_logits(tiny, ids)[-1].argmax()))
            if ids[-1] in tiny.tokenizer.ends:
                break
        assert reply.tokens == ids[len(prompt) :]
        assert reply.reason == ("end" if ids[-1] in tiny.tokenizer.ends else "length")


def test_text_comes_as_it_is_written_and_stops_before_a_stop_string(tiny):
    shown = []
    whole = decoder.generate(tiny, ["the man"], most=20)[0]
    reply = decoder.generate(tiny, ["the man"], most=20, on_text=lambda i, t: shown.append(t))[0]
    assert reply == whole
    assert "".join(shown) == whole.text
    stop = whole.text[3:6]
    cut = decoder.generate(tiny, ["the man"], most=20, stop=[stop])[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.reason == "stop"


def test_nothing_is_shown_that_may_become_a_stop_string(tiny):
    text = _Text(tiny, ["in there"])
    ids = tiny.tokenizer.encode("and in the")
    assert text.add(ids, ()) == "and "
    assert text.add(tiny.tokenizer.encode("re"), ()) == ""
    assert (text.reason, text.text()) == ("stop", "and ")


def test_sampling_is_what_its_definition_says():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    none = jnp.zeros((1, 0), bool)

    def shares(temperature=1.0, top_k=0, top_p=1.0, penalty=1.0, seen=none):
        how = (jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), penalty)
        keys = jax.random.split(jax.random.key(0), 4000)
        draw = lambda key: choose(logits, seen, key, how, top_k > 0 or top_p < 1)[0]
        return np.bincount(jax.vmap(draw)(keys), minlength=4) / 4000

    np.testing.assert_allclose(shares(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.79), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.1), [1, 0, 0, 0], atol=0)
    cold = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), cold / cold.sum(), atol=0.03)
    greedy = (None, jnp.int32(0), jnp.float32(1), jnp.float32(4.0))
    seen = jnp.array([[True, False, False, False]])
    assert int(choose(logits, seen, jax.random.key(0), greedy, False)[0]) == 1
    with pytest.raises(ValueError, match=r"temperature is -1, expected 0.*top_p is 2"):
        decoder.Sampling(temperature=-1, top_p=2)


def test_a_conversation_at_the_command_line(capsys):
    from jaxmerge.cli import generate

    where = str(GOLDEN / "gguf_tiny" / "tiny_llama.gguf")
    generate.run(where, ["the man", "and then"], chat=True, most=4, json=True)
    content = json.loads(capsys.readouterr().out)
    assert [row["prompt"] for row in content] == ["the man", "and then"]
    assert all(1 <= len(row["tokens"]) <= 4 for row in content)
    with pytest.raises(UserError, match="--system is for conversations"):
        generate.run(where, ["the"], system="x")


def test_prompts_that_cannot_be_read(tiny):
    with pytest.raises(ValueError, match="prompt 0 has 64 tokens, the model's context 64"):
        decoder.generate(tiny, [[3] * 64])
    with pytest.raises(ValueError, match="prompt 1 is empty; prompt 2 has ids outside of 0 to 274"):
        decoder.generate(tiny, [[3], [], [275]])
    with pytest.raises(ValueError, match="found none or a single text"):
        decoder.generate(tiny, "the man")
    bare = decoder.Model(tiny.config, tiny.params)
    with pytest.raises(ValueError, match="texts need a tokenizer"):
        decoder.generate(bare, ["the man"])
    with pytest.raises(ValueError, match="has no chat template"):
        decoder.Tokenizer(tiny.tokenizer.backend, (), None, 0).chat([])
    assert len(decoder.generate(tiny, [[3] * 60], most=30)[0].tokens) <= 4


# ------------------------------------------------------------------ fine-tuning


def test_documents_are_packed_and_answers_alone_are_learnt(tiny):
    tokenizer = tiny.tokenizer
    packed = data.texts(tokenizer, ["the man", "and in there"], length=6)
    first = [*tokenizer.encode("the man"), 2]
    assert packed.tokens.reshape(-1)[: len(first)].tolist() == first
    assert packed.targets.reshape(-1)[: len(first)].tolist() == [*first[1:], -1]
    talk = [{"role": "user", "content": "in"}, {"role": "assistant", "content": "the man"}]
    packed = data.instructions(tokenizer, [talk], length=40)
    learnt = packed.targets[packed.targets >= 0].tolist()
    assert tokenizer.decode(learnt, skip_special=False) == "the man<|im_end|>\n"
    with pytest.raises(ValueError, match="nothing to learn: found no document"):
        data.texts(tokenizer, [], 8)
    with pytest.raises(ValueError, match="1 documents without a target"):
        data.instructions(tokenizer, [talk[:1]], 40)
    with pytest.raises(TypeError, match="found a single text, expected a sequence"):
        data.texts(tokenizer, "the man", 8)
    with pytest.raises(TypeError, match="found 3, expected a text"):
        data.texts(tokenizer, ["the", 3], 8)
    for wrong in (talk, [talk, "the man"], [[{"role": "user"}]]):
        with pytest.raises(
            TypeError, match=r"conversation \d: found .*, expected a list of messages"
        ):
            data.instructions(tokenizer, wrong, 40)


@pytest.fixture(scope="module")
def rows():
    documents = [([i, i + 1, i + 2, i + 3], [True] * 4) for i in range(4, 28)]
    return data.windows(documents, 8)


@pytest.fixture(scope="module")
def small():
    config = json.loads((PEFT / "config.json").read_text())
    config = decoder.Config.from_hf(config)
    return decoder.Model(config, decoder.init(config, jax.random.key(1)))


def test_all_weights_learn_and_a_killed_run_goes_on(small, rows, tmp_path):
    options = {"epochs": 3, "batch": 4, "chunk": 2, "optimiser": optimisers.adam(rate=2e-2)}
    compiled = training._train._cache_size()
    whole = finetune(small, rows, **options)
    assert training._train._cache_size() == compiled + 1
    assert whole.losses[-3:].mean() < whole.losses[:3].mean() - 0.3
    assert len(whole.losses) == 9

    def killed(done, total, loss):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(small, rows, folder=tmp_path, on_chunk=killed, **options)
    again = finetune(small, rows, folder=tmp_path, **options)
    np.testing.assert_array_equal(again.losses, whole.losses)
    for name, leaf in whole.model.params.items():
        np.testing.assert_array_equal(again.model.params[name], leaf)
    with pytest.raises(ValueError, match="of a run with other settings"):
        finetune(small, rows, folder=tmp_path, **{**options, "batch": 2})


def test_weights_and_rows_cut_over_devices_learn_the_same(small, rows):
    options = {"batch": 4, "chunk": 3, "optimiser": optimisers.adam(rate=3e-3)}
    whole = finetune(small, rows, **options)
    name = "block_00/mlp/up/kernel"
    for mesh, parts in ((jm.mesh(params=4), 4), (jm.mesh(models=2, params=2), 2)):
        cut = decoder.Model(small.config, jm.shard(dict(small.params), mesh))
        trained_model = finetune(cut, rows, **options)
        np.testing.assert_allclose(trained_model.losses, whole.losses, rtol=1e-4)
        leaf = trained_model.params[name]
        assert len(leaf.sharding.device_set) == 4
        assert leaf.addressable_shards[0].data.size == leaf.size // parts
        placed = _placing(cut.params, 4)(np.zeros((3, 4), np.int32))
        assert placed.addressable_shards[0].data.shape == (3, 1)
        assert _placing(cut.params, 3)(np.zeros((3, 3))).sharding.is_fully_replicated


def test_the_form_of_the_attention_does_not_change_what_is_learnt(small, rows):
    options = {"batch": 4, "optimiser": optimisers.sgd(rate=0.1)}
    plain, fused = (finetune(small, rows, attention=x, **options) for x in ("plain", "fused"))
    np.testing.assert_allclose(fused.losses, plain.losses, atol=1e-5)
    with pytest.raises(ValueError, match="attention"):
        finetune(small, rows, attention="flash", **options)


def test_parts_of_a_batch_and_padding_do_not_change_the_gradient(small, rows):
    options = {"batch": 4, "optimiser": optimisers.sgd(rate=0.1)}
    one, two = (finetune(small, rows, accumulate=n, **options) for n in (1, 2))
    for name, leaf in one.model.params.items():
        np.testing.assert_allclose(two.model.params[name], leaf, atol=1e-5)


def test_data_that_cannot_be_trained_on(small, rows):
    with pytest.raises(ValueError, match="found 12 rows, a batch has 20"):
        finetune(small, rows, batch=20)
    masked = rows._replace(targets=np.full_like(rows.targets, -1))
    with pytest.raises(ValueError, match="every target is masked"):
        finetune(small, masked, batch=2)
    strange = rows._replace(tokens=rows.tokens + 20)
    with pytest.raises(ValueError, match="the model has 0 to 39: they are of another tokenizer"):
        finetune(small, strange, batch=2)
    strange = rows._replace(targets=rows.targets + 20)
    with pytest.raises(ValueError, match="the model has 0 to 39: they are of another tokenizer"):
        finetune(small, strange, batch=2)
    with pytest.raises(ValueError, match=r"epochs is 0, batch is -1, .*expected 1 or more"):
        finetune(small, rows, epochs=0, batch=-1, accumulate=0, chunk=0)


KINDS = {
    "plain": {"rank": 3, "alpha": 8.0},
    "rslora": {"rank": 4, "alpha": 8.0, "rslora": True},
    "dora and patterns": {
        "rank": 2, "alpha": 5.0, "dora": True, "ranks": [("block_01/attn/query", 4)],
        "alphas": [("mlp/down", 10.0)],
    },
}  # fmt: skip


def trained(model, rows, kind):
    """A model with an adapter of a kind, and how that is written."""
    settings = {"target": "attn/(query|value)|mlp/down", "use": "shared", **KINDS[kind]}
    trained_model = finetune(
        model, rows, batch=4, methods=[lora(**settings)], optimiser=optimisers.adam(rate=1e-2)
    )
    return trained_model, {k: settings[k] for k in ("alpha", "alphas", "rslora") if k in settings}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_come_back_and_equal_the_merged_weights(small, rows, tmp_path, kind):
    trained_model, settings = trained(small, rows, kind)
    changed = [
        n for n, x in small.params.items() if not np.array_equal(x, trained_model.model.params[n])
    ]
    assert len(changed) == 6
    assert all("query" in n or "value" in n or "down" in n for n in changed)
    save_adapter(small.config, trained_model.params, tmp_path / "lora", **settings)
    decoder.save(small, tmp_path / "base")
    merged = decoder.load(f"{tmp_path / 'base'}+{tmp_path / 'lora'}")
    for name, leaf in trained_model.model.params.items():
        np.testing.assert_allclose(merged.params[name], leaf, atol=2e-6, err_msg=name)
    leaves, again = load_adapter(small.config, tmp_path / "lora")
    assert set(leaves) == {n for n in trained_model.params if "/lora_" in n}
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, trained_model.params[name])
    assert lora(**again).build().wrap is not None
    wide = small.config.edit(hidden_size=32, head_dim=4)
    with pytest.raises(UserError, match="does not fit this decoder"):
        load_adapter(wide, tmp_path / "lora")


CASES = sorted(folder.name for folder in PEFT.iterdir() if folder.is_dir())


@pytest.mark.parametrize("case", CASES)
def test_a_base_with_an_adapter_of_peft_gives_its_logits(case, tmp_path):
    """Every kind of adapter, put on its base by the reference BASE+ADAPTER."""
    for name, file in (("model.safetensors", "base.safetensors"), ("config.json", "config.json")):
        (tmp_path / name).write_bytes((PEFT / file).read_bytes())
    model = decoder.load(f"{tmp_path}+{PEFT / case}", dtype="float32")
    inputs, expected = np.load(PEFT / "inputs.npz"), load_file(PEFT / case / "expected.safetensors")
    logits = decoder.logits(model.config, model.params, inputs["ids"])
    assert np.abs(logits - inputs["base_logits"]).max() > 0.01
    np.testing.assert_allclose(logits, expected["expected.logits"], atol=5e-5)


LOADED = ["plain", "rslora", "dora", "patterns", "fan_exclude", "rslora_patterns_dora"]


@pytest.mark.parametrize("case", LOADED)
def test_adapters_of_peft_give_its_logits(case):
    from jaxmerge.continual.wraps.lora import changed
    from jaxmerge.io.adapters import Adapter

    config = decoder.Config.from_hf(json.loads((PEFT / "config.json").read_text()))
    base = PEFT / "base.safetensors"
    if not base.exists():
        pytest.skip("no base of the adapters")
    from jaxmerge.io.key_tables import absorb
    from jaxmerge.models.decoder.params import hf_table

    params = absorb(hf_table(config), load_file(base), decoder.param_shapes(config))
    leaves, settings = load_adapter(config, PEFT / case)
    scales = {m.path: m.scale for m in Adapter(PEFT / case).modules.values()}
    from jaxmerge.models.decoder.adapters import modules_of

    modules, whole = modules_of(config), {**params, **leaves}
    for name in [n.removesuffix("/lora_a") for n in leaves if n.endswith("/lora_a")]:
        params[name] = changed(whole, name, 0, scales[modules[name]])
    inputs, expected = np.load(PEFT / "inputs.npz"), load_file(PEFT / case / "expected.safetensors")
    logits = decoder.logits(config, params, inputs["ids"])
    np.testing.assert_allclose(logits, expected["expected.logits"], atol=5e-5)
    assert settings["rank"] >= 1


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_adapter_gives_its_logits_in_peft(small, rows, tmp_path, kind):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    trained_model, settings = trained(small, rows, kind)
    save_adapter(small.config, trained_model.params, tmp_path / "lora", **settings)
    decoder.save(small, tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = np.arange(4, 20).reshape(2, 8)
    with torch.no_grad():
        before = base(torch.tensor(ids)).logits.numpy()
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
        expected = theirs(torch.tensor(ids)).logits.numpy()
    logits = decoder.logits(trained_model.model.config, trained_model.model.params, ids)
    assert np.abs(expected - before).max() > 0.05  # it has learnt something
    np.testing.assert_allclose(logits, expected, atol=1e-4)


# ------------------------------------------------------------------ the harness


def test_tasks_are_names_or_files(tmp_path):
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: data.jsonl}}\n"
    )
    tasks = tasks_of(["arc_easy", str(tmp_path / "mine.yaml")])
    assert tasks[0] == "arc_easy"
    files = tasks[1]["dataset_kwargs"]["data_files"]
    assert files == {"test": str((tmp_path / "data.jsonl").resolve())}
    with pytest.raises(UserError, match=r"no task 'none.yaml'"):
        tasks_of(["none.yaml"])
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="no YAML of plain values"):
        tasks_of([str(tmp_path / "bad.yaml")])
    (tmp_path / "bad.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="has no entry 'task'"):
        tasks_of([str(tmp_path / "bad.yaml")])
    (tmp_path / "data.jsonl").write_text("")
    with pytest.raises(UserError, match=r"data.jsonl is empty; a task needs at least one example"):
        tasks_of([str(tmp_path / "mine.yaml")])


@pytest.mark.parity
def test_the_harness_says_of_us_what_it_says_of_transformers(tiny, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    lm_eval = pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    from lm_eval.models.huggingface import HFLM

    from jaxmerge.evaluation.lm_eval import evaluate

    rows = [
        {"q": "the man and", "choices": ["is", "in there", "on the"], "label": i % 3}
        for i in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    head = (
        "dataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
    )
    (tmp_path / "mc.yaml").write_text(
        f"task: mc\n{head}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: label\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    (tmp_path / "roll.yaml").write_text(
        f"task: roll\n{head}output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{q}}'\nmetric_list: [{metric: byte_perplexity}]\n"
    )
    files = [str(tmp_path / name) for name in ("mc.yaml", "roll.yaml")]
    decoder.save(tiny, tmp_path / "model", dtype="float32")
    ours = evaluate(tiny, files)
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32"),
        tasks=tasks_of(files), bootstrap_iters=10, log_samples=False,
    )["results"]  # fmt: skip
    for task, name in (("mc", "acc"), ("mc", "acc_norm"), ("roll", "byte_perplexity")):
        assert ours[task][name] == pytest.approx(theirs[task][f"{name},none"], rel=1e-5)
    with pytest.raises(UserError, match=r"no task 'arc_easyy' \(did you mean arc_easy"):
        evaluate(tiny, ["arc_easyy", files[0]])
    (tmp_path / "mc.yaml").write_text((tmp_path / "mc.yaml").read_text().replace("{{q}}", "{{p}}"))
    with pytest.raises(UserError, match=r"could not run .*mc.yaml \(UndefinedError: 'p' is undef"):
        evaluate(tiny, files[:1])
