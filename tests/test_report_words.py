"""Captions say what the numbers show and nothing else; tables in three formats."""

from __future__ import annotations

import pytest
from report_results import results

from jaxmerge.report import numbers, tables, words
from jaxmerge.studies.results import Entry, Results, SeedRun, Stat, summarize

MAGMAX, TIES = ("MagMax", "sequential"), ("TIES", "sequential")


def small(**accuracy: list[float]) -> Results:
    """Results of final accuracies, one a seed: small(magmax=[0.8, 0.9], last=[0.7, 0.7])."""
    known = {
        "magmax": MAGMAX, "ties": TIES, "last": numbers.LAST, "zero": numbers.ZERO,
        "joint": numbers.JOINT, "l2": ("last model", "L2"), "alone": ("last model", "independent"),
    }  # fmt: skip
    count = max(len(v) for v in accuracy.values())
    runs = [SeedRun(s, [0, 1], [], [], [], {}) for s in range(count)]
    for short, values in accuracy.items():
        for run, value in zip(runs, values, strict=True):
            entry = Entry(*known[short], "", [[value]], [[value]], [value], {"accuracy": value})
            run.entries.append(entry)
    return Results("e", "s", [], {}, runs, summarize(runs), {}, {}, {})


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_headline_counts_seeds():
    r = small(magmax=[0.8, 0.7, 0.9], last=[0.7, 0.75, 0.8], zero=[0.5, 0.5, 0.5])
    assert plain(words.headline(r)) == (
        "MagMax (sequential) ends at 80.0 % ± 10.0 over 3 seeds, "
        "5.0 points above the last model (in 2 of 3 seeds). The zero-shot model has 50.0 % ± 0.0."
    )


def test_headline_says_when_magmax_is_behind():
    r = small(magmax=[0.7, 0.7], last=[0.8, 0.8], ties=[0.9, 0.9])
    text = plain(words.headline(r))
    assert "10.0 points below the last model (in 2 of 2 seeds)" in text
    assert "The best merge is TIES (sequential) with 90.0 %" in text
    title = plain(words.overview_title(r))
    assert title == "MagMax ends 10.0 points below the last model (in 2 of 2 seeds)"


def test_headline_says_when_the_merge_is_worse_than_no_training():
    r = small(magmax=[0.7, 0.8], zero=[0.8, 0.75])
    text = plain(words.headline(r))
    assert text.endswith(
        "MagMax (sequential) is 2.5 points below the zero-shot model (in 1 of 2 seeds)."
    )
    assert "below" not in words.headline(small(magmax=[0.9], zero=[0.8]))


def test_headline_says_who_is_higher_without_a_merge():
    r = small(magmax=[0.8, 0.8], l2=[0.85, 0.87], alone=[0.9, 0.9], joint=[0.95, 0.95])
    text = plain(words.headline(r))
    assert "Higher without a merge: L2 with 86.0 % ± 1.4. Joint" in text
    assert "without a merge" not in words.headline(small(magmax=[0.8], l2=[0.7], joint=[0.9]))


def test_one_seed_has_no_spread():
    text = plain(words.headline(small(magmax=[0.8], last=[0.6], joint=[0.9])))
    assert "±" not in text
    assert "(one seed), 20.0 points above the last model." in text
    assert "Joint fine-tuning reaches 90.0 %." in text


def test_equal_is_called_level():
    text = words.versus(small(magmax=[0.8], last=[0.8002]), MAGMAX, numbers.LAST)
    assert text == "level with the last model"


def test_nothing_is_said_about_what_was_not_measured():
    r = small(ties=[0.8])
    assert numbers.hero(r) == TIES
    assert "last model" not in words.headline(r)
    assert words.headline(small(zero=[0.5])) == "No merge was measured in this run."
    assert words.versus(r, TIES, numbers.LAST) == ""


@pytest.mark.parametrize(
    "ahead, says",
    [
        ([1, 2, 3], "above the last model after every task"),
        ([2, 3], "above the last model after task 2 and all later ones"),
        ([1, 3], "above the last model after every task but task 2"),
        ([1, 4, 5], "above the last model after every task but tasks 2 and 3"),
        ([1, 3, 6], "above the last model after tasks 1, 3 and 6 only"),
        ([3], "above the last model after task 3 only"),
    ],
)
def test_over_time_title_names_the_tasks(ahead, says):
    r = small(magmax=[0.5], last=[0.5])
    first, last = r.seeds[0].entries
    tasks = range(1, max(ahead) + 1)
    last.over_time = [0.5 for _ in tasks]
    first.over_time = [0.6 if t in ahead else 0.4 for t in tasks]
    title, caption = words.over_time(r, [MAGMAX, numbers.LAST])
    assert says in title
    assert "Bands" not in caption


def test_over_time_title_counts_differences_as_far_as_shown():
    r = small(magmax=[0.5], last=[0.5])
    first, last = r.seeds[0].entries
    first.over_time, last.over_time = [0.6, 0.5001], [0.5, 0.5]
    assert words.over_time(r, [MAGMAX, numbers.LAST])[0] == "MagMax ends level with the last model"
    first.over_time = [0.5001, 0.4]
    title = words.over_time(r, [MAGMAX, numbers.LAST])[0]
    assert title == "MagMax is below the last model after task 2 only"


