"""Folds over task vectors: what `chain` takes exactly one of."""

from jaxmerge.merges import (
    elementwise,
    geometric,
    masks,
    running,
    selective,
    signs,
    spectral,
    subspace,
    weighted,
)
from jaxmerge.merges.elementwise import *  # noqa: F403
from jaxmerge.merges.geometric import *  # noqa: F403
from jaxmerge.merges.masks import *  # noqa: F403
from jaxmerge.merges.running import *  # noqa: F403
from jaxmerge.merges.selective import *  # noqa: F403
from jaxmerge.merges.signs import *  # noqa: F403
from jaxmerge.merges.spectral import *  # noqa: F403
from jaxmerge.merges.subspace import *  # noqa: F403
from jaxmerge.merges.weighted import *  # noqa: F403

__all__: list[str] = []
__all__ += elementwise.__all__
__all__ += geometric.__all__
__all__ += masks.__all__
__all__ += running.__all__
__all__ += selective.__all__
__all__ += signs.__all__
__all__ += spectral.__all__
__all__ += subspace.__all__
__all__ += weighted.__all__
