"""The tasks that networks learn, each in one file: its targets, its loss, its metrics and the one that decides."""

from common.data.tasks.base import METRICS, TASKS, Metric, Task, metrics_of, task_of

# A task is recognised by its targets. If several tasks match, the first one is chosen.
# isort: off
from common.data.tasks.classification import Classification
from common.data.tasks.segmentation import Segmentation
# isort: on

__all__ = ["METRICS", "TASKS", "Classification", "Metric", "Segmentation", "Task", "metrics_of", "task_of"]
