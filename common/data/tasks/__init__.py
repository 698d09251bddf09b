"""What a network learns, one file a task: its targets, its loss, its metrics and the one that decides."""

from common.data.tasks.base import METRICS, TASKS, Metric, Task, metrics_of, task_of

# A task is recognised by its targets; where several could be meant, the first one is.
# isort: off
from common.data.tasks.classification import Classification
from common.data.tasks.segmentation import Segmentation
# isort: on

__all__ = ["METRICS", "TASKS", "Classification", "Metric", "Segmentation", "Task", "metrics_of", "task_of"]
