"""Where and with what a run was made, and its cost: versions, machine, wall time, peak memory."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxmerge.io.untrusted import read_json
from jaxmerge.studies.conversion import from_plain
from jaxmerge.training import checkpoint

PACKAGES = ("jaxmerge", "jax", "jaxlib", "numpy", "optax", "flax", "scikit-learn", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide figures."""
    packages = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return packages


def machine() -> dict[str, Any]:
    """The machine, without its name."""
    import jax

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": usable,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclasses.dataclass
class Spent:
    """Wall time in seconds and peak memory in bytes of earlier attempts."""

    __pydantic_config__ = {"strict": True, "allow_inf_nan": False}  # noqa: RUF012
    seconds: float = 0.0
    memory: int | None = None


class Cost:
    """Wall time and peak memory of a run over all its attempts, kept beside its state.

    Leaving the context keeps it, so that Ctrl-C loses nothing; a killed process loses what it
    spent since the last `keep`.
    """

    def __init__(self, state: Path) -> None:
        self.began, self.path = time.perf_counter(), state / "cost.json"
        earlier = read_json(self.path) if self.path.exists() else {}
        kept = from_plain(Spent, earlier, str(self.path))
        self.earlier = {"seconds": kept.seconds, "memory": kept.memory}

    def seconds(self) -> float:
        """Wall time until now."""
        return self.earlier["seconds"] + time.perf_counter() - self.began

    def memory(self) -> int | None:
        """Bytes of the largest process."""
        return max(filter(None, (self.earlier["memory"], peak_memory())), default=None)

    def keep(self) -> None:
        """Write both for the next attempt, if the run has a state to go on from."""
        if self.path.parent.exists():
            cost = {"seconds": self.seconds(), "memory": self.memory()}
            checkpoint.replace(self.path, json.dumps(cost))

    def __enter__(self) -> Cost:
        return self

    def __exit__(self, *error: Any) -> None:
        self.keep()
