"""Training on eight devices, and in two processes, gives what one device gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import clouds
import jax
import numpy as np
import pytest

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
from jaxmerge.cli import run
run.run({toy!r}, set=["seeds=1"], out=sys.argv[3], save_every=0, quiet=True)
"""


@pytest.mark.slow
def test_two_processes_run_what_one_runs(tmp_path, monkeypatch):
    """jax.distributed on this machine: shares of each batch in each process, one set of files."""
    from test_experiments import TOY

    from jaxmerge.cli import run
    from jaxmerge.studies.results import Results

    tests = str(Path(__file__).parent)
    toy = tmp_path / "toy.py"
    toy.write_text(TOY.format(tests=tests))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code = WORKER.format(tests=tests, toy=str(toy))
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAXMERGE_DEVICES")}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(k), str(tmp_path / "run")], env=env
        )
        for k in range(2)
    ]
    assert [w.wait(timeout=300) for w in workers] == [0, 0]
    results = Results.from_json(tmp_path / "run" / "results.json")
    assert results.machine["devices"] == 2
    whole = run.run(toy, set=["seeds=1"], out=tmp_path / "one", quiet=True)
    for a, b in zip(results.seeds[0].entries, whole.seeds[0].entries, strict=True):
        assert (a.label, a.finetunes) == (b.label, b.finetunes)
        np.testing.assert_allclose(np.array(a.matrix, float), np.array(b.matrix, float), atol=0.1)
    assert not (tmp_path / "run" / "state").exists()
