"""Methods, optimisers, problems, evaluators and models by name: specs, as merges are.

    @methods.register
    def ewc(strength: NonNegative = 1.0, examples: Count = 200) -> Method: ...

    ewc(3)                                 # ewc(strength=3.0)
    ewc(3.0) == ewc(3.0)                   # True
    methods.from_settings("ewc", {"strength": 3})          # the same, from a settings file
    methods.from_settings({"method": "ewc", "strength": 3})

The package's own are imported when they are first asked for.  A call gives a `Spec`, not what it
builds: compiled code builds inside, so that another strength compiles nothing.  See
`jaxmerge.core.registry`.
"""

from jaxmerge.core import old_names
from jaxmerge.core.ranges import (
    Correlation,
    Count,
    NonNegative,
    Pattern,
    Positive,
    Range,
    Share,
)
from jaxmerge.core.registry import Registry

__all__ = [
    "Correlation",
    "Count",
    "NonNegative",
    "Pattern",
    "Positive",
    "Range",
    "Share",
    "evaluators",
    "methods",
    "models",
    "optimisers",
    "problems",
]

# Where the package's own are: the registry imports these modules when it is asked for their names.
METHODS = ("jaxmerge.continual.methods",)
OPTIMISERS = ("jaxmerge.continual.optimisers",)
PROBLEMS = (
    "jaxmerge.continual.problems",
    "jaxmerge.continual.distillation",
    "jaxmerge.models.decoder.learner",
)
MODELS = (
    "jaxmerge.training.encoder",
    "jaxmerge.training.learner",
    "jaxmerge.training.model_learner",
    "jaxmerge.continual.distillation",
    "jaxmerge.models.alexnet.learner",
    "jaxmerge.models.clip.learner",
    "jaxmerge.models.decoder.learner",
    "jaxmerge.models.mlp.learner",
    "jaxmerge.models.resnet.learner",
)
methods = Registry("method", old=old_names.METHODS, arguments=old_names.ARGUMENTS, homes=METHODS)
optimisers = Registry("optimiser", homes=OPTIMISERS)
problems = Registry("problem", homes=PROBLEMS)
evaluators = Registry("evaluator", homes=PROBLEMS)
models = Registry("model", homes=MODELS)
