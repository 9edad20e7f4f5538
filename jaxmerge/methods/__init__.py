"""Published methods as compositions of merges and transforms, with the papers' defaults.

One file a family; every factory is registered, so it works in `chain`, recipes and files.
"""

from jaxmerge.methods import (
    arithmetic,
    continual,
    data,
    geometric,
    masks,
    selective,
    sparse,
    spectral,
)
from jaxmerge.methods.arithmetic import *  # noqa: F403
from jaxmerge.methods.continual import *  # noqa: F403
from jaxmerge.methods.data import *  # noqa: F403
from jaxmerge.methods.geometric import *  # noqa: F403
from jaxmerge.methods.masks import *  # noqa: F403
from jaxmerge.methods.selective import *  # noqa: F403
from jaxmerge.methods.sparse import *  # noqa: F403
from jaxmerge.methods.spectral import *  # noqa: F403

__all__: list[str] = []
__all__ += arithmetic.__all__
__all__ += continual.__all__
__all__ += data.__all__
__all__ += geometric.__all__
__all__ += masks.__all__
__all__ += selective.__all__
__all__ += sparse.__all__
__all__ += spectral.__all__
