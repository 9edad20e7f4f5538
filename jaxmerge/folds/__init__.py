"""Folds over task vectors: what `chain` takes exactly one of."""

from jaxmerge.folds import (
    elementwise,
    geometric,
    running,
    signs,
    spectral,
    subspace,
)
from jaxmerge.folds.elementwise import *  # noqa: F403
from jaxmerge.folds.geometric import *  # noqa: F403
from jaxmerge.folds.running import *  # noqa: F403
from jaxmerge.folds.signs import *  # noqa: F403
from jaxmerge.folds.spectral import *  # noqa: F403
from jaxmerge.folds.subspace import *  # noqa: F403

__all__: list[str] = []
__all__ += elementwise.__all__
__all__ += geometric.__all__
__all__ += running.__all__
__all__ += signs.__all__
__all__ += spectral.__all__
__all__ += subspace.__all__
