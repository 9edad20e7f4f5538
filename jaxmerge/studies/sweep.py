"""Sweeps: a grid of settings, cut into units of work that share one training.

The axes ``method`` and ``factor`` cost no training: all methods are folds over the same models, all
factors of a method are merged and evaluated together.  So does every other setting of a merge, by
its own name (``density``, for the methods that take one) or of one merge alone
(``merges.TIES.density``).  ``stream`` chooses among the experiment's streams; ``seed``, ``order``
and every other setting make units of their own.  A unit is a run with one seed; its cells are
known by name before it runs (`jaxmerge.studies.cells.key`), so what a store holds already is left
out.

    axes = parse(["seed=0,1,2", "method=magmax,ties", "factor=0.1:1.0:0.1"])
    for unit in units(experiment, axes, done=keys_in_the_store): ...
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxmerge.continual.deploys import LAST
from jaxmerge.core.registry import REGISTRY, get
from jaxmerge.errors import closest, not_known
from jaxmerge.studies import cells
from jaxmerge.studies.config import Experiment
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.settings import changed, parsed, restored

MERGING = ("method", "factor", "stream")  # axes that change no training


@dataclasses.dataclass(frozen=True)
class Unit:
    """One training run of a sweep: an experiment with one seed, and the cells it will give.

    >>> from jaxmerge.data.digits import digits
    >>> class Toy(Experiment):
    ...     scenario = learner = lambda self, x: None
    >>> unit = units(Toy(seeds=1), parse(["method=magmax factor=0.5 stream=sequential"]))[0]
    >>> len(unit.cells), len(unit.name)
    (2, 16)
    """

    experiment: Experiment
    cells: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its files."""
        return hashlib.sha256(" ".join(sorted(self.cells)).encode()).hexdigest()[:16]


def parse(grid: Sequence[str]) -> dict[str, list[Any]]:
    """``key=value,value`` pairs as axes; values are YAML, ``low:high:step`` is a range.

    No settings library reads this grammar; the values are checked as settings are, by `units`.

    Args:
        grid: texts of one pair or several.

    Raises:
        ValueError: no key=value, an axis without values or given twice.

    >>> parse(["seed=0,1", "factor=0.2:0.6:0.2 method=magmax,ties"])
    {'seed': [0, 1], 'factor': [0.2, 0.4, 0.6], 'method': ['magmax', 'ties']}
    """
    axes: dict[str, list[Any]] = {}
    for pair in (p for text in grid for p in text.split()):
        name, sign, values = pair.partition("=")
        if not sign or not name or not values:
            raise ValueError(f"--grid takes key=value,value, got {pair!r}.")
        if name in axes:
            raise ValueError(f"--grid has the axis {name!r} twice; give all its values at once.")
        axes[name] = [v for text in _split(values) for v in _values(name, text)]
    return axes


def _split(values: str) -> list[str]:
    """At commas outside brackets.

    >>> _split("[1,2],3")
    ['[1,2]', '3']
    """
    return re.findall(r"(?:\[[^\]]*\]|\{[^}]*\}|[^,\[{])+", values)


def _values(name: str, text: str) -> list[Any]:
    number = r"[-+0-9.eE]+"
    if re.fullmatch(f"{number}:{number}:{number}", text):
        try:
            low, high, step = (float(x) for x in text.split(":"))
        except ValueError:
            raise ValueError(f"--grid {name}: {text!r} is no range low:high:step.") from None
        if step <= 0 or high < low:
            raise ValueError(f"--grid {name}: the range {text} is empty; give low:high:step.")
        whole = all(x == int(x) for x in (low, high, step))
        values = [round(low + i * step, 12) for i in range(round((high - low) / step + 1e-9) + 1)]
        values = [x for x in values if x <= high + 1e-9]
        return [int(x) for x in values] if whole and "." not in text else values
    return [parsed(f"--grid {name}", text)]


