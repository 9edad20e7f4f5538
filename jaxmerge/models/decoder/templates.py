"""Chat templates: programs that come with a model, run where they reach nothing and end soon.

Jinja's sandbox keeps a template from Python's objects.  It bounds neither time nor memory (a width
of `center`, a product, a list compared with itself), and one call into Python's own code cannot be
interrupted; so templates run in a process of their own, which is ended when it takes too long.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECONDS = 10.0  # of the clock, for one conversation
MEMORY = 1 << 30  # bytes of the process
LONGEST = 10_000_000  # characters of a conversation
STUMBLED = ("AttributeError", "TypeError", "KeyError", "IndexError")  # as Python says it
PROGRAM = Path(__file__).with_name("template_process.py")


def rendered(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of its variables, which JSON must be able to hold.

    Raises:
      TypeError: variables that JSON cannot hold.
      Exception: whatever the template raises or Jinja refuses; jinja2's SecurityError for a
        template that takes more than `SECONDS`, `MEMORY` or `LONGEST` allow.

    >>> rendered("{% for m in messages %}<{{ m.role }}>{% endfor %}", {"messages": [{"role": "a"}]})
    '<a>'
    """
    from jinja2.exceptions import SecurityError, TemplateError

    answer = _process.ask(json.dumps([template, variables]))
    if "text" in answer:
        return answer["text"]
    name, message = answer["error"], answer["message"]
    if name == "MemoryError":
        raise SecurityError(f"it takes more than {MEMORY / 1e9:.1f} GB of memory")
    raise getattr(builtins, name)(message) if name in STUMBLED else TemplateError(message or name)


class Process:
    """The process that runs templates: started when it is needed, again after it was ended."""

    def __init__(self) -> None:
        self.child: subprocess.Popen | None = None
        self.owner, self.lock = 0, threading.Lock()

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to one line; jinja2's SecurityError where none comes in time."""
        from jinja2.exceptions import SecurityError

        with self.lock:
            child = self._running()
            assert child.stdin is not None
            try:
                child.stdin.write(line.encode() + b"\n")
                child.stdin.flush()
                return json.loads(self._line(child))
            except TimeoutError:
                self.end()
                raise SecurityError(f"it runs longer than {SECONDS:.0f} seconds") from None
            except (BrokenPipeError, EOFError):
                self.end()
                raise SecurityError("it ended the process in which it ran") from None
            except BaseException:  # Ctrl-C: what it would answer is for nobody
                self.end()
                raise

    def _running(self) -> subprocess.Popen:
        if self.child is None or self.owner != os.getpid():  # a forked process starts its own
            limits = (MEMORY, int(SECONDS), LONGEST)
            self.child = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), *map(str, limits)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self.owner = os.getpid()
        return self.child

    def _line(self, child: subprocess.Popen) -> bytes:
        assert child.stdout is not None
        end, answer = time.monotonic() + SECONDS, bytearray()
        while not answer.endswith(b"\n"):
            if not select.select([child.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            block = os.read(child.stdout.fileno(), 1 << 16)
            if not block:
                raise EOFError
            answer += block
        return bytes(answer)

    def end(self) -> None:
        """Ends the process, if there is one."""
        child, self.child = self.child, None
        if child is None or self.owner != os.getpid():
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()


_process = Process()
atexit.register(_process.end)
