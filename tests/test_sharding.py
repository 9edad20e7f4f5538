"""Merging on eight fake devices and in two processes equals merging on one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmerge as jm
from jaxmerge.drivers import sharded

KEY = jax.random.key(7)
BASE = laws.model(0)


def models(count: int) -> list[dict]:
    return [laws.model(1 + t, BASE) for t in range(count)]


@pytest.mark.parametrize("grid", [(4, 2, 4), (8, 1, 5), (3, 1, 7), (2, 4, 1)])
def test_pmerge_equals_the_sequential_fold(grid):
    spread, cut, count = grid
    on = jm.mesh(spread, cut)
    base = jm.shard(BASE, on)
    for method, exact in ((jm.magmax(), True), (jm.dare(), False), (jm.average(), False)):
        out = jm.pmerge(method, base, models(count), on, key=KEY)
        expected = jm.merge(method, BASE, models(count), key=KEY)
        (laws.same if exact else laws.close)(out, expected)
        assert all(out[n].sharding.mesh == on for n in laws.SHAPES)
        placed = base["patch/kernel"].sharding
        assert out["patch/kernel"].sharding.is_equivalent_to(placed, 4)


def test_global_ties_ranks_the_whole_model_on_every_device():
    on = jm.mesh(4, 2)
    out = jm.pmerge(jm.ties(0.3), jm.shard(BASE, on), models(6), on)
    laws.close(out, jm.merge(jm.ties(0.3), BASE, models(6)))


def test_cells_that_grow_take_any_number_of_models():
    on = jm.mesh(4, 1)
    middle = jm.stacked(lambda rows, ctx: jnp.median(rows, axis=0))
    for count in (3, 4, 6):
        out = jm.pmerge(middle, BASE, models(count), on)
        laws.close(out, jm.merge(middle, BASE, models(count)))


def test_stacked_models_side_information_and_weights_follow_the_sequence():
    on, rows = jm.mesh(4, 1), models(5)
    stacked = {n: np.stack([m[n] for m in rows]) for n in BASE}
    method = jm.linear([0.1, 0.2, 0.3, 0.4, 0.5])
    laws.close(jm.pmerge(method, BASE, stacked, on), jm.merge(method, BASE, rows))
    extras = laws.sides(jm.fisher_merging(), BASE, 5)
    out = jm.pmerge(jm.fisher_merging(), BASE, rows, on, extras=extras)
    laws.close(out, jm.merge(jm.fisher_merging(), BASE, rows, extras=extras))


def test_against_literal_pmap():
    """Each device folds one model under jax.pmap; the states joined on the host are the same."""
    rows = models(4)
    floats = lambda tree: {n: jnp.asarray(tree[n]) for n in laws.SHAPES}
    base, method = floats(BASE), jm.magmax()
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *map(floats, rows))

    def one(row):
        return jm.update(method, jm.init(method, base), base, row).cells

    cells = jax.pmap(one, devices=jax.devices()[:4])(stacked)
    parts = [{n: x[d] for n, x in jax.device_get(cells).items()} for d in range(4)]
    states = [jm.MergeState(jnp.int32(1), None, part) for part in parts]
    state = states[0]
    for other in states[1:]:
        state = jm.join(method, state, other, base)
    expected = jm.pmerge(method, base, list(map(floats, rows)), jm.mesh(4, 1))
    laws.same(jm.merged(method, state, base), expected)


def test_what_cannot_be_merged_in_parallel_is_refused():
    on = jm.mesh(2, 1)
    with pytest.raises(ValueError, match=r"cannot join states.*randmix"):
        jm.pmerge(jm.randmix(), BASE, models(2), on, key=KEY)
    with pytest.raises(ValueError, match="model 1 does not fit"):
        jm.pmerge(jm.mean(), BASE, [BASE, {}], on)
    with pytest.raises(ValueError, match="needs at least 1 model, got none"):
        jm.pmerge(jm.mean(), BASE, [], on)
    bad = dict(BASE, logit_scale=np.float32("nan"))
    with pytest.raises(ValueError, match=r"model 1, leaf 'logit_scale': 1 of 1 entries"):
        jm.pmerge(jm.mean(), BASE, [BASE, bad], on)
    with pytest.raises(ValueError, match="A mesh of 3 x 4 needs 12 devices, found 8"):
        jm.mesh(3, 4)


def test_rules_place_leaves_and_every_misfit_is_named():
    on = jm.mesh(1, 4)
    placed = jm.shard(BASE, on, [(".*", P())])
    assert all(x.sharding.is_fully_replicated for x in placed.values())
    cut = jm.shard(BASE, on, [("query", P(None, "params")), (".*", P())])
    assert cut["block_0/query/kernel"].addressable_shards[0].data.shape == (6, 1)
    laws.same({n: np.asarray(x) for n, x in cut.items()}, BASE)
    with pytest.raises(ValueError) as error:
        jm.shard(BASE, on, [("query", P("params")), ("norm", P(None, "params"))])
    text = str(error.value)
    for part in (
        "'block_0/query/kernel' (float32[6,4]): axis 0 is no multiple of 4",
        "'norm/scale' (float32[4]) has fewer axes than",
        "'logit_scale' (float32[]) matches no rule",
        "'patch/kernel' (float32[2,2,3,4]) matches no rule",
    ):
        assert part in text


FULL = {"w": np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)}
ROWS = [{"w": FULL["w"] + np.float32(t + 1) * np.flip(FULL["w"], t)} for t in range(2)]


def on_devices(tree: dict, spec: P, kind: AxisType = AxisType.Auto) -> dict:
    """Cut over a mesh such as training code makes: other axis names, perhaps explicit ones."""
    mesh = jax.make_mesh((8,), ("fsdp",), (kind,))
    return {n: jax.device_put(x, NamedSharding(mesh, spec)) for n, x in tree.items()}


@pytest.mark.parametrize("name", ["magmax", "ties", "opcm", "iso_c", "dare", "ema", "average"])
def test_a_state_is_cut_as_the_base_is(name):
    base = on_devices(FULL, P(None, "fsdp"))
    method = jm.get(name)()
    start = lambda base: jm.init(method, base, key=KEY).cells["w"]
    for cell in (start(base), jax.jit(start)(base)):
        parts = [x for x in jax.tree.leaves(cell) if x.shape == (64, 128)]
        assert parts
        assert all(x.addressable_shards[0].data.shape == (64, 16) for x in parts)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["magmax", "ties", "iso_c", "dare"])
def test_merges_keep_axes_of_any_name_and_kind(name, kind):
    method = jm.get(name)()
    want = jm.merge(method, FULL, ROWS, key=KEY)["w"]
    base = on_devices(FULL, P("fsdp"), kind)
    rows = [on_devices(r, P("fsdp"), kind) for r in ROWS]
    state = jm.init(method, base, key=KEY)
    for row in rows:
        state = jm.update(method, state, base, row)
    for out in (jm.merge(method, base, rows, key=KEY), jm.merged(method, state, base)):
        assert out["w"].sharding == base["w"].sharding
        np.testing.assert_allclose(np.asarray(out["w"]), want, atol=2e-6)


@pytest.mark.parametrize("name", ["ties", "iso_c"])
def test_explicit_axes_inside_jit(name):
    method = jm.get(name)()
    base = on_devices(FULL, P("fsdp"), AxisType.Explicit)
    rows = [on_devices(r, P("fsdp"), AxisType.Explicit) for r in ROWS]
    out = jax.jit(lambda b, ms: jm.merge(method, b, ms))(base, rows)
    assert out["w"].sharding.is_equivalent_to(base["w"].sharding, 2)
    want = jm.merge(method, FULL, ROWS)["w"]
    np.testing.assert_allclose(np.asarray(out["w"]), want, atol=2e-6)
    with pytest.raises(TypeError, match=r"jm\.init inside jit cannot take leaves on explicit axes"):
        jax.jit(lambda b: jm.init(method, b))(base)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "magmax"])
def test_no_leaf_is_gathered_to_rank_its_entries(name):
    base = on_devices(FULL, P(None, "fsdp"))
    run = jax.jit(lambda b, rows: jm.merge(jm.get(name)(), b, rows))
    assert "all-gather" not in run.lower(base, [base, base]).compile().as_text()


def test_pmerge_takes_the_base_of_a_training_mesh_and_gives_it_back_there():
    base, on = on_devices(FULL, P("fsdp")), jm.mesh(2, 4)
    out = jm.pmerge(jm.magmax(), base, ROWS, on)
    assert out["w"].sharding == base["w"].sharding
    np.testing.assert_array_equal(np.asarray(out["w"]), jm.merge(jm.magmax(), FULL, ROWS)["w"])


def test_pmerge_compiles_once_and_runs_inside_jit():
    on, want = jm.mesh(2, 4), jm.merge(jm.magmax(), FULL, ROWS)["w"]
    stacked = {"w": np.stack([r["w"] for r in ROWS])}
    there = [jax.tree.map(jnp.asarray, r) for r in ROWS]  # on one device, not on the mesh
    for rows in (ROWS, stacked, there, jax.tree.map(jnp.asarray, stacked)):
        out = jm.pmerge(jm.magmax(), FULL, rows, on)
        np.testing.assert_array_equal(np.asarray(out["w"]), want)
    compiled = sharded._run._cache_size()
    jm.pmerge(jm.magmax(), FULL, ROWS, on)
    assert sharded._run._cache_size() == compiled
    inside = jax.jit(lambda base, rows: jm.pmerge(jm.magmax(), base, rows, on))(FULL, ROWS)
    np.testing.assert_array_equal(np.asarray(inside["w"]), want)
    many = jax.vmap(lambda f: jm.pmerge(jm.magmax(f), FULL, ROWS, on)["w"])(jnp.array([0.5, 1.0]))
    np.testing.assert_array_equal(np.asarray(many[0]), want)


def test_axes_that_a_mesh_lacks_are_named():
    training = jax.make_mesh((8,), ("fsdp",), (AxisType.Auto,))
    with pytest.raises(ValueError, match=r"has the axes \('fsdp',\), none is named 'models'"):
        jm.pmerge(jm.magmax(), FULL, ROWS, training)
    out = jm.pmerge(jm.magmax(), FULL, ROWS, training, axis="fsdp")
    np.testing.assert_array_equal(np.asarray(out["w"]), jm.merge(jm.magmax(), FULL, ROWS)["w"])
    with pytest.raises(ValueError, match=r"rules name the axes \['fsdp'\], which the mesh lacks"):
        jm.shard(FULL, jm.mesh(2, 4), [(".*", P("fsdp"))])
    placed = jm.shard(FULL, training)["w"]
    assert placed.addressable_shards[0].data.shape == (64, 16)


def test_non_finite_shards_are_counted_where_they_lie():
    bad = {"w": np.array(FULL["w"])}
    bad["w"][[0, 63], [0, 127]] = np.nan
    base = on_devices(FULL, P("fsdp"))
    with pytest.raises(ValueError, match="model 1, leaf 'w': 2 of 8192 entries"):
        jm.merge(jm.magmax(), base, [base, on_devices(bad, P("fsdp"))])


PROCESS = """
import sys, jax
rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
import laws, numpy as np, jaxmerge as jm
assert jax.process_count() == 2 and len(jax.devices()) == 4
base = laws.model(0)
models = [laws.model(1 + t, base) for t in range(3)]
key = jax.random.key(7)
for name, spread, method in (
    ("magmax", 2, jm.magmax()), ("ties", 1, jm.ties(0.3)), ("dare", 2, jm.dare())
):
    on = jm.mesh(spread, 4 // spread)
    placed = jm.shard(base, on)
    assert not placed["patch/kernel"].is_fully_addressable
    merged = jm.gather(jm.pmerge(method, placed, models, on, key=key))
    everywhere = [jm.shard(m, on) for m in models]  # parts of every model on both hosts
    again = jm.gather(jm.pmerge(method, placed, everywhere, on, key=key))
    whole = jm.gather(jm.merge(method, placed, everywhere, key=key))
    for n in merged:
        np.testing.assert_array_equal(merged[n], again[n])
        np.testing.assert_allclose(merged[n], whole[n], atol=1e-5)
    if rank == 0:
        np.savez(f"{out}/{name}.npz", **merged)
bad = dict(models[1], **{"patch/kernel": np.array(models[1]["patch/kernel"])})
bad["patch/kernel"].flat[-1] = np.nan  # one host has it, both refuse
try:
    jm.merge(jm.magmax(), placed, [jm.shard(bad, on)])
except ValueError as error:
    assert "model 0, leaf 'patch/kernel': 1 of 48 entries" in str(error)
else:
    raise SystemExit("NaN was accepted")
"""


def test_two_processes_write_what_one_writes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    here = Path(__file__).parent
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), port, str(tmp_path)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    logs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(logs)
    for name, method in (("magmax", jm.magmax()), ("ties", jm.ties(0.3)), ("dare", jm.dare())):
        with np.load(tmp_path / f"{name}.npz") as out:
            expected = jm.merge(method, BASE, models(3), key=KEY)
            (laws.same if name == "magmax" else laws.close)({n: out[n] for n in expected}, expected)


def test_leaves_go_from_a_file_to_their_devices(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    from jaxmerge.io.safetensors import File
    from jaxmerge.io.sources import open_source

    tree = {n: x for n, x in BASE.items() if x.ndim} | {"wide": FULL["w"]}
    save_file({n: np.ascontiguousarray(x) for n, x in tree.items()}, tmp_path / "m.safetensors")
    on, reads = jm.mesh(1, 8), []
    read = File.read
    monkeypatch.setattr(
        File, "read", lambda file, *at: reads.append(at) or read(file, *at)
    )  # fmt: skip
    placed = jm.shard(open_source(tmp_path / "m.safetensors"), on)
    laws.same({n: np.asarray(placed[n]) for n in tree}, tree)
    expected = jm.shard(tree, on)
    assert all(placed[n].sharding == expected[n].sharding for n in tree)
    assert [at[0] for at in reads].count("wide") == 1  # cut along columns: read once
    rules = [("wide", P("params")), (".*", P())]
    reads.clear()
    rows = jm.shard(str(tmp_path / "m.safetensors"), on, rules)
    np.testing.assert_array_equal(np.asarray(rows["wide"]), FULL["w"])
    sizes = [stop - start for n, start, stop in reads if n == "wide"]
    assert sizes == [8 * 128] * 8  # only what a device holds
