"""Training on eight devices, and in two processes, gives what one device gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import clouds
import jax
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.continual.deploys import LAST, Deploy
from jaxmerge.continual.registry import methods
from jaxmerge.studies.loop import Stream
from jaxmerge.training import data_parallel


def learn(scenario, **options):
    return Stream(
        scenario, clouds.learner(), training=clouds.TRAINING, keep=True, batch=32, seed=7, **options
    ).run()


@pytest.mark.parametrize("names", [(), ("ewc",)])
def test_eight_devices_learn_what_one_learns(monkeypatch, tmp_path, names):
    scenario = clouds.scenario(clouds.source())
    one = learn(scenario, methods=[methods.get(n)() for n in names])
    monkeypatch.setenv("JAXMERGE_DEVICES", "8")
    assert data_parallel.mesh().size == 8
    many = learn(scenario, methods=[methods.get(n)() for n in names], store=tmp_path)
    assert all(len(p.sharding.device_set) == 8 for p in many.last.values())
    np.testing.assert_allclose(many.losses, one.losses, rtol=2e-4)
    for a, b in zip(many.models, one.models, strict=True):
        for n in a:
            np.testing.assert_allclose(a[n], b[n], rtol=1e-3, atol=1e-4, err_msg=n)
    assert many.outcomes["last model"].matrix == one.outcomes["last model"].matrix


def test_a_batch_is_cut_where_the_devices_divide_it(monkeypatch):
    monkeypatch.setenv("JAXMERGE_DEVICES", "4")
    tree = {"a": np.ones((3, 1, 8, 5)), "b": np.ones((3, 1, 6, 5)), "c": np.ones(3)}
    placed = data_parallel.spread(tree, axis=2)
    shard = {n: x.addressable_shards[0].data.shape for n, x in placed.items()}
    assert shard == {"a": (3, 1, 2, 5), "b": (3, 1, 6, 5), "c": (3,)}
    for wrong in ("0", "99", "all"):
        monkeypatch.setenv("JAXMERGE_DEVICES", wrong)
        with pytest.raises(ValueError, match="expected a number from 1 to"):
            data_parallel.mesh()
    monkeypatch.setenv("JAXMERGE_DEVICES", "1")
    assert data_parallel.mesh() is None
    assert isinstance(data_parallel.spread(np.ones(3)), jax.Array)


WORKER = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.path.insert(0, {tests!r})
"""
RUN = (
    WORKER
    + """
from jaxmerge.cli import run
run.run({file!r}, set=["seeds=1"], out={folder!r}, save_every=0, quiet=True)
"""
)
STREAM = (
    WORKER
    + """
import json
from pathlib import Path
from test_continual_devices import stored
stored({folder!r}).learn(0)
ended = stored({folder!r})
assert ended.done == 1
ended.run()
if jax.process_index() == 0:
    ended = {{label: outcome.matrix for label, outcome in ended.outcomes.items()}}
    Path({file!r}).write_text(json.dumps(ended))
"""
)


def stored(folder):
    """A stream with a store and merges of both kinds: with a fold and a search of factors."""
    searched = Deploy("TIES", jm.continual_ties, (0.25, 0.75))
    return Stream(
        clouds.scenario(clouds.source()),
        clouds.learner(),
        deploys=(LAST, "magmax", searched),
        training=clouds.TRAINING,
        store=folder,
        seed=3,
    )


def two_processes(code: str, **places) -> None:
    """Run a program in two processes of this machine, which see one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    tests = str(Path(__file__).parent)
    code = code.format(tests=tests, **{k: str(v) for k, v in places.items()})
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAXMERGE_DEVICES")}
    workers = [
        subprocess.Popen([sys.executable, "-c", code, address, str(k)], env=env) for k in range(2)
    ]
    assert [w.wait(timeout=300) for w in workers] == [0, 0]


@pytest.mark.slow
def test_two_processes_run_what_one_runs(tmp_path):
    """jax.distributed on this machine: shares of each batch in each process, one set of files."""
    from test_experiments import TOY

    from jaxmerge.cli import run
    from jaxmerge.studies.results import Results

    toy = tmp_path / "toy.py"
    toy.write_text(TOY.format(tests=str(Path(__file__).parent)))
    two_processes(RUN, file=toy, folder=tmp_path / "run")
    results = Results.from_json(tmp_path / "run" / "results.json")
    assert results.machine["devices"] == 2
    whole = run.run(toy, set=["seeds=1"], out=tmp_path / "one", quiet=True)
    for a, b in zip(results.seeds[0].entries, whole.seeds[0].entries, strict=True):
        assert (a.label, a.finetunes) == (b.label, b.finetunes)
        np.testing.assert_allclose(np.array(a.matrix, float), np.array(b.matrix, float), atol=0.1)
    assert not (tmp_path / "run" / "state").exists()


@pytest.mark.slow
def test_a_stream_goes_on_in_two_processes(tmp_path):
    two_processes(STREAM, file=tmp_path / "out.json", folder=tmp_path / "two")
    ended = json.loads((tmp_path / "out.json").read_text())
    one = stored(tmp_path / "one").run().outcomes
    assert list(ended) == list(one)
    for label, matrix in ended.items():
        close = np.array(one[label].matrix, float)
        np.testing.assert_allclose(np.array(matrix, float), close, atol=0.1, err_msg=label)


def test_what_processes_have_goes_to_their_devices(monkeypatch):
    """Numbers of Python, keys and arrays, as in several processes, which compare nothing."""
    monkeypatch.setenv("JAXMERGE_DEVICES", "2")
    row = data_parallel.mesh()
    whole = jax.sharding.NamedSharding(row, jax.sharding.PartitionSpec())
    key = jax.random.key(3)
    tree = {"rate": 0.02, "n": np.int32(3), "w": np.arange(3.0), "x": jax.numpy.ones(2), "key": key}
    put = data_parallel._put_own(tree, whole)
    assert {n: str(x.dtype) for n, x in put.items()} == {
        "rate": "float32", "n": "int32", "w": "float32", "x": "float32", "key": "key<fry>",
    }  # fmt: skip
    assert all(x.sharding == whole for n, x in put.items() if n != "key")
    np.testing.assert_array_equal(jax.random.key_data(put["key"]), jax.random.key_data(key))
    assert jax.device_get(put["rate"]) == np.float32(0.02)
