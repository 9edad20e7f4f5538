"""Sentences computed from the numbers of a run: titles and captions that claim what was measured.

A comparison says by how much, and in how many of the seeds; nothing is said about what was not
measured.  Every function takes `Results` and returns plain text (escape it for your format).
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxmerge.report.numbers import (
    CONSTANT,
    JOINT,
    LAST,
    ZERO,
    Name,
    best,
    differences,
    entries,
    hero,
    mean_matrix,
    mean_row,
    median,
    merges,
    names,
    other_ways,
    stat,
)
from jaxmerge.studies.results import Results, Stat, Vectors


def percent(x: float, digits: int = 1) -> str:
    """A fraction as percent: 0.8123 -> "81.2 %", with a no-break space."""
    return f"{100 * x:.{digits}f}\u00a0%"


def title_of(name: Name, both: bool = True) -> str:
    """ "MagMax (sequential)"; without the brackets where the fine-tunes go without saying."""
    label, finetunes = name
    plain = not both or finetunes in CONSTANT or name == LAST
    return label if plain else f"{label} ({finetunes})"


def versus(results: Results, a: Name, b: Name, metric: str = "accuracy") -> str:
    """ "6.0 points above the last model (in 3 of 3 seeds)", or "" if one was not measured."""
    gaps = differences(results, a, b, metric)
    if not gaps:
        return ""
    mean = sum(gaps) / len(gaps)
    if round(abs(mean), 3) == 0:
        return f"level with {_the(b)}"
    same = sum(d * mean > 0 for d in gaps)
    seeds = f" (in {same} of {len(gaps)} seeds)" if len(gaps) > 1 else ""
    side = "above" if mean > 0 else "below"
    return f"{100 * abs(mean):.1f}\u00a0points {side} {_the(b)}{seeds}"


def _the(name: Name, both: bool = True) -> str:
    known = {JOINT: "joint fine-tuning", ZERO: "the zero-shot model", LAST: "the last model"}
    return known.get(name, title_of(name, both))


def value(figure: Stat) -> str:
    """ "81.2 %", with "± 0.6" if there is more than one seed."""
    return percent(figure.mean) + (f" ±\u00a0{100 * figure.std:.1f}" if figure.n > 1 else "")


def headline(results: Results) -> str:
    """What came out, in a few sentences."""
    first = hero(results)
    score = stat(results, first) if first else None
    if first is None or score is None:
        return "No merge was measured in this run."
    seeds = f" over {score.n} seeds" if score.n > 1 else " (one seed)"
    text = f"{title_of(first)} ends at {value(score)}{seeds}"
    against = versus(results, first, LAST)
    text += f", {against}." if against else "."
    top = best(results)
    highest = stat(results, top) if top else None
    if top and highest and round(highest.mean - score.mean, 3) > 0:
        text += f" The best merge is {title_of(top)} with {value(highest)}."
    elif top and len(merges(results)) > 1:
        text += " No other merge here has a higher mean."
    others = [(n, s) for n in other_ways(results) if (s := stat(results, n))]
    if higher := [(n, s) for n, s in others if round(s.mean - score.mean, 3) > 0]:
        said = " and ".join(f"{n[1]} with {value(s)}" for n, s in higher)
        text += f" Higher without a merge: {said}."
    ends = [
        f"{_the(n)} {'has' if n == ZERO else 'reaches'} {value(s)}"
        for n in (ZERO, JOINT)
        if (s := stat(results, n))
    ]
    if ends:
        text += " " + sentence(" and ".join(ends))
    untrained = versus(results, first, ZERO)
    if "below" in untrained:  # a merge that does harm is no detail
        text += f" {title_of(first)} is {untrained}."
    return text


def lesson(results: Results) -> str:
    """What a reader should take away, in two sentences: forgetting, and what merging did about it.

    Forgetting is the backward transfer, over all earlier tasks. Empty where the run has no
    sequential last model, no merge that is deployed after every task, or one task only.
    """
    first = hero(results)
    last, ours = (stat(results, n, "bwt") if n else None for n in (LAST, first))
    if first is None or last is None or ours is None:
        return ""
    ours_is, last_is = title_of(first, both=False), _changed(last.mean)
    text = (
        f"On an earlier task the last model ends {last_is} when it had just learnt it, {ours_is}, "
        f"merged after every task, {_changed(ours.mean)} then (means over these tasks)."
    )
    both = " and ".join(t for n in (LAST, ZERO) if (t := versus(results, first, n)))
    return text + (f" Over all classes {ours_is} ends {both}." if both else "")


def _changed(points: float) -> str:
    """ "13.9 points worse than": a backward transfer in words."""
    if round(abs(points), 3) == 0:
        return "as good as"
    return f"{100 * abs(points):.1f}\u00a0points {'better' if points > 0 else 'worse'} than"


def first_task(results: Results, name: Name) -> list[float | None]:
    """Mean over seeds of the accuracy on the first task after every task."""
    matrix = mean_matrix([e.matrix for e in entries(results, name)])
    return [row[0] if row else None for row in matrix]


def first_task_words(results: Results) -> tuple[str, str]:
    """Title and caption of the accuracy on the first task while later ones are learnt."""
    first = hero(results)
    title, caption = "The first task, while later ones are learnt", ""
    if first is None or first == LAST:
        return title, caption
    ours, last, zero = (first_task(results, n) or [None] for n in (first, LAST, ZERO))
    merged, learnt, left, start = ours[-1], last[0], last[-1], zero[0]
    if merged is None or learnt is None or left is None:
        return title, caption
    title = (
        f"After all tasks {title_of(first, both=False)} has {percent(merged, 0)} of the first one "
        f"right, the last model {percent(left, 0)}"
    )
    caption = f"The last model had {percent(learnt)} right when it had just learnt it"
    caption += "." if start is None else f", the zero-shot model has {percent(start)}."
    return title, caption


def overview_title(results: Results) -> str:
    """Title of the overview."""
    first = hero(results)
    against = versus(results, first, LAST) if first else ""
    if first is None or not against:
        return "Accuracy after the last task"
    return f"{title_of(first, both=False)} ends {against}"


def overview_caption(results: Results) -> str:
    """Caption of the overview: where the merges of each set of fine-tunes end."""
    kinds: dict[str, list[float]] = {}
    for name in merges(results):
        accuracy = stat(results, name)
        if accuracy is not None:
            kinds.setdefault(name[1], []).append(accuracy.mean)
    parts = [
        f"{kind} fine-tunes from {percent(min(v))} to {percent(max(v))}"
        for kind, v in kinds.items()
        if len(v) > 1
    ]
    n = max((s.n for r in results.summary if (s := r.metrics.get("accuracy"))), default=0)
    spread = f"Whiskers: one standard deviation over {n} seeds." if n > 1 else ""
    ends = f"Merges of {' and of '.join(parts)}. " if parts else ""
    return (ends + spread).strip()


def over_time(results: Results, shown: Sequence[Name]) -> tuple[str, str]:
    """Title and caption of accuracy over tasks."""
    first = next((n for n in (hero(results), *shown) if n in shown), None)
    if first is None:
        return "Accuracy on the tasks seen so far", ""
    ends = {n: mean_row([e.over_time for e in entries(results, n)]) for n in shown}
    start, end = ends[first][0], ends[first][-1]
    title = "Accuracy on the tasks seen so far"
    caption = ""
    if start is not None and end is not None:
        caption = (
            f"{title_of(first)} goes from {percent(start)} after the first task to "
            f"{percent(end)} after the last"
        )
        before, after = (ends[LAST][0], ends[LAST][-1]) if LAST in shown else (None, None)
        if first != LAST and before is not None and after is not None:
            caption += f", the last model from {percent(before)} to {percent(after)}"
            title = f"{title_of(first, both=False)} {_ahead(ends[first], ends[LAST])}"
        caption += "."
    n = len(results.seeds)
    banded = [title_of(name) for name in bands(results) if name in shown]
    if n > 1 and banded:
        caption += f" Bands ({', '.join(banded)}): one standard deviation over {n} seeds,"
        caption += " whose tasks differ in order and difficulty."
    return title, caption


def _ahead(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    """ "is above the last model after task 2 and all later ones"; differences as far as shown."""
    gaps = [0.0 if a is None or b is None else a - b for a, b in zip(ours, theirs, strict=True)]
    if round(abs(gaps[-1]), 3) == 0:
        return "ends level with the last model"
    side = 1 if gaps[-1] > 0 else -1
    tasks = [t for t, gap in enumerate(gaps, 1) if round(side * gap, 3) > 0]
    side_word = "above" if side > 0 else "below"
    return f"is {side_word} the last model after {_tasks(tasks, len(gaps))}"


def bands(results: Results) -> list[Name]:
    """The lines that show their spread; with all of them nothing could be seen."""
    return [name for name in (hero(results), LAST) if name in names(results)]


def _tasks(ahead: list[int], n: int) -> str:
    if len(ahead) == n:
        return "every task"
    missing = [t for t in range(1, n + 1) if t not in ahead]
    if ahead == list(range(ahead[0], n + 1)) and len(ahead) > 1:
        return f"task {ahead[0]} and all later ones"
    if len(missing) < len(ahead):
        return f"every task but {_numbered(missing)}"
    return f"{_numbered(ahead)} only"


def _numbered(tasks: Sequence[int]) -> str:
    """ "task 2", "tasks 2, 4 and 5"."""
    *first, last = map(str, tasks)
    return f"tasks {', '.join(first)} and {last}" if first else f"task {last}"


def forgetting(results: Results, shown: Sequence[Name]) -> tuple[str, str]:
    """Title and caption of the accuracy matrices."""
    parts, first_task = [], []
    for name in shown:
        matrix = mean_matrix([e.matrix for e in entries(results, name)])
        lost = stat(results, name, "bwt")
        if lost is not None:
            change = (
                f"{'loses' if lost.mean < 0 else 'gains'} {100 * abs(lost.mean):.1f}\u00a0points"
            )
            change = "stays level" if round(abs(lost.mean), 3) == 0 else change
            parts.append(f"{_the(name, both=False)} {change}")
        if len(matrix) > 1 and matrix[0][0] is not None and matrix[-1][0] is not None:
            first_task.append(
                f"{title_of(name)} {percent(matrix[0][0], 0)} when just learnt, "
                f"{percent(matrix[-1][0], 0)} at the end"
            )
    title = f"On earlier tasks {', '.join(parts)}" if parts else "Accuracy by task"
    caption = "Read down a column to see what becomes of a task; below the steps it is learnt."
    if first_task:
        caption += f" First task: {'; '.join(first_task)}."
    return title, caption


def factors(results: Results, shown: Sequence[Name]) -> tuple[str, str]:
    """Title and caption of the validation curves."""
    groups: dict[str, list[str]] = {}
    short: dict[Name, str] = {}
    for name in shown:
        chosen = sorted(e.sweep.chosen for e in entries(results, name) if e.sweep)
        if chosen:
            span = f"{chosen[0]:g}" if chosen[0] == chosen[-1] else f"{chosen[0]:g}–{chosen[-1]:g}"
            groups.setdefault(name[1], []).append(f"{name[0]} {span}")
            short[name] = span
    first = hero(results)
    title = "The factor is chosen on the validation split"
    if first is not None and first in short:
        ours = [e.sweep for e in entries(results, first) if e.sweep]
        if all(len(set(s.accuracy)) == 1 for s in ours):
            title = f"{title_of(first, both=False)} does equally well on validation at every factor"
        else:
            title = f"{title_of(first, both=False)} does best on validation at a factor of "
            title += short[first].replace("–", " to ")
    parts = [f"{kind}: {', '.join(texts)}" for kind, texts in groups.items()]
    rings = "ringed, one ring a seed" if len(results.seeds) > 1 else "ringed"
    return title, f"Chosen factors ({rings}), {'; '.join(parts)}."


def pairs(vectors: Sequence[Vectors], what: str) -> tuple[str, str]:
    """Title and caption of a picture of `what`: "cosine" or "sign_agreement"."""
    means, spans = [], []
    for v in vectors:
        matrix = getattr(v, what)
        off = [x for a, row in enumerate(matrix) for b, x in enumerate(row) if a != b]
        off = [x for x in off if x is not None]
        if off:
            mean = sum(off) / len(off)
            show = (
                (lambda x: f"{x:.2f}".replace("-", "−"))
                if what == "cosine"
                else (lambda x: percent(x, 0))
            )
            means.append(f"{v.finetunes} {show(mean)}")
            spans.append(f"{v.finetunes} {show(min(off))} to {show(max(off))}")
    known = {"cosine": "Cosine of two task vectors", "sign_agreement": "Entries with the same sign"}
    title = f"{known[what]}: {', '.join(means)}" if means else known[what]
    rest = {
        "cosine": "1 is the same direction, 0 a right angle.",
        "sign_agreement": "Of entries that are non-zero in both; chance gives 50 %.",
    }
    return title, f"Between different tasks, {'; '.join(spans)}. {rest[what]}" if spans else ""


def magnitudes(vectors: Sequence[Vectors]) -> tuple[str, str]:
    """Title and caption of the distribution of magnitudes."""
    parts = []
    for v in vectors:
        low, high = 100 * min(v.relative), 100 * max(v.relative)
        span = f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g}–{high:.2g}"
        parts.append(f"{v.finetunes} {span}\u00a0%")
    title = f"Task vectors, relative to the base: {', '.join(parts)}"
    ask = "The title compares Euclidean norms; the curves show single entries."
    middle = []
    for v in vectors:
        first, last = (median(v.magnitude_edges, v.magnitude_counts[t]) for t in (0, -1))
        if first is not None and last is not None:
            middle.append(f"{v.finetunes} {10**first:.2g} (first task), {10**last:.2g} (last)")
    return title, ask + (f" Median magnitude: {'; '.join(middle)}." if middle else "")


def shares(vectors: Sequence[Vectors]) -> tuple[str, str]:
    """Title and caption of what MagMax takes from each task."""
    parts = []
    for v in vectors:
        top = max(range(len(v.magmax_share)), key=v.magmax_share.__getitem__)
        parts.append(f"{v.finetunes} task {top + 1} ({percent(v.magmax_share[top], 0)})")
    n = max((len(v.magmax_share) for v in vectors), default=1)
    return (
        "MagMax takes most entries from " + ", ".join(parts),
        f"Each entry of the merge comes from the task that moved it furthest; an even split would "
        f"be {percent(1 / n, 0)} each (dotted).",
    )


def sentence(text: str, stop: str = ".") -> str:
    """With a capital letter and a stop."""
    return text[:1].upper() + text[1:] + stop