def test_forgetting_states_loss_and_gain():
    r = results()
    title, caption = words.forgetting(r, [MAGMAX, numbers.LAST])
    lost = -100 * numbers.stat(r, MAGMAX, "bwt").mean
    assert f"MagMax loses {lost:.1f} points" in plain(title)
    matrix = numbers.mean_matrix([e.matrix for e in numbers.entries(r, MAGMAX)])
    assert f"{100 * matrix[-1][0]:.0f} % at the end" in plain(caption)


def test_what_rounds_to_nothing_is_called_nothing():
    r = small(magmax=[0.8], ties=[0.8004], last=[0.5])
    assert "No other merge here has a higher mean." in words.headline(r)
    for run in r.seeds:
        for e in run.entries:
            e.metrics["bwt"] = -0.0004
    r.summary = summarize(r.seeds)
    assert words.forgetting(r, [MAGMAX])[0] == "On earlier tasks MagMax stays level"


def test_mean_std_leaves_gaps():
    assert numbers.mean_std([[1.0, None], [3.0, 2.0]]) == [
        (2.0, pytest.approx(2**0.5)),
        (None, None),
    ]


def test_median_of_a_histogram():
    assert numbers.median([0, 1, 2, 3], [1, 5, 1]) == 1.5
    assert numbers.median([0, 1], [0]) is None


def test_markdown():
    r = small(magmax=[0.8, 0.9], last=[0.7, 0.7], joint=[0.95, 0.95])
    assert tables.markdown(r) == (
        "| Method | Fine-tunes | Accuracy % |\n| :-- | :-- | --: |\n"
        "| MagMax | sequential | **85.0** ± 7.1 |\n| last model | sequential | 70.0 ± 0.0 |\n"
        "| joint | joint | 95.0 ± 0.0 |\n"
    )


def test_latex():
    text = tables.latex(small(magmax=[0.8], last=[0.7]))
    assert "MagMax & sequential & $\\mathbf{80.0}$ \\\\" in text
    assert "last model & sequential & $70.0$ \\\\" in text
    assert text.count("{") == text.count("}")


def test_rich_fits_a_terminal_and_marks_the_best():
    from rich.console import Console

    console = Console(width=80, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        console.print(tables.rich_table(results()))
    text = capture.get()
    assert "…" not in text
    assert "\x1b[1m" in text  # bold
    for label in ("task arithmetic", "zero-shot", "joint", "Forgetting"):
        assert label in text


def test_less_forgetting_is_better_and_ties_are_all_bold():
    r = results()
    column = tables.columns(r).index("forgetting")
    cells = [(row, row.cells[column]) for row in tables.rows(r)]
    learnt = [(row, c) for row, c in cells if row.finetunes in ("sequential", "independent")]
    least = min(c.stat.mean for _, c in learnt if c.stat)
    assert [c.stat.mean for _, c in cells if c.best] == [least]
    two = small(magmax=[0.8], ties=[0.80001], last=[0.5])
    assert [row.cells[0].best for row in tables.rows(two)] == [True, True, False]


def test_names_cannot_break_a_table():
    bad = "a|b_c\\ & 100% $x$ [red]\n<i>"
    r = results(label=bad)
    line = next(s for s in tables.markdown(r).splitlines() if "a\\|b" in s)
    assert "\\<i\\>" in line
    assert line.count(" | ") == tables.markdown(r).splitlines()[0].count(" | ")
    assert r"a|b\_c\textbackslash{} \& 100\% \$x\$ [red] <i>" in tables.latex(r)
    assert any("[red]" in str(cell) for cell in tables.rich_table(r).columns[0].cells)


def test_the_mean_over_classes_is_shown_where_it_differs_from_the_accuracy():
    r = results(seeds=1)
    for s in r.summary:
        s.metrics["per_class"] = s.metrics["accuracy"]
    assert "per_class" not in tables.columns(r)
    r.summary[1].metrics["per_class"] = Stat(0.123, 0.0, 1)
    assert "per_class" in tables.columns(r)


def story(last, ours, zero=0.5):
    """One seed of three tasks, with a backward transfer of the last model and of MagMax."""
    r = small(magmax=[0.8], last=[0.6], zero=[zero])
    for row in r.summary:
        lost = {"last model": last, "MagMax": ours}.get(row.label)
        row.metrics["bwt"] = None if lost is None else Stat(lost, 0.0, 1)
    return r


def test_the_lesson_says_what_was_forgotten_and_what_merging_did():
    text = plain(words.lesson(story(-0.139, -0.0291)))
    assert text == (
        "On an earlier task the last model ends 13.9 points worse than when it had just learnt it, "
        "MagMax, merged after every task, 2.9 points worse than then (means over these tasks). "
        "Over all classes MagMax ends 20.0 points above the last model and 30.0 points above the "
        "zero-shot model."
    )
    assert text.count(". ") == 1
    behind = plain(words.lesson(story(0.0, 0.012, zero=0.9)))
    assert "ends as good as when" in behind
    assert "1.2 points better than then" in behind
    assert "10.0 points below the zero-shot model" in behind
    assert words.lesson(small(zero=[0.5])) == ""
    assert words.lesson(small(magmax=[0.8], last=[0.6])) == ""
