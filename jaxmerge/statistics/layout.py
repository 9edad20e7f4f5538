"""A statistic in the names and the layout of the checkpoint that it was measured on.

A model is measured under our names and in our layout (kernels [in, out]); its checkpoint may have
others (torch's ``q_proj.weight`` [out, in]; query, key and value stacked).  Merging from files
reads leaves as they are stored, so the statistic beside a checkpoint is stored likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from jaxmerge.core.types import Leaves
from jaxmerge.io.key_tables import Entry, export
from jaxmerge.statistics.store import Statistic, weights_hash


def in_layout(statistic: Statistic, table: Iterable[Entry], leaves: Leaves) -> Statistic:
    """The statistic for `leaves`, a checkpoint in the layout of `table`.

    Args:
        statistic: under our names, in our layout.
        table: our names against the checkpoint's (`jaxmerge.io.key_tables`); tensors of which the
            statistic knows nothing are left out.
        leaves: the checkpoint as it is stored; the hash becomes that of these leaves.

    What changes for a Gram matrix is the axis of the kernel that it belongs to, ``about["axis"]``,
    and the order of a patch's pixels.  Stacked kernels meet the same inputs and share one.

    Example:
        >>> from jaxmerge.statistics.store import Statistic
        >>> own = Statistic("fisher", {"fc/kernel": np.ones((2, 3))}, 1, "", {})
        >>> table = [Entry("fc.weight", ("fc/kernel",), "dense")]
        >>> in_layout(own, table, {"fc.weight": np.zeros((3, 2))}).values["fc.weight"].shape
        (3, 2)
    """
    known = [e for e in table if set(e.names) <= set(statistic.values)]
    about = dict(statistic.about)
    if statistic.kind == "gram":
        axis = about["axis"]
        values = {e.key: np.asarray(statistic.values[e.names[0]]) for e in known}
        values |= {e.key: _patch(values[e.key], leaves[e.key]) for e in known if e.kind == "patch"}
        turned: dict[str, Callable[[int], int]]
        turned = dict.fromkeys(("dense", "fused", "patch"), lambda a: 1 - a)
        about["axis"] = {e.key: turned.get(e.kind, int)(axis[e.names[0]]) for e in known}
    else:
        values = export(known, statistic.values)
    weights = weights_hash(leaves, values)
    return statistic._replace(values=values, weights=weights, about=about)


def _patch(gram: np.ndarray, kernel) -> np.ndarray:
    """From pixels in the order (height, width, colour) to that of a kernel [out, 3, h, w]."""
    _, colours, height, width = np.shape(kernel)
    order = np.arange(len(gram)).reshape(height, width, colours).transpose(2, 0, 1).reshape(-1)
    return gram[np.ix_(order, order)]
