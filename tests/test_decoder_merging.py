"""Statistics, data-driven merges and files of decoders: as for any other model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmerge as jm
from jaxmerge import solvers
from jaxmerge.io.sources import open_source
from jaxmerge.models import decoder
from jaxmerge.statistics import fisher, gram
from jaxmerge.statistics.capture import dense_inputs

SIZES = {
    "model_type": "llama", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 32, "initializer_range": 0.2,
}  # fmt: skip
CONFIG = decoder.Config.from_hf(SIZES)
BATCHES = [np.random.default_rng(s).integers(0, 24, (4, 6)) for s in range(3)]


def apply(params, tokens, scan=False):
    """The logits behind the last token, [batch, vocab]."""
    return decoder.logits(CONFIG, params, tokens, compute=decoder.Compute(scan=scan))[:, -1]


@pytest.fixture(scope="module")
def models():
    base, *others = (decoder.init(CONFIG, jax.random.key(s)) for s in range(3))
    near = [{n: 0.9 * base[n] + 0.1 * m[n] for n in base} for m in others]
    return base, near


def kernels(params):
    return {n for n, x in params.items() if n.endswith("kernel")}


def test_kernels_inside_a_scan_meet_the_same_inputs(models):
    base, _ = models
    tokens = jnp.asarray(BATCHES[0])
    out, plain = dense_inputs(apply, base, tokens)
    scanned_out, scanned = dense_inputs(lambda p, x: apply(p, x, scan=True), base, tokens)
    assert set(plain) == set(scanned) == kernels(base)
    np.testing.assert_allclose(scanned_out, out, atol=1e-5)
    for name, actual in plain.items():
        assert actual.axis == scanned[name].axis == 0
        np.testing.assert_allclose(scanned[name].x, actual.x, atol=1e-5)


def test_a_scan_in_reverse_with_outputs_is_followed():
    params = {f"w{i}": jnp.float32(np.random.default_rng(i).normal(size=(3, 3))) for i in range(3)}

    def run(params, x):
        stacked = jnp.stack([params[f"w{i}"] for i in range(3)])
        step = lambda x, w: (jnp.tanh(x @ w), x.sum())
        return jax.lax.scan(step, x, stacked, reverse=True)

    x = jnp.ones((2, 3))
    (out, sums), actual = dense_inputs(run, params, x)
    expected, other = run(params, x)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    np.testing.assert_allclose(sums, other, rtol=1e-6)
    np.testing.assert_allclose(actual["w2"].x, x)
    np.testing.assert_allclose(actual["w1"].x, jnp.tanh(x @ params["w2"]), rtol=1e-6)


def test_regmean_and_fisher_merge_decoders(models):
    base, others = models
    g = [gram(apply, m, BATCHES[:1]) for m in others]
    f = [fisher(apply, m, [(BATCHES[0], None)]) for m in others]
    assert set(g[0].values) == kernels(base)
    plain = jm.regmean(off_diagonal=1.0, ridge=0.01)
    merged = jm.merge(plain, base, others, extras=[{"gram": x.values} for x in g])
    name = "block_00/mlp/gate/kernel"
    inputs = [np.float64(x.values[name]) for x in g]
    taus = [np.float64(m[name] - base[name]) for m in others]
    rows = sum(x @ tau for x, tau in zip(inputs, taus, strict=True))
    # the regression is solved: G W = sum G_t W_t, up to the ridge
    left = sum(inputs) @ (np.float64(merged[name]) - np.float64(base[name]))
    assert np.abs(left - rows).max() < 0.05 * np.abs(rows).max()
    merged = jm.merge(jm.fisher_merging(), base, others, extras=[{"fisher": x.values} for x in f])
    weights = [np.float64(x.values[name]) for x in f]
    total = sum(w * np.float64(m[name]) for w, m in zip(weights, others, strict=True))
    sure = sum(weights) > 1e-6
    np.testing.assert_allclose(merged[name][sure], (total / sum(weights))[sure], atol=1e-4)


def test_solvers_and_searches_merge_decoders(models):
    base, others = models
    batches = [jnp.asarray(b) for b in BATCHES]
    shape = {n: x.shape for n, x in base.items()}
    merged = solvers.regmean_plus(apply, base, others, [BATCHES[:1], BATCHES[1:2]])
    assert {n: x.shape for n, x in merged.items()} == shape
    same = ("token", "block_00/norm1/scale")  # so the first kernels meet what RegMean's meet
    alike = [{**m, **{n: base[n] for n in same}} for m in others]
    merged = solvers.regmean_plus(apply, base, alike, [BATCHES[:1], BATCHES[1:2]])
    grams = [gram(apply, m, [b]) for m, b in zip(alike, BATCHES, strict=False)]
    plain = jm.merge(jm.regmean(), base, alike, extras=[{"gram": g.values} for g in grams])
    apart = {n: float(jnp.abs(merged[n] - plain[n]).max()) for n in kernels(base)}
    assert apart["block_00/attn/query/kernel"] < 1e-4 < apart["block_01/attn/query/kernel"]

    entropy = solvers.entropy(apply)
    ada = solvers.adamerging(entropy, base, others, granularity="task")
    _, history = solvers.solve(ada, batches * 4)
    assert float(history[9]["loss"]) < float(history[0]["loss"])  # the same batch

    def loss(params, batch):
        tokens, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, tokens), labels).mean()

    labelled = [(b, b[:, 0]) for b in batches]
    walked, _ = solvers.solve(solvers.frank_wolfe(loss, others, start=base), labelled)
    mean = lambda params: np.mean([loss(params, batch) for batch in labelled])
    assert mean(walked) < min(map(mean, (base, *others)))
    localizer = solvers.localize(loss, base, others[0], density=0.1)
    state = localizer.init()
    state, _ = localizer.step(state, labelled[0])
    masks = solvers.mask(state, 0.1)
    share = sum(float(x.sum()) for x in masks.values()) / sum(x.size for x in masks.values())
    assert abs(share - 0.1) < 0.01

    def score(params):  # a perplexity as the objective
        where = decoder.positions_of(jnp.ones((4, 5), jnp.int32))
        tokens, targets = batches[0][:, :-1], batches[0][:, 1:]
        return decoder.token_scores(CONFIG, params, tokens, targets, where)[0].mean()

    build = lambda c: {n: base[n] + c[0] * (others[0][n] - base[n]) for n in base}
    best = solvers.grid(build, score, [[0.0, 0.5, 1.0]], at_once=3)
    scores = [float(score(build(jnp.array([c])))) for c in (0.0, 0.5, 1.0)]
    assert best.coefficients.tolist() == [[0.0, 0.5, 1.0][int(np.argmax(scores))]]


@pytest.fixture(scope="module")
def merged(tmp_path_factory, models):
    """Two GGUF files merged by TIES at the command line: a folder, and a GGUF file beside it."""
    pytest.importorskip("gguf")
    from jaxmerge.cli import convert, merge
    from jaxmerge.io.gguf.writer import write

    tmp_path, (base, others) = tmp_path_factory.mktemp("merged"), models
    for name, params in zip(("base", "a", "b"), (base, *others), strict=True):
        decoder.save((CONFIG, params), tmp_path / name)
        source = open_source(tmp_path / name)
        write(source, source.config(), None, tmp_path / f"{name}.gguf", "f32")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: {ties: {density: 0.2}}\nbase: base.gguf\nmodels: [a.gguf, b.gguf]\n")
    merge.run(recipe, tmp_path / "merged", quiet=True)
    convert.run(str(tmp_path / "merged"), tmp_path / "merged.gguf", dtype="f32", quiet=True)
    return tmp_path


def test_two_gguf_files_merge_and_come_back(merged, models):
    base, others = models
    loaded = decoder.load(merged / "merged")
    expected = jm.merge(jm.ties(density=0.2), base, others)
    for name, leaf in expected.items():
        np.testing.assert_allclose(loaded.params[name], leaf, atol=1e-6, err_msg=name)
    again = decoder.load(merged / "merged.gguf")
    tokens = BATCHES[0]
    np.testing.assert_allclose(
        decoder.logits(again.config, again.params, tokens),
        decoder.logits(loaded.config, loaded.params, tokens), atol=1e-5,
    )  # fmt: skip
    config = json.loads((merged / "merged" / "config.json").read_text())
    assert config["model_type"] == "llama"


@pytest.mark.parity
def test_transformers_reads_what_was_merged_of_gguf_files(merged, models):
    torch = pytest.importorskip("torch")
    auto = pytest.importorskip("transformers").AutoModelForCausalLM
    base, others = models
    ours = decoder.logits(CONFIG, jm.merge(jm.ties(density=0.2), base, others), BATCHES[0])
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    for name, more in (("merged", {}), ("", {"gguf_file": "merged.gguf"})):
        model = auto.from_pretrained(str(merged / name), **more, **options)
        with torch.no_grad():
            theirs = model(torch.tensor(BATCHES[0])).logits.numpy()
        np.testing.assert_allclose(theirs, ours, atol=1e-5, err_msg=name)
