"""The program that runs chat templates, in a process of its own that `templates` starts and ends.

Every line of its input is JSON, [template, variables], and is answered by one: {"text": ...}, or
{"error": the exception's name, "message": ...}.  It is run as a file and imports nothing of
jaxmerge, so that it starts at once.

    python -P template_process.py MEMORY SECONDS LONGEST
"""

import contextlib
import datetime
import functools
import json
import sys
import time

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


def main() -> None:
    memory, seconds, longest = map(int, sys.argv[1:])
    program = functools.lru_cache(4)(environment().from_string)
    limit("RLIMIT_AS", memory)
    for line in sys.stdin:
        limit("RLIMIT_CPU", int(time.process_time()) + seconds + 2)  # should nobody end it
        try:
            template, variables = json.loads(line)
            text, length = [], 0
            for part in program(template).generate(**variables):
                length += len(part)
                if length > longest:
                    raise TemplateError(f"it makes more than {longest:,} characters")
                text.append(part)
            answer = {"text": "".join(text)}
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)[:1000]}
        print(json.dumps(answer), flush=True)


def limit(what: str, most: int) -> None:
    """A limit of this process, where the system has one."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(getattr(resource, what))[1]
        resource.setrlimit(getattr(resource, what), (most, hard))


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up: nothing of Python's can be reached from a template."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value, indent=None, **options) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    jinja.filters["tojson"] = tojson
    jinja.globals |= {"raise_exception": refuse, "strftime_now": strftime_now}
    return jinja


if __name__ == "__main__":
    main()
