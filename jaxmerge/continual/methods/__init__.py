"""Published methods, one file each; importing this package registers them by name."""

from jaxmerge.continual.methods.der import der, derpp
from jaxmerge.continual.methods.er import er

__all__ = ["der", "derpp", "er"]
