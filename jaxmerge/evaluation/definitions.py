"""The figures of reports by name: what stands above a column, the definition, source, direction.

One table for the tables of a report, `jaxmerge report --metric`, the store of results and the
documentation; the functions are in `jaxmerge.evaluation.metrics`.
"""

from __future__ import annotations

from typing import NamedTuple


class Definition(NamedTuple):
    """A figure.

    Attributes:
        head, short: above a column, wide and narrow.
        meaning: one line.
        source: where the definition is from.
        lower_is_better: the direction.
        shown: whether tables show it without being asked.
    """

    head: str
    short: str
    meaning: str
    source: str
    lower_is_better: bool = False
    shown: bool = True


DEFINITIONS = {
    "accuracy": Definition(
        "Accuracy", "Acc.",
        "mean accuracy on all tasks after the last one, all classes to choose from",
        "Lopez-Paz and Ranzato 2017, ACC; A_last",
    ),
    "aware": Definition(
        "Task-aware", "Aware", "the same, only the classes of the image's own task to choose from",
        "van de Ven and Tolias 2019, task-incremental",
    ),
    "over_time": Definition(
        "Over time", "Over time", "mean over tasks of the accuracy on the tasks seen so far",
        "Rebuffi et al. 2017, average incremental accuracy; A_avg",
    ),
    "bwt": Definition(
        "BWT", "BWT",
        "backward transfer: change on earlier tasks since they were learnt, in points",
        "Lopez-Paz and Ranzato 2017",
    ),
    "fwt": Definition(
        "FWT", "FWT", "forward transfer: advance on a task before it is learnt, in points",
        "Lopez-Paz and Ranzato 2017, against the pretrained model",
    ),
    "forgetting": Definition(
        "Forgetting", "Forg.",
        "mean fall from a task's best accuracy to its last, in points; less is better",
        "Chaudhry et al. 2018",
        lower_is_better=True,
    ),
    "per_class": Definition(
        "Per class", "Per class",
        "accuracy after the last task, all classes to choose from, as a mean over classes",
        "common",
    ),
    "normalised": Definition(
        "Normalised", "Norm.",
        "mean over tasks of the task-aware accuracy over that of the task's own model",
        "Ilharco et al. 2023",
    ),
    "bwt_positive": Definition(
        "BWT+", "BWT+",
        "backward transfer over every later task end, 0 where later tasks harmed, in points",
        "Díaz-Rodríguez et al. 2018",
        shown=False,
    ),
    "fwt_plain": Definition(
        "Plain FWT", "FWT plain", "mean accuracy on tasks before they are learnt",
        "Díaz-Rodríguez et al. 2018; the online papers",
        shown=False,
    ),
    "forgetting_from_best": Definition(
        "Forgetting (from best)", "Forg. best",
        "as forgetting, the best at any task end, the last one too; never negative",
        "mammoth (Buzzega et al. 2020)",
        lower_is_better=True,
        shown=False,
    ),
    "forgetting_all_tasks": Definition(
        "Forgetting (all tasks)", "Forg. all",
        "as forgetting from best, the mean over all tasks, the last of which lost nothing",
        "the online papers (Wei et al. 2023)",
        lower_is_better=True,
        shown=False,
    ),
}  # fmt: skip
NAMES = tuple(DEFINITIONS)
