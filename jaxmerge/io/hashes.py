"""SHA-256 of input files, in the background, remembered for files that have not changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeGuard

from jaxmerge.io.untrusted import open_regular

BLOCK = 8 << 20


def cache_folder() -> Path:
    """Where jaxmerge keeps what may be thrown away: compiled code, hashes."""
    root = os.environ.get("JAXMERGE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(root) / "jaxmerge" if root else Path.home() / ".cache" / "jaxmerge"


def _code(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}"


def _digest(value: object) -> TypeGuard[str]:
    """Whether this is a SHA-256: the store is a file that anything may have happened to."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


class Hashes:
    """``hashes = Hashes(files); ...; hashes.result()`` maps every path to its SHA-256.

    Raises (from `result`):
        OSError: a file cannot be read.
    """

    def __init__(self, files: Iterable[Path]):
        self.store = cache_folder() / "hashes.json"
        self.known = self._load()
        self.stopped = False
        self.pool = ThreadPoolExecutor(1, "sha256")
        self.digests: dict[Path, str | Future] = {}
        self.codes: dict[Path, str] = {}
        for path in dict.fromkeys(map(Path, files)):
            self.codes[path] = code = _code(path)
            known = self.known.get(code)
            self.digests[path] = known if _digest(known) else self.pool.submit(self._hash, path)

    def result(self) -> dict[str, str]:
        """Wait for what is not known yet."""
        out = {p: f if isinstance(f, str) else f.result() for p, f in self.digests.items()}
        self.pool.shutdown()
        if any(isinstance(f, Future) for f in self.digests.values()):
            same = {p: h for p, h in out.items() if _code(p) == self.codes[p]}
            self._save({self.codes[p]: h for p, h in same.items()})
        return {str(p): h for p, h in out.items()}

    def stop(self) -> None:
        """Give up what is not done."""
        self.stopped = True
        self.pool.shutdown(cancel_futures=True)

    def _hash(self, path: Path) -> str:
        digest, block = hashlib.sha256(), bytearray(BLOCK)
        view = memoryview(block)
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            while (n := file.readinto(block)) and not self.stopped:
                digest.update(view[:n])
        return digest.hexdigest()

    def _load(self) -> dict[str, str]:
        try:
            content = json.loads(self.store.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _save(self, new: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            self.store.parent.mkdir(parents=True, exist_ok=True)
            merged = dict(list((self._load() | new).items())[-4096:])
            with tempfile.NamedTemporaryFile("w", dir=self.store.parent, delete=False) as file:
                json.dump(merged, file)
            os.replace(file.name, self.store)
