"""Regular expressions that other people wrote: Python's syntax, and an end in sight.

Recipes, rules and adapters bring patterns such as ``([a-z]+)+$``, on which a backtracking engine
takes longer than anyone waits.  `compile_pattern` uses the `regex` package, which reads the syntax
of `re` and can stop: a pattern whose slow searches take more than `SECONDS` in all is refused.
"""

from __future__ import annotations

import functools
import time
from typing import Any

SECONDS = 1.0  # that the slow searches of a pattern may take together
SLOW = 0.01  # seconds; an honest search over a leaf's name takes microseconds
MAX_LENGTH = 2_000  # characters of a pattern


class PatternError(ValueError):
    """A pattern that is no regular expression, or one that takes too long."""


class Pattern:
    """A compiled pattern; `search` and `fullmatch` as in `re`, with a deadline."""

    def __init__(self, text: str):
        import regex  # when there is a pattern: most merges have none

        if not isinstance(text, str):
            raise PatternError(f"{text!r} is no regular expression: expected text.")
        if len(text) > MAX_LENGTH:
            raise PatternError(
                f"a regular expression of {len(text)} characters is refused; at most {MAX_LENGTH}."
            )
        try:
            self.compiled = regex.compile(text)
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            raise PatternError(f"{text[:80]!r} is no regular expression ({reason}).") from None
        self.pattern, self.groups, self.spent = text, self.compiled.groups, 0.0

    def search(self, name: str) -> Any:
        """The first match in `name`, or None.

        Raises:
            PatternError: this search, with slow ones before it, took more than `SECONDS`.
        """
        return self._run(self.compiled.search, name)

    def fullmatch(self, name: str) -> Any:
        """The match of the whole of `name`, or None; raises as `search` does."""
        return self._run(self.compiled.fullmatch, name)

    def _run(self, method: Any, name: str) -> Any:
        began = time.perf_counter()
        try:
            match = method(name, timeout=max(SLOW, SECONDS - self.spent))
        except TimeoutError:
            raise PatternError(
                f"{self.pattern[:80]!r} takes more than {SECONDS:g} s on names such as "
                f"{name[:80]!r}: nested repeats such as (a+)+ try every way to match. Write it "
                "without them."
            ) from None
        took = time.perf_counter() - began
        self.spent += took if took > SLOW else 0.0
        return match


@functools.lru_cache(1024)
def compile_pattern(text: str) -> Pattern:
    """Compile a pattern.

    >>> bool(compile_pattern(r"mlp\\.(up|down)").search("layers.0.mlp.up.weight"))
    True

    Raises:
        PatternError: it is no regular expression.
    """
    return Pattern(text)
