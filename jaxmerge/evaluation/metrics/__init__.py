"""Figures from the matrix ``R[t, g]``: the score on group g after task t (0-based).

A group is what is evaluated on its own: the test examples of a task, a class, a domain.  Each is
learnt in a task, ``learnt[g]``; by default group g in task g.

====================  =========================================================================
final                 mean_g R[T-1, g]
over time             after task t the mean of R[t, g] over the groups learnt so far; as one figure
                      its mean over t ("average incremental accuracy")
A_AUC                 the plain mean of a series that was scored at regular marks during training
backward transfer     mean over groups learnt before T-1 of R[T-1, g] - R[learnt, g]
  positive (BWT+)     max(0, mean over all t > learnt[g] of R[t, g] - R[learnt, g])
forward transfer      mean over groups learnt after 0 of R[learnt - 1, g] - untrained[g]
  plain               mean over all t < learnt[g] of R[t, g]
normalised            mean_g A[T-1, g] / individual[g], A task-aware as individual[g] is
per class             mean over the classes that occur of the share of their examples that is right
====================  =========================================================================

Forgetting is what a group lost from its best score to the last; the literature has five meanings
of it, so each has a name of its own:

======================  =======================================================================
forgetting              best over the task ends from learnt[g] to T-2; mean over groups learnt
                        before T-1; may be negative (Chaudhry et al. 2018)
forgetting_from_best    best over **all** task ends, the last one too, so never negative; mean over
                        groups learnt before T-1 (mammoth)
forgetting_all_tasks    as that, the mean over **all** groups; the last has lost nothing (OnPro and
                        the code of other online papers)
forgetting_by_class     groups are classes: best over the task ends before the last; mean over the
                        classes that were ever right before, may be negative (CLIB's F_last)
forgetting_anytime      best over all scores before the last, those in the middle of a task too;
                        mean over groups learnt before T-1 (PRD)
======================  =======================================================================

**Direction.** Where less is better (a perplexity), give ``lower_is_better=True``: best is then the
least, and forgetting is a rise, so that it is still less is better, as transfer is still more.

**Missing scores** are NaN.  A figure that needs one is NaN; scores before a group was learnt may be
missing where a figure only looks for a best among them.  `of_groups` leaves out task ends without
any score, so that its figures are those of the stretches between two scores.  With one task
backward and forward transfer and forgetting do not exist and are NaN.

Sources: Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017, section 2 (final, backward
and forward transfer; their untrained network is drawn at random, that of a study here is the
pretrained one); Díaz-Rodríguez et al., Don't forget, there is more than forgetting, 2018
(arXiv 1810.13166), section 2 (BWT+, plain forward transfer); Chaudhry et al., Riemannian Walk,
ECCV 2018, section 3;
Rebuffi et al., iCaRL, CVPR 2017, section 4 (over time); Koh et al., CLIB, ICLR 2022, section 4
(A_AUC); Asadi et al., PRD, ICML 2023; Wei et al., OnPro, ICCV 2023; Buzzega et al., DER, NeurIPS
2020 and its mammoth; Ilharco et al., Task Arithmetic, ICLR 2023, section 4 (normalised).
"""

from __future__ import annotations

from jaxmerge.evaluation.metrics.accuracy import (
    area_under_curve,
    average_accuracy,
    by_age,
    normalised,
    over_time,
    per_class,
)
from jaxmerge.evaluation.metrics.forgetting_measures import (
    forgetting,
    forgetting_all_tasks,
    forgetting_anytime,
    forgetting_by_class,
    forgetting_from_best,
)
from jaxmerge.evaluation.metrics.summaries import interval, of_groups, summary
from jaxmerge.evaluation.metrics.transfer import (
    backward_transfer,
    forward_transfer,
    plain_forward_transfer,
    positive_backward_transfer,
)

__all__ = [
    "area_under_curve",
    "average_accuracy",
    "backward_transfer",
    "by_age",
    "forgetting",
    "forgetting_all_tasks",
    "forgetting_anytime",
    "forgetting_by_class",
    "forgetting_from_best",
    "forward_transfer",
    "interval",
    "normalised",
    "of_groups",
    "over_time",
    "per_class",
    "plain_forward_transfer",
    "positive_backward_transfer",
    "summary",
]
