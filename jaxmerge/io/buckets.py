"""Models, recipes, runs and outputs in a bucket: gs://, s3://, whatever fsspec opens.

What is read is copied into the cache once, and again where it has changed; from then on it is a
path like any other, so every format, ``#part`` and ``+adapter`` work as they do on a disk.  What
is written is made on the local disk and copied when it is whole, the file that says so last.  The
local disk must hold one copy of each model.  What needs the headers or some of the leaves alone
(``--check``, `inspect`, `jm.shard`) reads safetensors by range instead.

`pip install "jaxmerge[cloud]"` brings gcsfs and s3fs, which find credentials as the clouds' own
tools do.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError
from jaxmerge.io.hashes import cache_folder
from jaxmerge.io.header import HeaderError
from jaxmerge.io.hub import PICKLED
from jaxmerge.io.install import occupied
from jaxmerge.io.ranges import SUFFIX, RangeFile, header_alone, stamp

URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.S)  # a Path makes one slash of two
STEP = re.compile(r"(\w+_)?\d+")
NOTES = ".fetched.json"


def url_of(ref: str | os.PathLike) -> str | None:
    """The URL that a reference is, or None for a path.

    >>> url_of("gs://bucket/model"), url_of(Path("gs://bucket/model")), url_of("folder/model")
    ('gs://bucket/model', 'gs://bucket/model', None)
    """
    match = URL.fullmatch(os.fspath(ref))
    if match is None or os.path.lexists(os.fspath(ref)):
        return None
    return f"{match[1]}://{match[2]}".rstrip("/")


def fetched(url: str, by_range: bool = False) -> Path | None:
    """A local copy of the file or the folder at a URL; None where there is nothing.

    Args:
        by_range: of safetensors files the headers alone (`ranged` opens them).

    Of a folder with the steps of a checkpoint manager only the last one is copied, of one with
    safetensors no pickles.

    Raises:
        UserError: the bucket cannot be read, or fsspec knows no such scheme; in one line.
    """
    with _said(url):
        fs, root = _opened(url)
        try:
            found = fs.find(root, detail=True)
        except FileNotFoundError:
            found = {}
    if not found:
        return None
    root = root.strip("/")
    here = {path: info for path, info in found.items() if info["type"] == "file"}
    names = {_below(path.strip("/"), root): path for path in here}
    single = set(names) == {""}
    kind = "ranges" if by_range else "buckets"
    place = cache_folder() / kind / hashlib.sha256(url.encode()).hexdigest()[:16]
    local = place / url.rpartition("/")[2]
    wanted = {"": names[""]} if single else {n: names[n] for n in _wanted(names)}
    outside = [n for n in wanted if ".." in n.split("/") or n.startswith("/") or "\0" in n]
    if outside:
        raise UserError(f"{url} holds a name that leads out of it: {outside[0][:80]!r}.")
    notes, known = place / NOTES, {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(notes.read_text())
    stamps = {n: str(stamp(here[path])) for n, path in wanted.items()}
    for n, path in wanted.items():
        target = local / n if n else local
        if target.is_file() and known.get(n) == stamps[n]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        size = here[path].get("size")
        with _said(url):
            if by_range and path.endswith(SUFFIX) and isinstance(size, int):
                header_alone(fs, path, size, part)
            else:
                fs.get_file(path, os.fspath(part))
        os.replace(part, target)
    if not single:
        for old in [p for p in local.rglob("*") if p.is_file()]:
            if str(old.relative_to(local)) not in wanted:  # gone from the bucket
                old.unlink()
    notes.write_text(json.dumps(stamps))
    return local


def ranged(url: str, local: Path) -> Callable[[Path], RangeFile]:
    """How a file below `local`, which `fetched` made by range, is opened."""

    def opened(path: Path) -> RangeFile:
        with _said(url):
            fs, root = _opened(url)
            below = path.relative_to(local).as_posix()
            return RangeFile(path, fs, root if below == "." else f"{root.rstrip('/')}/{below}")

    return opened


def _wanted(names: Iterable[str]) -> list[str]:
    """Of the files of a folder those that a model can be read from."""
    names = sorted(names)
    if "_METADATA" not in names:
        tops = {n.partition("/")[0] for n in names if "/" in n}
        steps = [t for t in tops if STEP.fullmatch(t) and not _plain(names, t)]
        if steps:
            last = max(steps, key=lambda t: int(t.rpartition("_")[2]))
            names = [n for n in names if "/" not in n or n.startswith(f"{last}/")]
    if any(n.endswith(".safetensors") for n in names):
        names = [n for n in names if not any(fnmatch(n, p) for p in PICKLED)]
    return names


def _plain(names: list[str], top: str) -> bool:
    """Whether a folder is no step of a checkpoint manager."""
    return not any(n.startswith(f"{top}/") and n.endswith("_METADATA") for n in names)


def _below(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/") if path.startswith(root) else path


def exists(url: str) -> bool:
    """Whether there is a file or a folder."""
    with _said(url):
        fs, root = _opened(url)
        return bool(fs.exists(root))


def uploaded(folder: Path, url: str, last: str = "") -> None:
    """Copy a folder into a bucket, replacing what has the same names.

    Args:
        last: the file that says that the others are there.
    """
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    files.sort(key=lambda p: p.name == last)
    with _said(url):
        fs, root = _opened(url)
        for path in files:
            target = f"{root.rstrip('/')}/{path.relative_to(folder).as_posix()}"
            fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            fs.put_file(os.fspath(path), target)


def removed(url: str) -> None:
    """Delete what is there."""
    with _said(url):
        fs, root = _opened(url)
        if fs.exists(root):
            fs.rm(root, recursive=True)


def into_bucket(last: str = "", always: bool = False) -> Callable[[Callable], Callable]:
    """A command whose `out` (or `resume`) may be a URL: it is run on a folder here, which is copied
    there when it is done.

    Args:
        last: see `uploaded`.
        always: copy after an error too, so that the command goes on elsewhere.
    """

    def register(run: Callable) -> Callable:
        @functools.wraps(run)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(run).bind(*args, **kwargs)
            names = [k for k in ("out", "resume") if _is_url(given.arguments.get(k))]
            if not names or given.arguments.get("check"):
                return run(*given.args, **given.kwargs)
            url, resume = given.arguments[names[0]], given.arguments.get("resume")
            with _made_here(url, given.arguments.get("force"), resume, last, always) as local:
                given.arguments[names[0]] = local
                return run(*given.args, **given.kwargs)

        return call

    return register


_URLS: dict[Path, str] = {}  # of the local folders that are at work in the place of buckets


def place_of(folder: str | os.PathLike) -> str:
    """What a user calls a folder: the URL where it stands for one, the path otherwise.

    >>> place_of("runs/one")
    'runs/one'
    """
    return _URLS.get(Path(folder), str(folder))


def _is_url(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and url_of(value) is not None


@contextlib.contextmanager
def _made_here(out: Any, force: Any, resume: Any, last: str, always: bool) -> Iterator[Path]:
    """A local folder in the place of one in a bucket, filled from there where work goes on."""
    url = url_of(out) or ""
    if "jax" in sys.modules and sys.modules["jax"].process_count() > 1:
        raise UserError(f"Several processes write on a disk that all of them see, not to {url}.")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    local = cache_folder() / "outputs" / name / url.rpartition("/")[2]
    there = exists(url)
    if there and not (force or resume):
        raise UserError(f"{url} exists; choose another output, or --force replaces it.")
    local.parent.mkdir(parents=True, exist_ok=True)
    if there and resume and not occupied(local) and (copy := fetched(url)) is not None:
        shutil.copytree(copy, local, dirs_exist_ok=True)
    whole, _URLS[local] = False, url
    try:
        with _ended_gently() if always else contextlib.nullcontext():
            yield local
        whole = True
    finally:
        del _URLS[local]
        if (whole or always) and local.is_dir():
            if there and force:
                removed(url)
            uploaded(local, url, last)
            shutil.rmtree(local.parent, ignore_errors=True)


@contextlib.contextmanager
def _ended_gently() -> Iterator[None]:
    """SIGTERM, as a cloud sends it before it takes a machine away, leaves time to copy."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there."""
    try:
        import fsspec
    except ImportError:
        raise UserError(f'{url} is in a bucket: pip install "jaxmerge[cloud]".') from None
    return fsspec.core.url_to_fs(url)


@contextlib.contextmanager
def _said(url: str) -> Iterator[None]:
    """What a library says of a bucket, as one line that names it."""
    try:
        yield
    except (UserError, HeaderError):
        raise
    except ImportError as error:
        text = str(error).splitlines()[0][:160]
        raise UserError(f'{url} needs a package ({text}): pip install "jaxmerge[cloud]".') from None
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"{url} could not be read or written ({text}).") from None
