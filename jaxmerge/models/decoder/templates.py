"""Chat templates: programs that come with a model, run where they reach nothing and end soon.

Jinja's sandbox keeps a template from Python's objects and bounds each `range`.  It bounds neither
how long nested loops run nor how long a repeated text gets; that is done here.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

SECONDS = 10.0  # of the clock, for one conversation
LONGEST = 10_000_000  # characters or entries that a product may make
GREATEST = 64  # exponent of a power


def rendered(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of its variables.

    Raises:
      Exception: whatever the template raises or Jinja refuses; jinja2's SecurityError for a
        template that runs longer than `SECONDS` or makes something longer than `LONGEST`.

    >>> rendered("{% for m in messages %}<{{ m.role }}>{% endfor %}", {"messages": [{"role": "a"}]})
    '<a>'
    """
    from jinja2.exceptions import SecurityError

    program = _environment().from_string(template)
    end, before = time.monotonic() + SECONDS, sys.gettrace()

    def watch(frame, event, argument):
        if time.monotonic() > end:
            raise SecurityError(f"it runs longer than {SECONDS:.0f} seconds")
        return watch

    sys.settrace(watch)  # a template is a Python function: every line of it is seen
    try:
        return program.render(**variables)
    finally:
        sys.settrace(before)


def _environment():
    """Jinja as transformers sets it up: nothing of Python's can be reached from a template."""
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        """Refuses products and powers that do not fit into memory."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(x) if hasattr(x, "__len__") else None for x in (left, right)]
            counts = [x for x in (left, right) if isinstance(x, int)]
            if operator == "**" and any(abs(x) > GREATEST for x in counts):
                raise SecurityError(f"powers go up to {GREATEST}")
            for size, count in zip(sizes, (right, left), strict=True):
                if size is not None and isinstance(count, int) and size * count > LONGEST:
                    raise SecurityError(f"a product of more than {LONGEST:,} characters")
            return super().call_binop(context, operator, left, right)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    loops = "jinja2.ext.loopcontrols"
    jinja = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[loops])
    jinja.filters["tojson"] = tojson
    jinja.globals |= {"raise_exception": refuse, "strftime_now": strftime_now}
    return jinja
