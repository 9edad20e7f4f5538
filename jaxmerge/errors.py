"""The one error that the command line turns into one line and exit code 2.

The library itself raises `ValueError`, `TypeError`, `KeyError` and `OSError` as Python does.
`UserError` is for what only a person at a terminal can mend: an option, a path, a recipe.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence

MAX_WORD, MAX_MESSAGE = 300, 3500  # characters of a message: files may hold what fills a screen


class UserError(ValueError):
    """Something the user can mend; the message says what was found, expected, and what to do.

    What it quotes of a file is shortened where that has no end.

    >>> str(UserError("no method is named '" + "a" * 5000 + "'."))[-30:]
    " (5,003 characters) …aaaaaaa'."
    """

    def __init__(self, text: object = "", *more: object):
        super().__init__(shortened(str(text)), *more)


def shortened(text: str) -> str:
    """A message without words of more than `MAX_WORD` characters, and with an end."""

    def cut(match: re.Match) -> str:
        word = match.group()
        return f"{word[:100]}… ({len(word):,} characters) …{word[-9:]}"

    text = re.sub(rf"\S{{{MAX_WORD},}}", cut, text)
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}… ({len(text):,} characters)"


@contextlib.contextmanager
def about(path: object) -> Iterator[None]:
    """What is wrong inside is said of this file: a UserError, and a ValueError, gets its name.

    >>> with about("r.yaml"):
    ...     raise UserError("models is an empty list.")
    Traceback (most recent call last):
    jaxmerge.errors.UserError: r.yaml: models is an empty list.
    """
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """What the system refuses inside is an OSError that names a file, this one where none is named;
    also where a library says it in its own words.

    >>> with writing("m.safetensors"):
    ...     raise RuntimeError("I/O error: No space left on device (os error 28)")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'm.safetensors'
    """
    try:
        yield
    except OSError as error:
        if error.filename or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    except Exception as error:
        number = re.search(r"os error (\d+)|os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        code = int(number.group(1) or number.group(2))
        raise OSError(code, os.strerror(code), os.fspath(path)) from None


def reason(error: OSError) -> str:
    """What went wrong with which file, in a few words.

    >>> reason(OSError(28, "No space left on device", "/tmp/x"))
    '/tmp/x: no space left on device; free some space, then try again.'
    """
    text = error.strerror or str(error)
    text = f"{text[:1].lower()}{text[1:]}".rstrip(".")
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{where}{text}{'; free some space, then try again' if full else ''}."


def message(error: BaseException) -> str:
    """An error's own words, and `reason` where the system refused.

    >>> message(OSError(27, "File too large", "/tmp/x"))
    '/tmp/x: file too large; free some space, then try again.'
    >>> message(KeyError("no leaf 'w'."))
    "no leaf 'w'."
    """
    if isinstance(error, OSError) and error.strerror:
        return reason(error)
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error)


def library_message(error: BaseException) -> str:
    """What another library says of an input, in one line; where it stumbles over a form that it
    does not expect, its words are about its own code, and not repeated.

    >>> library_message(ValueError("bad magic\\nat 0"))
    'bad magic'
    >>> library_message(AttributeError("'int' has no attribute 'get'"))
    'not of the form that it takes'
    """
    if isinstance(error, UnicodeError):
        return "text that is not UTF-8"
    stumbled = (AttributeError, TypeError, LookupError, AssertionError, NameError)
    if isinstance(error, stumbled):
        return "not of the form that it takes"
    return (str(error).strip().splitlines() or [""])[0][:160] or type(error).__name__


def listed(wrong: Iterable[str], most: int = 8) -> str:
    """What is wrong as one sentence, all of it unless that were more than a screen.

    >>> listed(["no 'a'.", "no 'epoch': did you mean epochs?"])
    "no 'a'; no 'epoch': did you mean epochs?"
    >>> listed(["lr is 0"]), listed("abc", most=2)
    ('lr is 0.', 'a; b; and 1 more.')
    """
    text = bounded([w.rstrip(".") for w in wrong], most)
    return text if text.endswith("?") else f"{text}."


def bounded(wrong: Sequence[str], most: int = 5) -> str:
    """What is wrong in one line, and how much of it is not shown.

    >>> bounded(["a", "b", "c"], 2)
    'a; b; and 1 more'
    """
    more = [f"and {len(wrong) - most} more"] if len(wrong) > most else []
    return "; ".join([*wrong[:most], *more])


def screen(lines: Sequence[str], most: int = 12) -> list[str]:
    """The first lines, and one that says how many are not shown.

    >>> screen(["a", "b", "c", "d"], 2)
    ['a', 'b', 'and 2 more lines like these']
    """
    if len(lines) <= most + 1:
        return list(lines)
    return [*lines[:most], f"and {len(lines) - most} more lines like these"]


def not_known(
    unknown: Sequence[object], known: Iterable[str], what: str = "", most: int = 8
) -> str:
    """Names that nothing has, the first of them with the closest known ones.

    >>> not_known(["magmx", "tis"], ["magmax", "ties"], "No method ", most=1)
    "No method 'magmx': did you mean magmax?; and 1 more"
    """
    known = sorted(known)
    lines = [f"{what}{k!r}: {closest(str(k), known)}" for k in unknown[:most]]
    more = [f"and {len(unknown) - most:,} more"] if len(unknown) > most else []
    return "; ".join([*lines, *more])


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def closest(word: str, known: Iterable[str], n: int = 3) -> str:
    """A hint that names the nearest known words in any case, or all of them when they are few.

    >>> closest("magmx", ["magmax", "mean", "ties"]), closest("EWC", ["ewc", "er"])
    ('did you mean magmax?', 'did you mean ewc?')
    >>> closest("magmx", ["MagMax", "magmax"]), closest("Magmx", ["MagMax", "magmax"])
    ('did you mean magmax?', 'did you mean MagMax?')
    >>> closest("zzz", ["magmax", "mean"])
    'expected one of magmax, mean'
    """
    known = sorted(known)
    if not known:
        return "there is none"
    spelt: dict[str, list[str]] = {}
    for k in known:
        spelt.setdefault(k.casefold(), []).append(k)
    near = difflib.get_close_matches(word[:MAX_WORD].casefold(), spelt, n=n, cutoff=0.6)
    if near:  # of spellings that differ in case alone, the one that is nearer in case
        best = [max(spelt[w], key=lambda k: _alike(word[:MAX_WORD], k)) for w in near]
        return f"did you mean {' or '.join(best)}?"
    if len(known) > 24:
        return f"there are {len(known)}, for example {', '.join(known[:8])}"
    return f"expected one of {', '.join(known)}"
