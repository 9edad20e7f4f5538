"""The journal of an output that is being written: which leaves are done.

One line of JSON for every leaf, and one for every sync.  After a crash lines written since the
machine started are trusted as they are, older ones up to the last sync.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from jaxmerge.errors import UserError
from jaxmerge.io.places import Place, boot, write_all


class Journal:
    """The journal of one process in the folder that it writes.

    Args:
        place: the folder.
        index: of the process, among those that write the output together.
        digest: identifies this very merge.
        out: the output, for messages.

    Attributes:
        leaves: names of those that were done when it was opened.

    Raises:
        UserError: it is the journal of another merge.
    """

    def __init__(self, place: Place, index: int, digest: str, out: Path):
        name = f"journal.{index}.jsonl" if index else "journal.jsonl"
        self._fd = place.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            self.leaves = self._read(place.read(name), digest, out)
        except BaseException:
            self.close()
            raise

    def _read(self, text: bytes, digest: str, out: Path) -> set[str]:
        lines, sound = [], 0
        for line in text.split(b"\n")[:-1]:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(entry, dict):
                break
            lines.append(entry)
            sound += len(line) + 1
        head = {"merge": digest, "boot": boot()}
        names: list[str] = []
        if lines:
            if lines[0].get("merge") != digest:
                raise UserError(
                    f"The interrupted merge into {out} is another one (its recipe, its inputs "
                    "or an option changed); --force starts over."
                )
            counts = [c for line in lines[1:] if type(c := line.get("synced")) is int]
            synced = max(counts, default=0)
            names = [n for line in lines[1:] if isinstance(n := line.get("leaf"), str)]
            if lines[0].get("boot") == head["boot"]:
                os.ftruncate(self._fd, sound)
                return set(names)
            names = names[:synced]
        os.ftruncate(self._fd, 0)
        self.append(head, *({"leaf": n} for n in names))
        return set(names)

    def append(self, *lines: dict) -> None:
        """Write lines, each in one piece."""
        write_all(self._fd, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_journal(name: str) -> bool:
    """Whether a file of an output that is being written is a journal."""
    return name.startswith("journal") and name.endswith(".jsonl")
