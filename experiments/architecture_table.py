"""Make jaxmerge/io/architectures/families.json from the modules of transformers.

    python experiments/architecture_table.py NOTES.jsonl [--types llama t5]
    python experiments/architecture_table.py NOTES.jsonl --write
    python experiments/architecture_table.py NOTES.jsonl --roles     # of the table there the roles

Every model type is built small on the meta device (`zoo`).  Then each key of its config that counts
something is raised by one, and the leaves are compared: names that appear say which number counts
layers, experts or parts of a sequence, and which key says how many; shapes that change with the
vocabulary say which leaves have a row for every token.  Modules say the rest: kernels stored
[in, out] (Conv1D), tables, norms, buffers, ties, the order of registration, names that differ
between module and checkpoint.  What the rules of `jaxmerge.io.architectures` find without a table
is left out of it.

NOTES.jsonl holds a line for each type, so a run that was stopped goes on; --write makes the table.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import zoo
from transformers.pytorch_utils import Conv1D

from jaxmerge.io.architectures.architecture import Architecture
from jaxmerge.io.architectures.names import numbers, template
from jaxmerge.io.architectures.roles import POSITIONS
from jaxmerge.io.architectures.table import Known
from jaxmerge.io.safetensors import Like

COUNTS = re.compile(
    r"layer|depth|block|expert|stage|repeat|stack|level|codebook|^n_|^num_|_num_|cells"
)
NO_COUNT = re.compile(
    r"head|_tok|top_?k|label|channel|token|patch|size|freq|period|offset|mel|bins|step|beams"
)
TABLE = Path(str(resources.files("jaxmerge.io.architectures") / "families.json"))
TABLES = ("embedding", "position", "table")
LEARNT = re.compile(  # buffers that training changes: statistics, codebooks, balances of experts
    r"running_|embed|cluster|bias|codebook|usage|queue|_(min|max)$|scaling_factor|_integer|^weight"
    r"|_scalar$|^shift$|mask_probs|^(global_)?(mean|invstd)$|^scale$|inited"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("notes", type=Path)
    parser.add_argument("--types", nargs="*")
    parser.add_argument("--part", default="0/1", help="this part of the types, as 0/2 and 1/2")
    parser.add_argument("--write", action="store_true")
    parser.add_argument(
        "--roles", action="store_true", help="after a change of the rules for roles"
    )
    args = parser.parse_args()
    table = stored_table() if args.roles else {}
    if args.write:
        write(args.notes)
        return
    done = {n["type"] for n in notes(args.notes)}
    part, parts = map(int, args.part.split("/"))
    for model_type in (args.types or [*table] or zoo.types())[part::parts]:
        if model_type in done:
            continue
        try:
            known = table.get(model_type, {})
            facts = {**known, "roles": roles_of(model_type)} if known else facts_of(model_type)
            note = {"type": model_type, "facts": facts}
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:160]
            note = {"type": model_type, "error": f"{type(error).__name__}: {reason}"}
        with open(args.notes, "a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")


def notes(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of notes."""
    return [json.loads(s) for s in path.read_text().splitlines()] if path.exists() else []


