"""The merges of a stream after its last task, each made when it is read: the folds are there, and
a dozen merged models beside them would need more memory than all else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jaxmerge.core.types import Leaves

if TYPE_CHECKING:
    from jaxmerge.studies.loop import Stream


class Deployed(Mapping[str, Leaves]):
    """Row of the table -> merged weights, under the factor that the last task was evaluated with.

    Not among them: the last model, and merges whose factors are rows of their own.
    """

    def __init__(self, stream: Stream):
        self.stream = stream

    def _factors(self) -> dict[str, float | None]:
        stream, t = self.stream, self.stream.done - 1
        merges = [d for d in stream.deploys if not d.last]
        own = [d.label for d in merges if not d.each or len(d.factors) < 2]
        outcomes = {row: stream.outcomes[row] for row in own if t >= 0}
        return {row: o.factors[t] for row, o in outcomes.items() if o.matrix[t][0] is not None}

    def __getitem__(self, row: str) -> Leaves:
        factor = self._factors()[row]
        (deploy,) = [d for d in self.stream.deploys if d.label == row]
        return self.stream.merged(deploy, factor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors())

    def __len__(self) -> int:
        return len(self._factors())
