"""Both programs on one recipe: mergekit in a process of its own, jaxmerge in this one."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

WORKER = """
import json, sys, traceback, yaml, transformers
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
transformers.logging.set_verbosity_error()
for line in sys.stdin:
    task = json.loads(line)
    try:
        text = open(task["recipe"]).read()
        if task["kind"] == "multi":
            from mergekit.scripts.multimerge import main
            args = [task["recipe"], "--out-path", task["out"], "-I", task["out"] + ".there"]
            args += ["--no-write-model-card"]
            result = CliRunner().invoke(main, args, catch_exceptions=False)
            if result.exit_code: raise RuntimeError(result.output[-300:])
        elif task["kind"] == "raw":
            from mergekit.scripts.merge_raw_pytorch import main
            args = [task["recipe"], task["out"], *task["options"]]
            result = CliRunner().invoke(main, args, catch_exceptions=False)
            if result.exit_code: raise RuntimeError(result.output[-300:])
        else:
            config = MergeConfiguration.model_validate(yaml.safe_load(text))
            options = MergeOptions(random_seed=0, quiet=True, write_model_card=False,
                                   lora_merge_cache=task["out"] + ".lora")
            run_merge(config, task["out"], options)
        said = ""
    except BaseException as error:
        said = f"{type(error).__name__}: {str(error).strip()}"[:300]
    print("RESULT " + json.dumps([task["name"], said]), flush=True)
"""
VERSIONS = "from importlib.metadata import version as v; print(v('mergekit'), v('torch'))"


def run_mergekit(python: str, tasks: list[dict], folder: Path) -> Iterator[tuple[str, str]]:
    """Name and what mergekit said when it failed, or an empty text, one recipe after another."""
    if not tasks:
        return
    with tempfile.TemporaryFile("w+") as lines, tempfile.TemporaryFile("w+") as log:
        lines.write("".join(json.dumps(t) + "\n" for t in tasks))
        lines.seek(0)
        worker = subprocess.Popen(
            [python, "-c", WORKER],
            stdin=lines,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert worker.stdout is not None
        for line in worker.stdout:
            if line.startswith("RESULT "):
                yield tuple(json.loads(line[7:]))
        if worker.wait():
            log.seek(0)
            raise SystemExit(f"mergekit stopped:\n{log.read()[-2000:]}")


def run_jaxmerge(task: dict) -> str:
    """What jaxmerge said when it refused, or an empty text."""
    from jaxmerge.cli import merge

    flags = {o.removeprefix("--").replace("-", "_"): True for o in task["options"]}
    here = Path.cwd()
    os.chdir(Path(task["recipe"]).parent)
    try:
        merge.run(Path(task["recipe"]), Path(task["out"]), quiet=True, force=True, seed=0, **flags)
        return ""
    except ValueError as error:  # UserError too
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        os.chdir(here)


def versions(python: str) -> dict[str, str]:
    """The versions of mergekit and of its torch."""
    output = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True)
    return dict(zip(("mergekit", "torch"), output.stdout.split(), strict=True))