def stored_table() -> dict[str, dict]:
    """Model type -> its entry in the table as it is."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {t: table["entries"][i] for t, i in table["families"].items()}


def write(path: Path) -> None:
    """The table of all notes, equal entries once."""
    entries: list[dict] = []
    families = {}
    for note in sorted(notes(path), key=lambda n: n["type"]):
        if "facts" not in note:
            continue
        facts = {k: v for k, v in note["facts"].items() if v and k != "always"}
        if facts not in entries:
            entries.append(facts)
        families[note["type"]] = entries.index(facts)
    import transformers

    out = {"transformers": transformers.__version__, "families": families, "entries": entries}
    lines = [
        f'{{"transformers": "{out["transformers"]}",',
        f'"families": {json.dumps(families, separators=(",", ":"))},',
        '"entries": [',
        ",\n".join(json.dumps(e, separators=(",", ":")) for e in entries),
        "]}",
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{TABLE}: {len(families)} families, {len(entries)} entries")


def facts_of(model_type: str) -> dict[str, Any]:
    """What the modules of one type say."""
    config = zoo.config_of(model_type, factors=(1,), most=10**15)
    model = zoo.build(model_type, config)
    first = {n: tuple(t.shape) for n, t in zoo.checkpoint(model).items()}
    dtypes = {n: str(t.dtype).removeprefix("torch.") for n, t in zoo.checkpoint(model).items()}
    stacks, others, grows = counted(model_type, config, first)
    like = {n: Like(s, _numpy(dtypes[n])) for n, s in first.items()}
    guess = Architecture(like, {**config, "model_type": ""})
    truth, transposed = module_roles(model, token_leaves(model_type, config, first))
    roles = departures(truth, guess)
    paths = {s.path for s in guess.stacks}
    stages = {p for p in stacks if p not in paths and any(q.startswith(f"{p}.*") for q in stacks)}
    stacks = {p: key for p, key in stacks.items() if p not in stages}
    others |= {p for p in paths if p not in stacks}
    ties, always = tied(model_type, config)
    return {
        "stacks": {k: ".".join(map(str, v)) for k, v in sorted(stacks.items())},
        "others": sorted(others),
        "roles": roles,
        "ties": ties,
        "always": always,
        "transposed": sorted({template(n) for n in transposed}),
        "early": early(model, guess, stacks),
        "grows": sorted({template(n) for n in grows}),
        "frozen": frozen(model_type, config),
        "renames": renames(model),
    }


def roles_of(model_type: str) -> dict[str, str]:
    """The roles of one type that the rules do not find."""
    config = zoo.config_of(model_type, factors=(1,), most=10**15)
    model = zoo.build(model_type, config)
    leaves = zoo.checkpoint(model)
    first = {n: tuple(t.shape) for n, t in leaves.items()}
    like = {
        n: Like(first[n], _numpy(str(t.dtype).removeprefix("torch."))) for n, t in leaves.items()
    }
    truth, _ = module_roles(model, token_leaves(model_type, config, first))
    return departures(truth, Architecture(like, {**config, "model_type": ""}))


def departures(truth: dict[str, str], guess: Architecture) -> dict[str, str]:
    """Template -> role, where modules say another one than the rules.

    Of families in the table sizes alone decide nothing.
    """
    rules, roles = Architecture(guess.like, guess.config), {}
    rules.known = Known()
    for name, role in truth.items():
        if name not in rules.like:  # a copy of a tied array
            continue
        guessed = rules.role(name)
        if role == "a table":
            spare = "position" if POSITIONS.search(name) else "table"
            role = guessed if guessed in TABLES[1:] else spare
        if role == "not a convolution":
            role = "kernel" if guessed == "convolution" else guessed
        if not (role == "kernel" and guessed == "router") and guessed != role:
            roles[template(name)] = role
    return roles


def _numpy(dtype: str) -> Any:
    import ml_dtypes
    import numpy as np

    return (
        np.dtype(getattr(ml_dtypes, dtype, dtype))
        if dtype != "bfloat16"
        else np.dtype(ml_dtypes.bfloat16)
    )


def counted(model_type: str, config: dict, first: dict) -> tuple[dict, set, set]:
    """Containers of layers with the path of their count, other containers, leaves that grow."""
    stacks: dict[str, tuple] = {}
    others, grows = set(), set()
    seen = {(n.container, _values(name, n)) for name in first for n in numbers(name)}
    for path, value in zoo.ints(config):
        key = zoo.word(path)
        where = path[:-1] if isinstance(path[-1], int) else path  # stages: the whole list
        if not 1 <= value <= 64 or not COUNTS.search(key) or NO_COUNT.search(key):
            continue
        second = raised(model_type, config, path, first)
        if second is None:
            continue
        layers = not re.search(r"expert|codebook|level|group", key)
        for name in second.keys() - first.keys():
            new = [n for n in numbers(name) if (n.container, _values(name, n)) not in seen]
            if not new:
                continue
            inner = sum(1 for n in second if n.startswith(name[: new[0].stop])) > 1
            if layers and inner and "expert" not in new[0].container.rsplit(".", 1)[-1]:
                if new[0].container not in stacks or len(where) < len(stacks[new[0].container]):
                    stacks[new[0].container] = where
            elif new[0].container not in stacks:
                others.add(new[0].container)
        if layers and second.keys() - first.keys():
            grows |= {n for n in first if n in second and first[n] != second[n]}
    return stacks, others - set(stacks), grows


def _values(name: str, number: Any) -> tuple[int, ...]:
    return tuple(n.value for n in numbers(name) if n.stop <= number.stop)


def raised(model_type: str, config: dict, path: tuple, first: dict) -> dict | None:
    """The leaves with one more of what the key counts; None where no such model is built."""
    value = config
    for key in path:
        value = value[key]
    more = zoo.put(config, path, value + 1)
    tries = [more]
    here = more
    for key in path[:-1]:
        here = here[key]
    if isinstance(here, dict):
        longer = {
            k: [*v, v[-1]] for k, v in here.items() if isinstance(v, list) and len(v) == value
        }
        if longer:
            tries.append(
                zoo.put(config, path[:-1], {**here, **longer}) if path[:-1] else {**more, **longer}
            )
        shorter = {k: v for k, v in here.items() if k not in longer}
        tries.append(zoo.put(config, path[:-1], shorter) if path[:-1] else shorter)
        if here.get("num_hidden_layers") == value:  # another word for this one
            both = {**here, "num_hidden_layers": value + 1}
            tries.append(zoo.put(config, path[:-1], both) if path[:-1] else both)
    shapes = None
    for config in tries:
        try:
            shapes = zoo.shapes_of(model_type, config)
        except Exception:
            continue
        if shapes.keys() != first.keys():
            return shapes
    return shapes


def token_leaves(model_type: str, config: dict, first: dict) -> set[str]:
    """Leaves with a row, or a column, for every token of a vocabulary."""
    out: set[str] = set()
    for path, value in zoo.ints(config):
        if "vocab" in zoo.word(path) and "type_vocab" not in zoo.word(path) and value > 1:
            try:
                second = zoo.shapes_of(model_type, zoo.put(config, path, value + 1))
            except Exception:
                continue
            out |= {n for n, s in first.items() if n in second and _one_more(s, second[n])}
    return out


def _one_more(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether a row was added, or a column of a matrix."""
    if not first or not second:
        return False
    column = len(first) == len(second) == 2 and min(first) > 1 and second[1] == first[1] + 1
    return second[0] == first[0] + 1 or column


