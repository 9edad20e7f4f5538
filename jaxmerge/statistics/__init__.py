"""Facts about a model on data, computed once and stored beside its checkpoint.

stat = fisher(apply, params, batches)          # or gram(...)
save(stat, "expert/fisher.safetensors")
jm.merge(jm.fisher_merging(), base, models, extras=[extras(load(p)) for p in paths])
"""

from jaxmerge.statistics.capture import dense_inputs
from jaxmerge.statistics.fisher import fisher
from jaxmerge.statistics.gram import gram
from jaxmerge.statistics.layout import in_layout
from jaxmerge.statistics.store import (
    Statistic,
    check_weights,
    extras,
    load,
    normalised,
    of_file,
    save,
    weights_hash,
)

__all__ = [
    "Statistic",
    "check_weights",
    "dense_inputs",
    "extras",
    "fisher",
    "gram",
    "in_layout",
    "load",
    "normalised",
    "of_file",
    "save",
    "weights_hash",
]