def units(
    experiment: Experiment, axes: Mapping[str, Sequence[Any]], done: Collection[str] = ()
) -> list[Unit]:
    """The runs of a sweep that are left.

    Args:
        experiment: whose settings the axes change.
        axes: name -> values, as `parse` gives them.
        done: keys of cells that exist; streams and merges without a cell left are taken out.

    Raises:
        ValueError: an unknown axis, method or stream, a value of a wrong type.

    >>> class Toy(Experiment):
    ...     scenario = learner = lambda self, x: None
    >>> axes = parse(["seed=0,1 epochs=1,2 method=magmax,ties"])
    >>> len(units(Toy(), axes))  # methods share a training
    4
    """
    _check_names(experiment, axes)
    base = _with_merges(experiment, axes)
    merging = {*MERGING, *_merge_axes(experiment, axes)}
    training = {k: v for k, v in axes.items() if k not in merging}
    training.setdefault("seed", range(base.seed, base.seed + base.seeds))
    names = [n for n in training if n != "seed"] + ["seed"]  # seeds last: they share compiled code
    result = []
    for values in itertools.product(*(training[n] for n in names)):
        settings: dict[str, Any] = {"seeds": 1}
        for name, value in zip(names, values, strict=True):
            place = settings
            *outer, inner = name.split(".")
            for part in outer:
                place = place.setdefault(part, {})
            place[inner] = value
        one = changed(base, settings)
        one.check()
        unit = left(one, done)
        if unit is not None:
            result.append(unit)
    return result


def _with_merges(experiment: Experiment, axes: Mapping[str, Sequence[Any]]) -> Experiment:
    """The experiment with the methods, factors and streams of a grid."""
    streams, merges = dict(experiment.streams), dict(experiment.merges)
    baselines = list(experiment.baselines)
    for name, options in streams.items():  # by name, for its place among the merges may change
        if (merge := cells.read_by(options)) is not None:
            streams[name] = {**options, "running": merge}
    if "stream" in axes:
        known = [*streams, *baselines]
        for name in axes["stream"]:
            if name not in known:
                raise ValueError(f"no stream is named {name!r}: {closest(str(name), known)}")
        streams = {k: v for k, v in streams.items() if k in axes["stream"]}
        baselines = [b for b in baselines if b in axes["stream"]]
    if "method" in axes:
        known = [*merges, *REGISTRY]
        for name in axes["method"]:
            if name not in known:
                raise ValueError(f"no method is named {name!r}: {closest(str(name), known)}")
        for name, options in streams.items():
            own = options.get("deploys", [LAST.label])
            if any(d != LAST.label for d in own):
                fixed = [d for d in own if d == LAST.label or d == options.get("running")]
                more = [m for m in axes["method"] if m not in fixed]
                streams[name] = {**options, "deploys": [*fixed, *more]}
        merges = {m: merges.get(m, {"method": m, "always": False}) for m in axes["method"]} | {
            m: options
            for m, options in merges.items()
            if any(m in s.get("deploys", ()) for s in streams.values())
        }
    if "factor" in axes:
        running = {s.get("running") for s in streams.values()}
        wrong = [f for f in axes["factor"] if isinstance(f, bool) or not isinstance(f, int | float)]
        if wrong:
            raise ValueError(
                f"--grid factor: {', '.join(map(repr, wrong))}: no number; give numbers like "
                "0.3,0.5 or a range low:high:step like 0.1:1:0.1."
            )
        factors = [float(f) for f in axes["factor"]]
        merges = {
            m: {**options, "factor": factors, "each": True}
            if m not in running and _takes_factor(options)
            else options
            for m, options in merges.items()
        }
    for name, key in _merge_axes(experiment, axes).items():
        takes = [
            m
            for m, options in merges.items()
            if name in (key, f"merges.{m}.{key}") and _takes(options, key)
        ]
        merges, streams = _spread(merges, streams, takes, key, axes[name])
    settings = {"streams": streams, "merges": merges, "baselines": baselines}
    return restored(experiment, settings)


