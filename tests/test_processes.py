"""Processes that work together end together, in one line, whatever happens to one of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import jaxmerge as jm

ROOT = Path(__file__).parents[1]
LINE = "error: process {} of 2 has ended before the others were done; process {} ends too. Start"

WATCH = """
import sys, time
from jaxmerge.drivers.processes import Watch
index, port, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
watch = Watch("127.0.0.1", port, index, 2)
while len(watch.peers) < 1:
    time.sleep(0.01)
print("joined", flush=True)
if mode == "leaves":
    watch.leave()
elif mode == "fails":
    watch.fail()
    sys.exit("its own error")
time.sleep(20 if mode == "waits" else 0)
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(code: str, *options: str, env=None) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | (env or {})
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-c", code, *options],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_process_that_is_lost_ends_the_other(lost, how):
    port = free_port()
    modes = ["waits", "waits"] if how else ["waits" if i != lost else "fails" for i in range(2)]
    both = [start(WATCH, str(i), str(port), modes[i]) for i in range(2)]
    for process in both:
        assert process.stdout.readline() == "joined\n"
    began = time.monotonic()
    if how:
        both[lost].send_signal(how)
    said = [process.communicate(timeout=30)[1] for process in both]
    assert time.monotonic() - began < 15
    assert said[1 - lost].count("\n") == 1
    assert said[1 - lost].startswith(LINE.format(lost, 1 - lost))
    assert both[1 - lost].returncode == 2
    if not how:
        assert said[lost] == "its own error\n"


def test_processes_that_are_done_end_as_they_like():
    port = free_port()
    both = [start(WATCH, str(i), str(port), "leaves") for i in range(2)]
    assert [process.communicate(timeout=30)[1] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]


MERGE = """
import sys
sys.argv = ["jaxmerge", "merge", "recipe.yaml", *sys.argv[1:]]
from jaxmerge.cli import main
main()
"""
SLOWLY = """
import time
from jaxmerge.drivers.files import worker
merge_one = worker.Run.merge_one
def slowly(self, *args):
    print("leaf", flush=True)
    merge_one(self, *args)
    time.sleep(SECONDS)
worker.Run.merge_one = slowly
"""


@pytest.fixture
def orbax(tmp_path, monkeypatch):
    """A base and two models as Orbax checkpoints, and a recipe."""
    import orbax.checkpoint as ocp

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(size=(16, 8)).astype(np.float32)
    base = {"m": {f"l{i}": {"kernel": draw()} for i in range(8)}}
    trees = {"base": base}
    for n in ("a", "b"):
        trees[n] = jax.tree.map(lambda x: x + draw(), base)
    for name, tree in trees.items():
        ocp.PyTreeCheckpointer().save(tmp_path / name, tree)
    recipe = {"base": "base", "models": ["a", "b"], "method": "ties"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return trees


def pair(code: str, *options: str) -> list[subprocess.Popen]:
    env = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
           "JAX_NUM_PROCESSES": "2"}  # fmt: skip
    return [start(code, *options, env=env | {"JAX_PROCESS_ID": str(i)}) for i in range(2)]


@pytest.mark.slow
def test_two_processes_merge_orbax_and_another_number_goes_on(orbax):
    slowly = SLOWLY.replace("SECONDS", "0 if len(self.writer.done) < 2 else 60")
    both = pair(slowly + MERGE, "out", "--shard-size", "600B", "-q")
    for process in both:
        while process.stdout.readline() != "leaf\n":
            pass
    time.sleep(2)
    both[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    said = [process.communicate(timeout=60)[1] for process in both]
    assert time.monotonic() - began < 30
    assert said[0].startswith(LINE.format(1, 0)), said[0]
    assert not Path("out").exists()
    one = start(MERGE, "out", "--shard-size", "600B", "--resume")
    _, wrong = one.communicate(timeout=120)
    assert one.returncode == 0, wrong
    flat = {n: {k: v["kernel"] for k, v in t["m"].items()} for n, t in orbax.items()}
    expected = jm.merge(jm.ties(), flat["base"], [flat["a"], flat["b"]])
    out = {k: v for p in Path("out").glob("*.safetensors") for k, v in load_file(p).items()}
    assert len(out) == 8
    for n, x in expected.items():
        np.testing.assert_array_equal(out[f"m/{n}/kernel"], x)
    both = pair(MERGE, "two", "--shard-size", "600B", "-q")
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    two = {k: v for p in Path("two").glob("*.safetensors") for k, v in load_file(p).items()}
    assert {n: x.tobytes() for n, x in two.items()} == {n: x.tobytes() for n, x in out.items()}
