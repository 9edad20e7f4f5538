"""The tensors of a GGUF file as leaves, and how a type is read and written.

Types that numpy has (F32, F16, F64, BF16, integers) are leaves of their dtype; quantised ones are
dequantised in float32 by the `gguf` package when they are read.
"""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.gguf.container import Tensor, parse, types
from jaxmerge.io.safetensors import Leaves, Like, Stamp

PLAIN = {
    "F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": ml_dtypes.bfloat16,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
}  # fmt: skip


class Tensors(Leaves):
    """A GGUF file's tensors under their own names; quantised ones as rows of bytes.

    Attributes:
        metadata: what the file says besides.
        tensors: name -> `Tensor`.
    """

    def __init__(self, path: str | os.PathLike):
        require()
        self.path = Path(path)
        self.metadata, self.tensors = parse(self.path)
        self.stamps = {self.path: Stamp.of(self.path)}
        self.like = {name: _stored(tensor) for name, tensor in self.tensors.items()}
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        like, tensor = self.like[name], self.tensors[name]
        stop = like.size if stop is None else stop
        width = np.dtype(like.dtype).itemsize
        out, done = memoryview(bytearray((stop - start) * width)), 0
        while done < len(out):
            got = os.preadv(self._fd, [out[done:]], tensor.start + start * width + done)
            if not got:
                raise OSError(f"{self.path}: {name!r} was cut while it was read.")
            done += got
        return np.frombuffer(out, like.dtype)

    def values(self, name: str) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The numbers of a tensor, in its shape; quantised ones in float32."""
        import gguf

        tensor = self.tensors[name]
        if types()[tensor.kind][0] in PLAIN:
            return self[name]
        kind = gguf.GGMLQuantizationType(tensor.kind)
        with np.errstate(all="ignore"):  # what is not finite is refused by whoever merges it
            return gguf.dequantize(self[name], kind).reshape(tensor.shape)

    def dtype(self, name: str) -> np.dtype:
        """Of `values`."""
        return np.dtype(PLAIN.get(types()[self.tensors[name].kind][0], np.float32))

    def quantised(self) -> list[str]:
        """The types of the quantised tensors, the most frequent first."""
        kinds = [types()[t.kind][0] for t in self.tensors.values()]
        kinds = [kind for kind in kinds if kind not in PLAIN]
        return sorted(set(kinds), key=kinds.count, reverse=True)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self, close=os.close):
        if getattr(self, "_fd", -1) >= 0:
            close(self._fd)


def _stored(tensor: Tensor) -> Like:
    name, block, width = types()[tensor.kind]
    if name in PLAIN:
        return Like(tensor.shape, np.dtype(PLAIN[name]))
    return Like((*tensor.shape[:-1], tensor.shape[-1] // block * width), np.dtype(np.uint8))


def require() -> None:
    """Raise UserError where the package that knows the types is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("GGUF files need a package: pip install 'jaxmerge[gguf]'.") from None
