"""Our decoders as a model of lm-evaluation-harness, so that any of its tasks can be run on them.

Texts are cut into tokens, put into windows and shortened as the harness's own Hugging Face model
does it, so both give the same figures on the same weights (tests/test_language.py, marker parity).
Needs `pip install 'jaxmerge[eval]'`; tasks whose data are local files need no network.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError, closest
from jaxmerge.evaluation.language import encode_pair, log_likelihoods, start_of, tokenizer_of
from jaxmerge.models.decoder.checkpoint import Model
from jaxmerge.models.decoder.generate import Sampling, generate
from jaxmerge.models.decoder.scoring import score
from jaxmerge.models.transformer import Compute

ANSWER_TOKENS = 256  # tokens of an answer where a task says nothing


def adapter(model: Model, *, batch: int = 16, compute: Compute = Compute()):
    """A model as the harness wants it, an instance of `lm_eval.api.model.LM`.

    Args:
      model: a decoder with its tokenizer.
      batch: rows at a time.
      compute: dtype of the matrix products, form of the attention.

    Raises:
      UserError: the harness is not installed.
      ValueError: a model without tokenizer.
    """
    tokenizer_of(model)
    require()
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

    class Decoder(LM):
        """Answers the harness's three kinds of requests."""

        def loglikelihood(self, requests, disable_tqdm: bool = False):
            pairs = [encode_pair(model, *request.args) for request in requests]
            scores = score(model, pairs, batch=batch, compute=compute)
            return [(s.log_likelihood, s.greedy) for s in scores]

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
            texts = [request.args[0] for request in requests]
            return log_likelihoods(model, texts, special=True, batch=batch, compute=compute)

        def generate_until(self, requests, disable_tqdm: bool = False):
            return answers(model, [r.args for r in requests], batch=batch, compute=compute)

        @property
        def tokenizer_name(self) -> str:
            return "jaxmerge"

        def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
            return tokenizer_of(model).chat(chat_history, answer=add_generation_prompt)

    return Decoder()


def require() -> None:
    """Raises UserError where the harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError("Tasks are run by a package: pip install 'jaxmerge[eval]'.") from None


def answers(
    model: Model, asked: Sequence[tuple[str, Mapping[str, Any]]], *, batch: int, compute: Compute
) -> list[str]:
    """What the model writes behind texts, with the harness's settings of generation each."""
    groups: dict[str, list[int]] = {}
    for number, (_, settings) in enumerate(asked):
        groups.setdefault(repr(sorted(settings.items())), []).append(number)
    texts = [""] * len(asked)
    tokenizer = tokenizer_of(model)
    for members in groups.values():
        settings = dict(asked[members[0]][1])
        most = _first(settings, "max_gen_toks", "max_new_tokens", "max_tokens") or ANSWER_TOKENS
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        drawn = settings.get("do_sample", settings.get("temperature", 0) > 0)
        sampling = Sampling(
            float(settings.get("temperature", 1.0)) if drawn else 0.0,
            int(settings.get("top_k", 0)),
            float(settings.get("top_p", 1.0)),
            float(settings.get("repetition_penalty", 1.0)),
        )
        room = model.config.context - most
        if room < 1:
            raise ValueError(
                f"{most} tokens to write, the model's context is {model.config.context}"
            )
        rows = {i: (tokenizer.encode(asked[i][0]) or [start_of(model)])[-room:] for i in members}
        order = sorted(members, key=lambda i: -len(rows[i]))
        for start in range(0, len(order), batch):
            chunk = order[start : start + batch]
            written = generate(
                model, [rows[i] for i in chunk], most=most, sampling=sampling, stop=until,
                compute=compute,
            )  # fmt: skip
            for i, one in zip(chunk, written, strict=True):
                texts[i] = one.text
    return texts


def _first(settings: Mapping[str, Any], *names: str) -> Any:
    return next((settings[name] for name in names if settings.get(name)), None)


def tasks_of(wanted: Iterable[str]) -> list[str | dict[str, Any]]:
    """Names of tasks as they are, and YAML files of tasks as what they say.

    Paths of data in a file are relative to that file.

    Raises:
      UserError: a file that is not there or is no task; data that are empty.
    """
    import yaml

    tasks: list[str | dict[str, Any]] = []
    for task in wanted:
        if not task.endswith((".yaml", ".yml")):
            tasks.append(task)
            continue
        path = Path(task)
        if not path.is_file():
            raise UserError(f"There is no task {task!r}.")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"{path} is no YAML of plain values ({reason}).") from None
        if not isinstance(content, dict) or "task" not in content:
            raise UserError(f"{path} is no task of the harness: it has no entry 'task'.")
        data = content.get("dataset_kwargs") or {}
        if "data_files" in data:
            data["data_files"] = _absolute(data["data_files"], path.parent)
        tasks.append(content)
    return tasks


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {key: _absolute(file, folder) for key, file in files.items()}
    if isinstance(files, list):
        return [_absolute(file, folder) for file in files]
    here = folder / str(files)
    if here.is_file() and not here.stat().st_size:
        raise UserError(f"{here} is empty; a task needs at least one example.")
    return str(here.resolve()) if not os.path.isabs(str(files)) and here.exists() else files


def evaluate(
    model: Model,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    batch: int = 16,
    chat: bool = False,
    compute: Compute = Compute(),
) -> dict[str, dict[str, float]]:
    """The figures of a model on tasks of the harness.

    Args:
      model: a decoder with its tokenizer.
      tasks: names, or YAML files.
      limit: examples of each task; all of them unless given.
      fewshot: solved examples in front of each; as the task says unless given.
      batch: rows at a time.
      chat: ask through the model's chat template.

    Returns:
      task -> figure -> value; the harness's estimates of errors are `..._stderr`.

    Raises:
      UserError: the harness is not installed, tasks that are not there or cannot be run.
    """
    require()
    from lm_eval import simple_evaluate  # pyright: ignore[reportAttributeAccessIssue]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    if not tasks:
        raise UserError("Name at least one task with --tasks.")
    wanted, manager = tasks_of(tasks), TaskManager()
    if unknown := [t for t in wanted if isinstance(t, str) and not manager.match_tasks([t])]:
        hints = (f"{name!r} ({closest(name, manager.all_tasks)})" for name in unknown[:5])
        raise UserError(f"The harness knows no task {', '.join(hints)}.")
    lm = adapter(model, batch=batch, compute=compute)
    try:
        output = simple_evaluate(
            lm, tasks=wanted, limit=limit, num_fewshot=fewshot, apply_chat_template=chat,
            bootstrap_iters=100, log_samples=False, task_manager=manager,
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # of the harness, of what loads its data, of a task's own words
        words = " ".join(str(error).split())[:200]
        raise UserError(
            f"The harness could not run {', '.join(tasks)} ({type(error).__name__}: {words}); look "
            "at the task's file and its data, or at the connection."
        ) from error
    results = {} if output is None else output["results"]
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in figures.items()
            if isinstance(value, int | float)
        }
        for task, figures in results.items()
    }
