"""Order statistics by counting equal those by sorting: ties, zeros, float64, bad samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmerge.numerics import brackets, host_order_statistics, host_rows, order_statistics
from jaxmerge.numerics.host_rows import Row
from jaxmerge.numerics.measures import keep_count, ranked_magnitude, ranked_magnitudes


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
