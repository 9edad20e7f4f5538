"""Published methods as compositions of merges and transforms, with the papers' defaults.

One file a family; every factory is registered, so it works in `chain`, recipes and files.  A fold
that serves one method alone stands in the method's file.
"""

from jaxmerge.methods import (
    arithmetic,
    continual,
    data,
    emr_merging,
    geometric,
    masks,
    pcb_merging,
    selective,
    sparse,
    spectral,
    stock,
)
from jaxmerge.methods.arithmetic import *  # noqa: F403
from jaxmerge.methods.continual import *  # noqa: F403
from jaxmerge.methods.data import *  # noqa: F403
from jaxmerge.methods.emr_merging import *  # noqa: F403
from jaxmerge.methods.geometric import *  # noqa: F403
from jaxmerge.methods.masks import *  # noqa: F403
from jaxmerge.methods.pcb_merging import *  # noqa: F403
from jaxmerge.methods.selective import *  # noqa: F403
from jaxmerge.methods.sparse import *  # noqa: F403
from jaxmerge.methods.spectral import *  # noqa: F403
from jaxmerge.methods.stock import *  # noqa: F403

__all__: list[str] = []
__all__ += arithmetic.__all__
__all__ += continual.__all__
__all__ += data.__all__
__all__ += emr_merging.__all__
__all__ += geometric.__all__
__all__ += masks.__all__
__all__ += pcb_merging.__all__
__all__ += selective.__all__
__all__ += sparse.__all__
__all__ += spectral.__all__
__all__ += stock.__all__