def module_roles(model: torch.nn.Module, tokens: set[str]) -> tuple[dict[str, str], set[str]]:
    """Stored name -> role as far as its module says it, and the kernels stored [in, out]."""
    names, roles, transposed = zoo.stored(model), {}, set()
    for at, module in model.named_modules():
        kind = type(module).__name__
        for part, buffer in module.named_buffers(recurse=False):
            name = names.get(f"{at}.{part}" if at else part)
            if name in tokens:  # of integers: a row for every token
                roles[name] = "embedding"
            elif name is not None and buffer.is_floating_point() and not LEARNT.search(part):
                roles[name] = "buffer"
        for part, parameter in module.named_parameters(recurse=False):
            name = names.get(f"{at}.{part}" if at else part)
            if name is None:
                continue
            if name in tokens:
                roles[name] = "embedding" if isinstance(module, torch.nn.Embedding) else "head"
            elif isinstance(module, torch.nn.Embedding):
                roles[name] = "a table"
            elif isinstance(module, torch.nn.Linear | Conv1D):
                roles[name] = "kernel" if part == "weight" else "bias"
                if isinstance(module, Conv1D) and part == "weight":
                    transposed.add(name)
            elif "Norm" in kind and part in ("weight", "bias"):
                roles[name] = "norm"
            elif re.fullmatch(r"Conv\dd|ConvTranspose\dd", kind) and part == "weight":
                roles[name] = "convolution"
            elif parameter.ndim == 3 and "Conv" not in kind:
                roles[name] = "not a convolution"
    return roles, transposed


