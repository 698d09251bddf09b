"""The tasks that networks learn, each in one file: its targets, its loss, its metrics and the one that decides."""

from common.data.tasks.base import METRICS, TASKS, Metric, Task, metrics_of, task_of

# The first task names what targets should be that match none.
# isort: off
from common.data.tasks.classification import Classification
from common.data.tasks.regression import Regression
from common.data.tasks.segmentation import Segmentation
# isort: on

__all__ = [
    "METRICS",
    "TASKS",
    "Classification",
    "Metric",
    "Regression",
    "Segmentation",
    "Task",
    "metrics_of",
    "task_of",
]
