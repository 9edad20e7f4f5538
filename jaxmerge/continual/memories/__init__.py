"""What methods remember from task to task, as pytrees of fixed shapes.

============  ==================================================================  =================
module        what it holds                                                       used by
============  ==================================================================  =================
anchor        a quadratic pull towards earlier weights, its importances           l2, ewc, si, mas
basis         an orthonormal basis of what a layer has seen                       gpm, fot
clients       what the clients of a federated round learn                         fedavg, fot
eight_bits    features in a byte each                                             er
feedback      replay batches with mixtures of classes that lie close              onpro
gaussians     mean and covariance of the features of each class                   slca, slcapp
herding       examples whose mean is that of their class                          er
importance    examples by how much they lower the loss, classes balanced          clib, pl_fms
leaves        which leaves a method holds                                         most of these
rate          a learning rate that follows the loss of a memory                   clib, pl_fms
============  ==================================================================  =================

Past examples are in `jaxmerge.continual.buffers`.
"""