def tied(model_type: str, config: dict) -> tuple[list, list]:
    """Groups of stored names that are one array: where the config ties, and where it does not."""
    out = []
    for tie in (True, False):
        try:
            model = zoo.build(model_type, with_ties(config, tie))
            names = zoo.stored(model)
            groups: dict[str, list[str]] = {}
            for copy, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
                groups.setdefault(source, [source]).append(copy)
            out.append(
                sorted({tuple(template(names.get(n, n)) for n in g) for g in groups.values()})
            )
        except Exception:
            out.append([])
    return [list(g) for g in out[0]], [list(g) for g in out[1]]


def with_ties(config: dict, tie: bool) -> dict:
    """The config with every word on ties set."""
    new = {k: with_ties(v, tie) if isinstance(v, dict) else v for k, v in config.items()}
    return {k: tie if k == "tie_word_embeddings" else v for k, v in new.items()} | (
        {"tie_word_embeddings": tie}
    )


def early(model: torch.nn.Module, guess: Architecture, stacks: dict) -> list[str]:
    """Leaves registered before the layers, which no rule takes for early."""
    names = zoo.stored(model)
    order = [names[n] for n in model.state_dict() if n in names]
    main = {s.path for s in guess.main()} | {p for p in stacks if guess.tower(p) == "text"}
    at = next((i for i, n in enumerate(order) if any(x.container in main for x in numbers(n))), 0)
    before = [n for n in order[:at] if n in guess.like and not numbers(n) and not guess.early(n)]
    return sorted(set(map(template, before)))


def frozen(model_type: str, config: dict) -> list[str]:
    """Modules of several parameters that the model itself never trains.

    Not what a config freezes of a part (``freeze_text_layers``), which fine-tunes often thaw.  A
    lone parameter without gradient may be a constant, or what training sets by other rules
    (balances of experts).
    """
    model = zoo.build(model_type, thawed(config))
    names, out = zoo.stored(model), []
    for at, module in model.named_modules():
        parameters = [n for n, _ in module.named_parameters(at)]
        still = not any(p.requires_grad for p in module.parameters())
        if still and len(parameters) > 1 and not any(at.startswith(f"{o}.") for o in out):
            out.append(at)
    here = lambda at: [names[n] for n in names if n.startswith(f"{at}.")]
    return sorted({prefix for at in out if (prefix := _common([template(n) for n in here(at)]))})


def thawed(config: dict) -> dict:
    """The config with no part frozen by its own words."""
    return {
        k: thawed(v)
        if isinstance(v, dict)
        else False
        if k.startswith("freeze_") and v is True
        else v
        for k, v in config.items()
    }


def _common(paths: list[str]) -> str:
    """The segments with which all paths begin."""
    parts = [p.split(".") for p in paths]
    same = [set(column) for column in zip(*parts, strict=False)]
    return ".".join(next(iter(s)) for s in itertools.takewhile(lambda s: len(s) == 1, same))


def renames(model: torch.nn.Module) -> dict[str, str]:
    """Prefix in the module -> prefix in the checkpoint, where they differ.

    Numbers that both have are stars, others stay (``mlp.layers.0`` is ``fc1``); where one prefix
    becomes two, the second is written out further.
    """
    out: dict[str, str] = {}
    for a, b in zoo.stored(model).items():
        left, right = _starred(a, b)
        behind = []
        while left and right and left[-1] == right[-1]:
            behind.append(left.pop())
            right.pop()
        if left == right:
            continue
        while behind and out.get(".".join(left), ".".join(right)) != ".".join(right):
            left, right = [*left, behind[-1]], [*right, behind.pop()]
        out[".".join(left)] = ".".join(right)
    return dict(sorted(out.items()))


def _starred(a: str, b: str) -> tuple[list[str], list[str]]:
    """The segments of two names, with stars for the numbers that they share."""
    parts = a.split("."), b.split(".")
    at = [[i for i, part in enumerate(p) if part.isdigit()] for p in parts]
    values = [[p[i] for i in shared] for p, shared in zip(parts, at, strict=True)]
    for i, j, size in difflib.SequenceMatcher(None, *values, autojunk=False).get_matching_blocks():
        for k in range(size):
            parts[0][at[0][i + k]] = parts[1][at[1][j + k]] = "*"
    return parts


if __name__ == "__main__":
    main()
