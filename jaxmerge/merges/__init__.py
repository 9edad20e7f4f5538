"""Folds over task vectors: what `chain` takes exactly one of."""

from jaxmerge.merges.elementwise import *  # noqa: F403
from jaxmerge.merges.geometric import *  # noqa: F403
from jaxmerge.merges.masks import *  # noqa: F403
from jaxmerge.merges.running import *  # noqa: F403
from jaxmerge.merges.selective import *  # noqa: F403
from jaxmerge.merges.signs import *  # noqa: F403
from jaxmerge.merges.spectral import *  # noqa: F403
from jaxmerge.merges.subspace import *  # noqa: F403
from jaxmerge.merges.weighted import *  # noqa: F403
