"""Published methods as compositions of merges and transforms, with the papers' defaults.

One file a family; every factory is registered, so it works in `chain`, recipes and files.
"""

from jaxmerge.methods.arithmetic import *  # noqa: F403
from jaxmerge.methods.continual import *  # noqa: F403
from jaxmerge.methods.data import *  # noqa: F403
from jaxmerge.methods.geometric import *  # noqa: F403
from jaxmerge.methods.masks import *  # noqa: F403
from jaxmerge.methods.selective import *  # noqa: F403
from jaxmerge.methods.sparse import *  # noqa: F403
from jaxmerge.methods.spectral import *  # noqa: F403
