"""What methods remember from task to task, as pytrees of fixed shapes.

============  ==================================================================  =================
module        what it holds                                                       used by
============  ==================================================================  =================
anchor        a quadratic pull towards earlier weights, its importances           l2, ewc, si, mas
basis         an orthonormal basis of what a layer has seen                       gpm
gaussians     mean and covariance of the features of each class                   slca
leaves        which leaves a method holds                                         all of these
============  ==================================================================  =================

Past examples are in `jaxmerge.continual.buffers`.
"""
