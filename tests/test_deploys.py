"""Deployments as a user writes them: names, merges and methods where a `Deploy` is."""

import pytest

import jaxmerge as jm
from jaxmerge.continual.deploys import (
    LAST,
    Deploy,
    check_counts,
    deploy,
    deployments,
    running_merge,
)
from jaxmerge.continual.factor_search import best, search
from jaxmerge.continual.schedule import from_last, start


def test_names_and_merges_are_taken_where_objects_are():
    assert start("last") is from_last
    with pytest.raises(ValueError, match=r"no start is named 'lst': did you mean last"):
        start("lst")
    assert deploy("last model") == LAST
    assert repr(deploy("ties").merge()) == "ties()"
    assert deploy(jm.magmax(0.3)).label == "magmax(factor=0.3)"
    assert repr(Deploy("MagMax", "magmax", (0.4,)).merge()) == "magmax(factor=0.4)"
    merge = jm.magmax(0.3)
    assert Deploy("MagMax", merge).merge() is merge
    with pytest.raises(ValueError, match=r"its factors \[0.3, 0.5\] cannot be tried"):
        Deploy("MagMax", jm.magmax(0.3), (0.3, 0.5)).merge()


@pytest.mark.parametrize(
    "what, label, merge",
    [
        ("ties", "ties", "ties()"),
        (jm.magmax(0.3), "magmax(factor=0.3)", "magmax(factor=0.3)"),
        (jm.average, "average", "average()"),
        (jm.chain(jm.trim(0.5), jm.magmax()), None, None),
    ],
)
def test_a_merge_alone_is_deployed_and_labelled_by_itself(what, label, merge):
    one = Deploy(what)
    assert not one.last
    assert one == deploy(what)
    assert one.label == (label or repr(what))
    assert repr(one.merge()) == (merge or repr(what))


def test_the_last_model_is_deployed_where_it_is_named_alone():
    assert LAST.last
    mine = Deploy("fine-tuning", "last model")
    assert mine.last
    assert mine.label == "fine-tuning"
    with pytest.raises(TypeError, match="deploys the last model"):
        mine.merge()


@pytest.mark.parametrize(
    "given, message",
    [
        (("MagMax",), r"Nothing to deploy is named 'MagMax': did you mean magmax.*Deploy\(label"),
        (("lst model",), "named 'lst model': did you mean last model"),
        (("M", "tie"), "named 'tie': did you mean ties"),
        (("M", 3), "The method of M is 3; expected a merge"),
        ((3,), "The method of a deployment is 3; expected a merge"),
        ((jm.magmax(), "MagMax"), r"Deploy\(label, method\); the label is magmax\(\)"),
        ((lambda factor: jm.ties(0.2, factor),), r"has no name.*Deploy\(label, function\)"),
        (("M", jm.magmax(0.3), 0.5), r"its factors \[0.5\] cannot be tried"),
        (("M", "last model", (0.5,)), r"its factors \[0.5\] cannot be tried"),
    ],
)
def test_what_cannot_be_deployed_is_refused_in_one_line(given, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        Deploy(*given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "alone", ["magmax", jm.magmax(0.5), jm.average, Deploy("M", jm.magmax), LAST, 3]
)
def test_one_deployment_where_a_list_is_expected(alone):
    with pytest.raises(TypeError, match="deploys are a list"):
        deployments(alone)


@pytest.mark.parametrize("peak", [0.004, 0.1, 0.31, 0.8, 2.7, 30.0])
def test_a_search_goes_past_the_ends_until_the_best_factor_is_inside(peak):
    asked = []

    def accuracies(factors):
        asked.extend(factors)
        return [-abs(f - peak) / (f + peak) for f in factors]

    listed = [0.1, 0.2, 0.3, 0.5]
    tried, found = search(listed, accuracies, beyond=40)
    assert tried == sorted(asked) == sorted(set(asked))  # each once
    assert found == accuracies(tried)
    assert set(listed) <= set(tried)
    chosen = best(tried, found)
    assert tried[0] < chosen < tried[-1]
    assert 0.5 * peak < chosen < 1.7 * peak
    inside = 0.1 < peak < 0.5 and best(listed, accuracies(listed)) in listed[1:-1]
    assert (tried == listed) == inside


def test_a_search_is_bounded_and_takes_the_smallest_of_equals():
    rising = lambda factors: list(factors)
    assert search([0.5, 1.0], rising, beyond=3)[0] == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert search([0.5, 1.0], rising)[0] == [0.5, 1.0]
    flat = search([0.5, 1.0], lambda factors: [0.3 for _ in factors], beyond=2)
    assert (flat[0], best(*flat)) == ([0.5, 1.0], 0.5)
    level = search([0.5, 1.0], lambda factors: [max(0.4, 1 - f) for f in factors], beyond=4)
    assert best(*level) == level[0][0] == 0.0312  # it rises for as long as it may
    level = search([0.5, 1.0], lambda factors: [min(0.7, 1 - f) for f in factors], beyond=4)
    assert (level[0], best(*level)) == ([0.125, 0.25, 0.5, 1.0], 0.125)  # as good, and nearer


@pytest.mark.parametrize(
    "factors, beyond, message",
    [
        ((0.0, 0.3), 2, r"M tries factors beyond \[0.0, 0.3\].*positive; 0.0 is not"),
        ((0.3, -1, 2), 2, "positive; -1 is not"),
        ((0.3, 0.5), -1, "whole number from 0 on; M has -1"),
        ((0.3, 0.5), True, "whole number from 0 on; M has True"),
    ],
)
def test_factors_that_have_no_beyond_are_refused(factors, beyond, message):
    with pytest.raises(ValueError, match=message):
        Deploy("M", "magmax", factors, beyond=beyond)


def test_where_no_factor_is_chosen_none_lies_beyond():
    assert Deploy("M", "magmax", 0.0, beyond=2).factors == (0.0,)
    rows = Deploy("M", "magmax", (0.3, 0.5), each=True, beyond=2).rows()
    assert [f for _, f in rows] == [0.3, 0.5]
    assert search([1.0, 0.5, 2.0], lambda some: [-abs(f - 1) for f in some], 3) == (
        [0.5, 1.0, 2.0], [-0.5, 0.0, -1.0],
    )  # fmt: skip


def test_a_factor_that_enters_the_fold_has_a_fold_of_its_own():
    one = Deploy("TIES", "continual_ties", (0.1, 0.3))
    assert [repr(fold.merge()) for fold in one.folds] == [repr(one.merge(f)) for f in one.factors]
    assert [one.fold(f) for f in (None, 0.1, 0.3)] == [one.folds[0], *one.folds]
    end = Deploy("MagMax", "magmax", (0.1, 0.3), beyond=2)
    assert end.folds == (end,)
    assert end.fold(0.9) is end  # one beyond the list
    assert LAST.folds == ()
    check_counts((one, end, LAST), 3)
    with pytest.raises(ValueError, match=r"the factor of TIES enters its fold.*\[0.1, 0.3\]"):
        check_counts((Deploy("TIES", "continual_ties", (0.1, 0.3), beyond=2),), 3)
    twin = Deploy("TIES, factor 0.3", "magmax", 0.3)
    with pytest.raises(ValueError, match=r"Two deployments are labelled TIES, factor 0\.3"):
        running_merge(start("last"), (one, twin), None)
