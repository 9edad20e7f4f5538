"""A headless Chromium, driven over its DevTools pipe: no driver, no port, no package.

Messages are JSON, each ended by a zero byte, on the browser's file descriptors 3 (in) and 4 (out).
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Becomes the browser, with the two pipes where it looks for them.
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def find() -> str | None:
    """The browser's path, or None if there is none (CHROMIUM names another)."""
    wanted = os.environ.get("CHROMIUM")
    return wanted or next((p for p in map(shutil.which, NAMES) if p), None)


class Browser:
    """One browser with one page; use it as a context manager."""

    def __init__(self, path: str, seconds: float = 60) -> None:
        self.seconds, self.count, self.rest, self.seen = seconds, itertools.count(1), b"", []
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (low, self.out), (self.into, other) = os.pipe(), os.pipe()
        read_in, write_out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (low, other))
        os.close(low)
        os.close(other)
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--remote-debugging-pipe",
            f"--user-data-dir={self.folder.name}", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(read_in), str(write_out), path, *flags],
            env={**os.environ, "TMPDIR": self.folder.name}, pass_fds=(read_in, write_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_in)
        os.close(write_out)
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.into)
        os.close(self.out)
        self.folder.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; events that come meanwhile are kept in `seen`."""
        number = next(self.count)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.seen.append(answer)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + self.seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.into], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {self.seconds} s")
            part = os.read(self.into, 1 << 20)
            if not part:
                raise RuntimeError(f"the browser went away with {self.process.wait()}")
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Show a file in a window `width` pixels wide, the system being "light" or "dark"."""
        self.seen.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(m.get("method") == "Page.loadEventFired" for m in self.seen):
            self.seen.append(self._next())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, as JSON."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """What the console, the log and the network had to complain about since `open`."""
        self.run("1")
        out = []
        for m in self.seen:
            method, p = m.get("method"), m.get("params", {})
            if method == "Runtime.exceptionThrown":
                out.append(json.dumps(p["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning"):
                out.append(json.dumps(p["args"]))
            elif method == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
                out.append(p["entry"]["text"])
            elif method == "Network.requestWillBeSent":
                url = p["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    out.append(f"asked the network for {url}")
        return out

    def shot(self, path: Path, width: int) -> None:
        """A picture of the whole page."""
        height = self.run("document.documentElement.scrollHeight")
        picture = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True,
            clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
        )["data"]  # fmt: skip
        path.write_bytes(base64.b64decode(picture))
