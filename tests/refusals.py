"""Streams that are refused: three ways to run one, and what every refusal is like."""

from __future__ import annotations

import logging

import jax
import pytest
from tiny_streams import KEY, setup, split

from jaxmerge.continual.checks import check
from jaxmerge.continual.drivers import program, run
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import methods


@pytest.fixture(autouse=True)
def warm():
    """Keys and indices that the check itself makes are no part of a stream."""
    check(setup(), split())


def refused(drive, config, stream, words, caplog):
    """The one line of the error; nothing was compiled on the way to it."""
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        caplog.clear()
        with pytest.raises(ValueError, match=words) as caught:
            drive(config, stream, KEY)
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert not compiled
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300


def of(**fields):
    def bad():
        return Method(**fields)

    return methods.record(bad)()


KEYS = jax.random.split(KEY, 1)


def mapped(config, stream, key):
    """Over keys, here one, as strengths and seeds are: the arrays are known, the key is traced."""
    return jax.vmap(lambda k: program(config, stream, k))(KEYS)


both = pytest.mark.parametrize("drive", [program, run, mapped])
