"""Index plans against the released samplers and split files: every index and count exact."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, load

from jaxmerge.continual.problems import level, level_or_below
from jaxmerge.continual.records import Outputs
from jaxmerge.data.streams.blurry import i_blurry, si_blurry
from jaxmerge.data.streams.hierarchy import expansion


class Stored:
    """The draws of a file, each taken as what it was drawn for."""

    def __init__(self, z, case):
        ends = np.cumsum(z[f"{case}_draws_length"])[:-1]
        kinds = z[f"{case}_draws_kind"]
        self.left = list(zip(kinds, np.split(z[f"{case}_draws"], ends), strict=True))

    def take(self, kind, count):
        stored, values = self.left.pop(0)
        assert (stored, len(values)) == (kind, count)
        return values.astype(int)

    def permutation(self, n):
        return self.take("perm", n)

    def integers(self, low, high, n):
        return self.take("int", n)


@pytest.mark.parametrize("case", range(12))
def test_si_blurry(case):
    z = load("siblurry", "sampler")
    of = lambda name: z[f"c{case}_{name}"]
    draws, percents = Stored(z, f"c{case}"), ("n_disjoint_percent", "m_blurry_percent")
    n, m = (int(of(k)) for k in percents)
    plan = si_blurry(
        of("targets"), int(of("n_tasks")), n, m, draws, varying=bool(of("varying")),
        as_stored=True,
        names=[str(c) for c in range(int(of("n_classes")))],
    )  # fmt: skip
    close(np.concatenate(plan.rows), of("indices"), 0)
    assert [len(r) for r in plan.rows] == of("indices_per_task").tolist()
    close(plan.counts(), of("class_by_task_counts"), 0)
    assert plan.left_out() == of("n_indices_never_delivered")
    assert not draws.left
    delivered = np.flatnonzero(np.isin(of("targets"), np.unique(plan.columns[0])))
    close(delivered, of("test_indices_after_task0"), 0)


@pytest.mark.parametrize("setting", [(50, 10), (50, 30), (50, 50), (0, 10), (100, 0)])
def test_counts_of_i_blurry(setting):
    """The released splits: sizes of tasks, disjoint classes, what a blurry class keeps; 5 sigma."""
    z, labels = load("iblurry", "stream_counts"), np.repeat(np.arange(10), 5000)
    n, m = setting
    for seed in (1, 2):
        released = z[f"cifar10_n{n}_m{m}_seed{seed}_class_by_task_counts"]
        ours = i_blurry(labels, 5, n, m, seed).counts()
        close(ours.sum(0), released.sum(0), 0)
        ordered = lambda x: np.sort(x.max(1))[::-1]
        alone = lambda x: np.sum(x.max(1) == 5000)
        assert alone(ours) == alone(released)
        # m percent leave; a fifth of the pool comes back, of which this class has its share
        spread = 5 * np.sqrt(5000 * m / 100 / 5)
        assert np.abs(ordered(ours) - ordered(released)).max() <= 2 * spread + 1e-9


@pytest.mark.parametrize("seed", [0, 1])
def test_counts_of_label_expansion(seed):
    z, labels = load("hle", "streams"), np.repeat(np.arange(100), 500)
    parents = z[f"single_seed{seed}_parent_of_fine"]
    tree = np.stack([parents, np.arange(100)], 1)
    in_order = lambda counts: counts[np.lexsort(counts.T)]
    single = expansion(labels, tree, "single", 6, seed).counts()
    close(single[:20], z[f"single_seed{seed}_coarse_counts"], 0)
    close(in_order(single[20:]), in_order(z[f"single_seed{seed}_fine_counts"]), 0)
    dual = expansion(labels, tree, "dual", 6, seed).counts()
    close(in_order(dual[20:]), in_order(z[f"dual_seed{seed}_fine_counts"]), 0)
    deep = z[f"multi_seed{seed}_label_at_each_depth_of_fine_class"]
    plan = expansion(labels, deep, "multi", seed=seed)
    by_level = np.stack([plan.counts()[plan.level == d].sum(0) for d in range(5)], 1)
    close(by_level, z[f"multi_seed{seed}_task_by_depth_counts"], 0)
    per_class = plan.counts()[plan.level == 4][:, 4]
    assert (per_class == 100).all()


def test_sizes_of_cars():
    """What "dual" has and "single" lacks later came early: n / 10 of every fine class, rounded."""
    z = load("hle", "streams")
    for seed in (0, 1):
        dual, single = (z[f"cars_setup{k}_seed{seed}_task_sizes"] for k in (1, 2))
        assert dual[0] == dual[1:].sum() == single.sum()
        early = (dual - single)[1:]
        assert early.sum() == single[0]
        assert (early > dual[1:] // 10).any()  # so it is not cut off
    rng = np.random.default_rng(0)
    parents = np.repeat(np.arange(9), [4, 1, 7, 3, 5, 2, 6, 8, 2])
    labels = np.repeat(np.arange(len(parents)), rng.integers(8, 60, len(parents)))
    tree = np.stack([parents, np.arange(len(parents))], 1)
    one, two = (expansion(labels, tree, k, 10, 3) for k in ("single", "dual"))
    sizes = np.bincount(labels)
    early = np.bincount(parents, np.round(sizes / 10))
    gone = np.array([len(b) - len(a) for a, b in zip(one.rows[1:], two.rows[1:], strict=True)])
    assert sorted(gone) == sorted(early.astype(int))


@pytest.mark.parametrize("case", [0, 1])
def test_evaluation_of_coarse_and_fine(case):
    z = load("hle", "evaluation")
    of = lambda name: z[f"c{case}_{name}"]
    coarse, fine = of("coarse_logits"), of("fine_logits")
    k = coarse.shape[1]
    depth = np.repeat([0, 1], [k, fine.shape[1]])
    parent = np.r_[np.full(k, -1), of("parent_of_fine")]
    rows = len(coarse)
    info = {"level": depth, "parent": parent, "met": np.ones(len(depth), bool)}
    info = {n: jnp.asarray(np.tile(x, (rows, 1))) for n, x in info.items()}
    targets = jnp.asarray(of("label") + k * of("level"))
    out = Outputs(jnp.concatenate([coarse, fine], 1))
    strict = np.asarray(level().build().score(out, targets, info))
    union = np.asarray(level_or_below().build().score(out, targets, info))
    is_coarse = of("level") == 0
    close(strict[is_coarse].mean(), of("coarse_head_accuracy"), 1e-7)
    close(union[is_coarse].mean(), of("coarse_union_accuracy"), 1e-7)
    close(strict[~is_coarse].mean(), of("fine_accuracy"), 1e-7)
