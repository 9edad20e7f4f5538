"""The small AlexNet of GPM, TRGP, CUBER and FOT.

>>> import jax
>>> from jaxmerge.models import alexnet
>>> config = alexnet.Config(side=19, filters=(4, 4, 4), hidden=(8, 8))
>>> params = alexnet.init(config, jax.random.key(0))
>>> alexnet.features(config, params, jax.numpy.zeros((2, 19, 19, 3))).shape
(2, 8)
"""

from jaxmerge.models.alexnet.modeling import Config, features, forward, init, param_shapes

__all__ = ["Config", "features", "forward", "init", "param_shapes"]
