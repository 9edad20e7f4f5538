"""Multi-layer perceptrons: the network of permuted MNIST, and as configured.

>>> import jax
>>> from jaxmerge.models import mlp
>>> config = mlp.Config(inputs=784, hidden=(100, 100))
>>> params = mlp.init(config, jax.random.key(0))
>>> mlp.features(config, params, jax.numpy.zeros((2, 28, 28))).shape
(2, 100)
"""

from jaxmerge.models.mlp.modeling import (
    Config,
    Forward,
    features,
    forward,
    init,
    param_shapes,
)

__all__ = ["Config", "Forward", "features", "forward", "init", "param_shapes"]
