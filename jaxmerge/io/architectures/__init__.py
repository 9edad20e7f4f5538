"""What a model is made of: stacks of layers, roles of leaves, ties, vocabularies, orientation.

`architecture(source)` answers for one opened model; whatever has to know a layer, an embedding, a
kernel or a key of config.json asks it, and nothing else guesses from names.

* `names`: names taken apart into segments and numbers
* `stacks`: which numbers count layers, found in names and shapes
* `roles`: what a leaf is for, by rules that hold for every family
* `table`: what is known of the families of transformers, generated from their own modules
* `ties`: arrays that may be stored under several names
* `orientation`: [in, out] or [out, in], where only shapes can say
* `configs`: keys of config.json, nested or not: counts, lists by layer, vocabularies, dtypes
* `config_changes`: what a merge changes in it
* `description`: an architecture in words
"""

from jaxmerge.io.architectures.architecture import Architecture, architecture
from jaxmerge.io.architectures.roles import ROLES, part_of, role_of, tower_of
from jaxmerge.io.architectures.stacks import Place, Stack

__all__ = [
    "ROLES",
    "Architecture",
    "Place",
    "Stack",
    "architecture",
    "part_of",
    "role_of",
    "tower_of",
]
