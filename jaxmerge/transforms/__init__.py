"""Maps of one task vector to another: what `chain` puts before and after the merge."""

from jaxmerge.transforms.layers import *  # noqa: F403
from jaxmerge.transforms.random import *  # noqa: F403
from jaxmerge.transforms.scaling import *  # noqa: F403
from jaxmerge.transforms.sparsify import *  # noqa: F403
from jaxmerge.transforms.spectral import *  # noqa: F403
