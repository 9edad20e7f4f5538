"""Models of the hub: what their references look like, and downloading them."""

from __future__ import annotations

import re
from pathlib import Path

from jaxmerge.errors import UserError

HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]+)?")
NEEDED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
PICKLED = ["*.bin", "*.bin.index.json", "*.pt", "*.pth"]


def download(ref: str, allow_pickle: bool) -> Path:
    """The folder of a repository, downloaded unless it is there already.

    Raises:
        UserError: it could not be downloaded, or huggingface_hub is not installed.
    """
    name, _, revision = ref.partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{ref!r} is no local path; to read it from the hub, pip install 'jaxmerge[hub]'."
        ) from None
    patterns = NEEDED + (PICKLED if allow_pickle else [])
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        reason = re.split(r"\n|\. ", str(error).strip())[0][:160]
        raise UserError(
            f"{ref!r} is no local path and could not be downloaded from the hub "
            f"({type(error).__name__}: {reason}). Check the name and the connection."
        ) from None
