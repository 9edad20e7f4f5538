"""Deployments as a user writes them: names, merges and methods where a `Deploy` is."""

import pytest

import jaxmerge as jm
from jaxmerge.continual.deploys import LAST, Deploy, deploy, deployments
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
