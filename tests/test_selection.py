"""Order statistics by counting equal those by sorting: ties, zeros, float64, bad samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmerge as jm
from jaxmerge.numerics import brackets, host_order_statistics, host_rows, order_statistics
from jaxmerge.numerics.host_rows import Row
from jaxmerge.numerics.host_select import smallest
from jaxmerge.numerics.measures import (
    keep_count,
    largest,
    ranked_magnitude,
    ranked_magnitudes,
)


def sorted_out(leaves, ranks):
    every = np.sort(np.abs(np.concatenate([x.ravel() for x in leaves])))[::-1]
    return every[np.asarray(ranks) - 1]


def run(measure, leaves, host):
    """What the driver does, for a measure over a whole row."""
    summary = measure.init()
    for turn in range(measure.passes):
        observe = measure.host if host else measure.observe
        total = None
        for x in leaves:
            part = observe(Row(x) if host else x, summary, turn)
            join = lambda a, b, turn=turn: measure.join(a, b, turn)
            total = part if total is None else jax.tree.map(join, total, part)
        summary = measure.refine(summary, jax.tree.map(wide, total), turn)
        if measure.done(summary):
            break
    assert summary["rank"] is None
    return np.asarray(order_statistics.bits_to_magnitude(jnp.asarray(summary["value"])))


def wide(x):
    return np.asarray(x, np.int64) if hasattr(x, "astype") else x


def leaves_of(kind, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(300, 70), (1,), (4096,), (3, 5, 7)]
    draw = {
        "normal": lambda s: rng.normal(size=s) * 0.01,
        "ties": lambda s: rng.integers(-3, 4, size=s) * 0.5,
        "mostly zero": lambda s: rng.normal(size=s) * (rng.random(s) < 0.02),
        "huge and tiny": lambda s: rng.normal(size=s) * 10.0 ** rng.integers(-30, 30, size=s),
        "nearly equal": lambda s: 1 + rng.integers(0, 9, size=s) * 2.0**-23,
    }[kind]
    return [draw(s).astype(dtype) for s in shapes]


KINDS = ["normal", "ties", "mostly zero", "huge and tiny", "nearly equal"]
RANKS = [1, 2, 100, 5000, 25201, 25202]


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_row(kind, host):
    leaves = leaves_of(kind, np.float32)
    actual = run(ranked_magnitude(lambda n: RANKS), leaves, host)
    np.testing.assert_array_equal(actual, sorted_out(leaves, RANKS))


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "equal in float32"])
def test_a_whole_row_in_float64(x64, kind, host):
    if kind == "equal in float32":
        leaves = [1 + np.random.default_rng(1).integers(0, 99, 25202) * 2.0**-50]
    else:
        leaves = leaves_of(kind, np.float64)
    actual = run(ranked_magnitude(lambda n: RANKS), leaves, host)
    np.testing.assert_array_equal(actual, sorted_out(leaves, RANKS))


@pytest.mark.parametrize("kind", KINDS)
def test_one_leaf(kind):
    leaf = leaves_of(kind, np.float32)[0]
    ranks = np.array([[1, 2, 3], [400, 20999, 21000]])
    measure = ranked_magnitude(lambda n: ranks, "leaf")
    part = measure.refine(measure.init(), measure.host(Row(leaf), measure.init(), 0), 0)
    expected = sorted_out([leaf], ranks)
    np.testing.assert_array_equal(
        order_statistics.bits_to_magnitude(jnp.asarray(part["value"])), expected
    )
    compiled = jax.jit(ranked_magnitudes, static_argnums=())(leaf, ranks)
    np.testing.assert_array_equal(compiled, expected)


def test_a_sample_that_misleads_is_found_out():
    leaf = np.ones(67 * 5000, np.float32)
    leaf[:: host_order_statistics.STRIDE] = 100.0  # all that is sampled
    for rank in (5000, 5001, 300000):
        actual = run(ranked_magnitude(lambda n, r=rank: r), [leaf], host=True)
        assert actual == (100.0 if rank <= 5000 else 1.0)


def odd_leaf(kind: str, size: int, rng) -> np.ndarray:
    """Leaves on which a bracket is wide, empty, of one value, or guessed wrongly."""
    if kind == "frozen":
        return np.zeros(size, np.float32)
    if kind == "hardly trained":
        return np.where(rng.random(size) < 0.001, rng.standard_normal(size), 0).astype(np.float32)
    if kind == "few values":
        return (rng.integers(-3, 4, size) * 2.0**-6).astype(np.float32)
    if kind == "misleading":
        leaf = rng.integers(1, 3, size).astype(np.float32)
        leaf[:: host_order_statistics.STRIDE] = 100.0
        return leaf
    return rng.standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("most", [64, 1 << 21])
@pytest.mark.parametrize("kind", ["frozen", "hardly trained", "few values", "misleading", "normal"])
def test_the_value_and_the_place_of_a_rank(monkeypatch, kind, most):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(host_order_statistics, "SMALL", 128)
    for name, small in (("BLOCK", 512), ("PROCESSORS", 3)):
        monkeypatch.setattr(host_rows, name, small)
    monkeypatch.setattr(host_order_statistics.gather, "__defaults__", (most,))
    leaf = odd_leaf(kind, 20_011, rng)
    ranks = np.array([0, 1, 2, 20, 150, 299, 300, 9000, 20_010, 20_011])
    bits, places = host_order_statistics.in_one_leaf(Row(leaf), ranks, exact=True)
    order = np.argsort(-np.abs(leaf), kind="stable")  # equal ones in their order
    for rank, value, place in zip(ranks[1:], bits[1:].view(np.float32), places[1:], strict=True):
        assert value == np.abs(leaf)[order[rank - 1]]
        equal = np.flatnonzero(np.abs(leaf) == value)
        last = order[rank - 1]
        assert place == ((1 << 32) - 1 if last == equal[-1] else last)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=60),
    st.floats(0.01, 1),
)
def test_any_leaf_and_density(values, density):
    x = np.array(values, np.float32)
    rank = max(1, keep_count(density, x.size))
    expected = sorted_out([x], rank)
    measure = ranked_magnitude(lambda n: max(1, keep_count(density, n)))
    for host in (True, False):
        assert run(measure, [x], host) == expected


LIKE = {  # leaves whose magnitudes share digits, or are equal, in every way that counts
    "normal": lambda rng, n: rng.standard_normal(n),
    "few values": lambda rng, n: rng.integers(-2, 3, n) * 0.5,
    "one value": lambda rng, n: np.full(n, -3.0),
    "one prefix": lambda rng, n: 1 + rng.integers(0, 4, n) * 2.0**-10,
    "infinite": lambda rng, n: rng.choice([np.inf, -np.inf, 1.0, 0.0], n),
    "huge and tiny": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.integers(-7, 5, n),
}


@jax.jit
def ranked_and_masked(x, ranks):
    return ranked_magnitudes(x, ranks), largest(x, ranks[0], exact=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_compiled_ranks_are_those_of_a_sort(dtype):
    @settings(max_examples=15, deadline=None)
    @given(
        st.sampled_from(sorted(LIKE)),
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(1, 97), min_size=3, max_size=3),
    )
    def check(kind, seed, ranks):
        x = jnp.asarray(LIKE[kind](np.random.default_rng(seed), 97), dtype)
        ranks = np.array([*ranks, ranks[0]])  # two that are equal, whatever was drawn
        actual, mask = ranked_and_masked(x, ranks)
        order = np.argsort(-np.abs(np.asarray(x, np.float64)), kind="stable")
        assert actual.dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(actual), np.abs(np.asarray(x))[order[ranks - 1]])
        # of equal ones the first are in
        np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(order[: ranks[0]]))

    with jax.enable_x64(dtype == "float64"):
        check()


@pytest.mark.parametrize("bits", [32, 64])
def test_histograms_of_ranks_that_share_digits(bits):
    """Against counts in numpy, of prefixes that are equal, alone and in no entry."""
    with jax.enable_x64(bits == 64):
        rng = np.random.default_rng(0)
        x = (1 + rng.integers(0, 6, (13, 7)) * 2.0**-9).astype(f"float{bits}")
        word = np.abs(x).view(f"uint{bits}").ravel()
        value = np.array([word[0], word[5], word[0], word.max(), 0, word[5]], word.dtype)
        for turn in range(1, bits // 16):
            shift, mask = word.dtype.type(bits - 16 * (turn + 1)), word.dtype.type(0xFFFF)
            above = word.dtype.type(shift + 16)
            actual = order_statistics.radix_count(jnp.asarray(x), jnp.asarray(value), turn)
            for v, row in zip(value, np.asarray(actual), strict=True):
                inside = word[word >> above == v >> above]
                digits = ((inside >> shift) & mask).astype(int)
                np.testing.assert_array_equal(row, np.bincount(digits, minlength=1 << 16))


def test_a_pass_scatters_once_for_all_ranks():
    program = jax.make_jaxpr(lambda x, v: order_statistics.radix_count(x, v, 1))(
        jnp.ones((9, 11)), jnp.zeros(5, jnp.uint32)
    )
    assert str(program).count("scatter-add[") == 1


def test_counts_are_exact():
    assert keep_count(0.2, 10) == 2
    assert keep_count(1.0, 7) == 7
    assert keep_count([0.5, 0.1], 9).tolist() == [4, 0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_row_is_the_difference_in_float32(dtype):
    draw = np.random.default_rng(0)
    model, base = (jnp.asarray(draw.normal(size=(300, 500)), dtype) for _ in range(2))
    want = np.abs(np.asarray(model, np.float32) - np.asarray(base, np.float32)).ravel()
    actual = np.concatenate([b.copy() for b in Row(model, base).bits()]).view(np.float32)
    np.testing.assert_array_equal(actual, want)
    sampled = np.concatenate([b.copy() for b in Row(model, base).bits(7)]).view(np.float32)
    np.testing.assert_array_equal(sampled, want[::7])


def test_many_entries_inside_a_bracket_become_counts():
    tallies = [brackets.Tally([np.full(1 << 19, v, np.uint32)]) for v in (3, 5, 5, 7)]
    whole = tallies[0]
    for other in tallies[1:]:
        whole = whole.join(other)
    assert whole.stored <= 1 << 20
    counts = whole.histogram()
    assert {int(v): int(counts[v]) for v in np.flatnonzero(counts)} == {
        3: 1 << 19, 5: 1 << 20, 7: 1 << 19
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_leaf_is_read_in_blocks_by_several_threads(kind):
    draw = np.random.default_rng(3)
    leaf = leaves_of(kind, np.float32)[0]
    leaf = draw.permutation(np.tile(leaf.ravel(), 30)).reshape(3000, 210)
    assert leaf.size > host_order_statistics.SMALL
    ranks = np.array([1, 1000, 126000, 315000, leaf.size])
    actual = host_order_statistics.in_one_leaf(Row(leaf), ranks)[0].view(np.float32)
    np.testing.assert_array_equal(actual, sorted_out([leaf], ranks))


def test_a_large_leaf_in_float64(x64):
    leaf = 1 + np.random.default_rng(1).integers(0, 10**6, 400000) * 2.0**-50
    ranks = np.array([7, 80000, 399999])
    actual = host_order_statistics.in_one_leaf(Row(leaf), ranks)[0].view(np.float64)
    np.testing.assert_array_equal(actual, sorted_out([leaf], ranks))


def test_a_large_leaf_whose_sample_misleads():
    leaf = np.ones(67 * 5000, np.float32)
    leaf[:: host_order_statistics.STRIDE // 4] = 100.0
    high = int((leaf == 100).sum())
    for rank in (high, high + 1):
        actual = host_order_statistics.in_one_leaf(Row(leaf), np.array(rank))[0].view(np.float32)
        assert actual == (100.0 if rank == high else 1.0)


@pytest.mark.parametrize("zero", [False, True])
def test_short_rows_are_counted_together(monkeypatch, zero):
    monkeypatch.setattr(host_rows, "SHORT", 40)
    monkeypatch.setattr(host_rows, "BLOCK", 64)
    rng = np.random.default_rng(0)
    kinds = ("float32", "bfloat16", "float16")
    leaves = [
        [jnp.asarray(rng.normal(size=n), d) for d in rng.choice(kinds, 2)]
        for n in (1, 39, 40, 41, 7, 300, 0, 40, 40, 5)
    ]
    if zero:
        leaves[0][0] = jnp.full(1, jnp.nan)
    rows = [Row(*pair, zero=zero) for pair in leaves]
    short = host_rows.Gathered()
    joined = [r for row in rows for r in short.add(row)] + list(short.rest())
    assert [r.size for r in joined] == [80, 41, 300, 87, 5]
    entries = lambda rows: np.sort(np.concatenate([b.copy() for r in rows for b in r.bits()]))
    np.testing.assert_array_equal(entries(joined), entries(rows))


def test_a_merge_counts_short_leaves_together(monkeypatch):
    rng = np.random.default_rng(0)
    sizes = [5] * 20 + [90] * 10 + [20_000]
    draw = lambda: {f"l{i}": rng.integers(-9, 9, n) / np.float32(8) for i, n in enumerate(sizes)}
    base, *models = (draw() for _ in range(3))
    methods = [jm.ties(0.3), jm.continual_ties(0.3)]
    counted = []
    sample = host_order_statistics.sample
    monkeypatch.setattr(
        host_order_statistics, "sample", lambda row: counted.append(row.size) or sample(row)
    )
    ours = [jm.merge(m, base, models) for m in methods]
    assert counted == [sum(sizes)] * 6  # two models, and for two of them the cells too
    monkeypatch.setattr(host_rows, "SHORT", -1)  # every leaf on its own
    for method, merged in zip(methods, ours, strict=True):
        jax.tree.map(np.testing.assert_array_equal, merged, jm.merge(method, base, models))


@pytest.mark.parametrize("word", [np.uint32, np.uint64])
@pytest.mark.parametrize("many", [1, 7, 600, 1 << 40])
def test_the_ith_smallest_is_that_of_sorting(word, many):
    most = min(many, np.iinfo(word).max >> 1)
    values = np.random.default_rng(0).integers(0, most, 5000, endpoint=True).astype(word)
    places = [0, 1, 2499, 4998, 4999]
    assert smallest(values, places) == np.sort(values)[places].tolist()


@pytest.mark.parametrize("alike", [1, 64])  # entries in a row of one scale
def test_a_bracket_holds_the_rank_whether_neighbours_are_alike_or_not(alike):
    rng, size, missed = np.random.default_rng(0), 1 << 18, 0
    for _ in range(20):
        scale = np.repeat(np.exp(rng.normal(size=size // alike)), alike)
        x = (scale * rng.normal(size=size)).astype(np.float32)
        runs = Row(x).runs(brackets.stride_of(size), brackets.RUN)
        ((low, high),) = brackets.enclose(runs, size, np.array([size // 5]))
        bits = np.abs(x).view(np.uint32)
        missed += not np.sum(bits > high) < size // 5 <= np.sum(bits >= low)
        assert np.mean((low <= bits) & (bits <= high)) < (0.04 if alike == 1 else 0.12)
    assert missed <= 1
