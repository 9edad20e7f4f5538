"""Methods, optimisers, problems, evaluators and models by name: specs, as merges are.

    @methods.register
    def ewc(strength: NonNegative = 1.0, examples: Count = 200) -> Method: ...

    ewc(3)                                 # ewc(strength=3.0)
    ewc(3.0) == ewc(3.0)                   # True
    methods.from_settings("ewc", {"strength": 3})          # the same, from a settings file
    methods.from_settings({"method": "ewc", "strength": 3})

A call gives a `Spec`, not what it builds: compiled code builds inside, so that another strength
compiles nothing.  See `jaxmerge.core.registry`.
"""

from jaxmerge.core import old_names
from jaxmerge.core.ranges import Count, NonNegative, Positive, Range, Share
from jaxmerge.core.registry import Registry

__all__ = [
    "Count",
    "NonNegative",
    "Positive",
    "Range",
    "Share",
    "evaluators",
    "methods",
    "models",
    "optimisers",
    "problems",
]

methods = Registry("method", old=old_names.METHODS)
optimisers = Registry("optimiser")
problems = Registry("problem")
evaluators = Registry("evaluator")
models = Registry("model")
