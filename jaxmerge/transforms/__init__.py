"""Maps of one task vector to another: what `chain` puts before and after the merge."""

from jaxmerge.transforms import (
    layers,
    random,
    scaling,
    sparsify,
    spectral,
)
from jaxmerge.transforms.layers import *  # noqa: F403
from jaxmerge.transforms.random import *  # noqa: F403
from jaxmerge.transforms.scaling import *  # noqa: F403
from jaxmerge.transforms.sparsify import *  # noqa: F403
from jaxmerge.transforms.spectral import *  # noqa: F403

__all__: list[str] = []
__all__ += layers.__all__
__all__ += random.__all__
__all__ += scaling.__all__
__all__ += sparsify.__all__
__all__ += spectral.__all__
