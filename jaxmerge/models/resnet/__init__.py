"""ResNet-18 and its relatives in JAX: both stems, any width, torchvision's and HF's checkpoints.

>>> import jax
>>> from jaxmerge.models import resnet
>>> config = resnet.Config("cifar", width=20)  # the "reduced" ResNet-18 of the online papers
>>> params = resnet.init(config, jax.random.key(0))
>>> resnet.features(config, params, jax.numpy.zeros((2, 32, 32, 3))).shape
(2, 160)
"""

from jaxmerge.models.resnet.checkpoint import Model, load, save
from jaxmerge.models.resnet.config import Config
from jaxmerge.models.resnet.modeling import (
    Forward,
    features,
    forward,
    init,
    param_shapes,
    recalibrated,
)

__all__ = [
    "Config",
    "Forward",
    "Model",
    "features",
    "forward",
    "init",
    "load",
    "param_shapes",
    "recalibrated",
    "save",
]