def _merge_axes(experiment: Experiment, axes: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Axis -> the setting of merges that it is; those of merges that training reads are not in."""
    read = {cells.read_by(options) for options in experiment.streams.values()}
    fields = {f.name for f in dataclasses.fields(experiment)}
    chosen = [{"method": m} for m in axes.get("method", ())]
    merges = [*experiment.merges.values(), *chosen]
    found = {}
    for name in axes:
        first, _, rest = name.partition(".")
        label, _, key = rest.rpartition(".")
        if first == "merges" and label in experiment.merges and key and label not in read:
            if _takes(experiment.merges[label], key):
                found[name] = key
        elif name not in {*fields, *MERGING} and any(_takes(o, name) for o in merges):
            found[name] = name
    return found


def _check_names(experiment: Experiment, axes: Mapping[str, Sequence[Any]]) -> None:
    """Raise ValueError for axes that are settings neither of the experiment nor of its merges."""
    fields = {f.name for f in dataclasses.fields(experiment)}
    merges = [*experiment.merges.values(), *({"method": m} for m in axes.get("method", ()))]
    known = {*fields, *MERGING, *(name for options in merges for name in _settings(options))}
    if unknown := [n for n in axes if n.partition(".")[0] not in known]:
        raise ValueError(not_known(unknown, known, "No setting "))


def _takes(options: Mapping[str, Any], key: str) -> bool:
    """Whether a merge has a setting of that name."""
    return key in _settings(options)


def _settings(options: Mapping[str, Any]) -> Collection[str]:
    """The names of a merge's settings; none of what is no merge by name."""
    method = options.get("method")
    if not isinstance(method, str) or method not in REGISTRY:
        return ()
    return inspect.signature(get(method)).parameters


def _spread(
    merges: dict[str, Any], streams: dict[str, Any], labels: Sequence[str], key: str,
    values: Sequence[Any],
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Merges with a row of their own for every value of a setting, in the streams that had them."""
    rows = {m: {f"{m}, {key} {v}": {**merges[m], key: v} for v in values} for m in labels}
    merges = {n: o for m, options in merges.items() for n, o in rows.get(m, {m: options}).items()}
    for name, options in streams.items():
        if "deploys" in options:
            deploys = [n for m in options["deploys"] for n in rows.get(m, [m])]
            streams = {**streams, name: {**options, "deploys": deploys}}
    return merges, streams


def _takes_factor(options: Mapping[str, Any]) -> bool:
    method = options.get("method")
    if isinstance(method, list):
        return True
    if not isinstance(method, str) or method not in REGISTRY:
        return False
    return "factor" in inspect.signature(get(method)).parameters


def expected(experiment: Experiment) -> dict[tuple[str, str, float | None], str]:
    """(stream, merge, fixed factor) -> key of every cell that a run with one seed gives."""
    recipe = to_plain(experiment)
    ends = {"zero-shot": "none", "joint": "joint"}
    rows = [(ends[b], b, None) for b in experiment.baselines]
    for plan in experiment.plans():
        for label in experiment.streams[plan.name].get("deploys", [LAST.label]):
            options = experiment.merges.get(label, {})
            factor = options.get("factor")
            factors = factor if isinstance(factor, list) else [factor]
            rows += [(plan.name, label, f) for f in (factors if options.get("each") else [None])]
    return {row: cells.key(experiment.name, recipe, *row) for row in rows}


def left(experiment: Experiment, done: Collection[str]) -> Unit | None:
    """The experiment without the cells that are done; None where nothing is left."""
    rest = {row: k for row, k in expected(experiment).items() if k not in done}
    if not rest:
        return None
    streams = {}
    for name, options in experiment.streams.items():
        need = {merge for stream, merge, _ in rest if stream == name}
        if need:
            need.add(options.get("running", ""))
            own = options.get("deploys", [LAST.label])
            streams[name] = {**options, "deploys": [d for d in own if d in need]}
    baselines = [b for b in experiment.baselines if any(merge == b for _, merge, _ in rest)]
    cut = restored(experiment, {"streams": streams, "baselines": baselines})
    return Unit(cut, tuple(sorted(rest.values())))
