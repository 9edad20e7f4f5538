"""PEFT's LoRA adapters: read, put on a base leaf by leaf, combined with each other, extracted.

* `adapter`: an adapter folder, checked from its settings and headers
* `applied`: a base with an adapter on it, each leaf computed when it is read
* `combine`: several adapters as one, in the ways of PEFT's `add_weighted_adapter`
* `extract`: the change of a fine-tune as an adapter
"""

from jaxmerge.io.adapters.adapter import Adapter, Module
from jaxmerge.io.adapters.applied import applied

__all__ = ["Adapter", "Module", "applied"]
