"""Ctrl-C while modules are imported."""

import signal
import subprocess
import sys

import pytest

from jaxmerge.interrupts import importing

STOPPED_AT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:  # as compiled modules do
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000): pass
            except KeyboardInterrupt:
                raise ImportError("error while initializing the extension") from None

sys.meta_path.insert(0, Stop())
sys.argv = ["jaxmerge", "methods", "--json"]
from jaxmerge.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "jaxmerge.errors", "jaxmerge.cli.methods", "jax"])
def test_ctrl_c_during_imports_is_one_line(module):
    program = [sys.executable, "-c", STOPPED_AT.format(module=module)]
    ended = subprocess.run(program, capture_output=True, text=True)
    said = "interrupted: nothing was begun or written\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", said)


def test_ctrl_c_is_as_before_afterwards():
    for before in (signal.default_int_handler, signal.SIG_IGN):
        kept = signal.signal(signal.SIGINT, before)
        try:
            with importing():
                assert (signal.getsignal(signal.SIGINT) is before) == (before is signal.SIG_IGN)
            assert signal.getsignal(signal.SIGINT) is before
        finally:
            signal.signal(signal.SIGINT, kept)
