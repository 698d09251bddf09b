"""``Task`` and ``Metric``, and the registries of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from common.validation import Registry


class Task(ABC):
    """What a network learns from data.

    Attributes:
        name: in data sets, models and messages.
        shapes: of logits and targets, in words, for messages.
        metric: name of the metric that decides, unless a data set names another.
        shows_all_classes: whether the targets of one batch show how many classes there are.
        spare_outputs: whether a network may have more outputs than the data has classes.
    """

    name: ClassVar[str]
    shapes: ClassVar[str]
    metric: ClassVar[str]
    shows_all_classes: ClassVar[bool]
    spare_outputs: ClassVar[bool]

    @abstractmethod
    def matches(self, targets: Tensor) -> bool:
        """Whether targets of this shape are those of the task."""

    @abstractmethod
    def checked_targets(self, targets: Tensor, images: int, classes: int | None, where: str) -> Tensor:
        """The targets of a batch in the type that :meth:`loss` takes.

        Args:
            targets: as a data loader gives them.
            images: in the batch.
            classes: number of classes; None allows any.
            where: the start of an error message, e.g. ``the train loader``.

        Raises:
            ValueError: a network cannot learn the task from these targets.
        """

    @abstractmethod
    def count_classes(self, targets: Tensor) -> int:
        """Number of classes that these targets need."""

    @abstractmethod
    def count_outputs(self, logits: Tensor) -> int | None:
        """Number of classes for which ``logits`` have an output; None where their shape does not fit the task."""

    @abstractmethod
    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise a ValueError unless :meth:`loss` can compare the two."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """What training minimises, a scalar.

        Args:
            logits: of a batch, see ``shapes``.
            targets: of the same batch.
            label_smoothing: probability mass in [0, 1) that is spread evenly over all classes.

        Raises:
            ValueError: see :meth:`check`.
        """

    @abstractmethod
    def distillation_loss(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """Kullback-Leibler divergence from the teacher's softened outputs, times T^2 (Hinton, Vinyals and Dean 2015).

        Args:
            logits: of the student.
            taught: logits of the teacher, of the same shape.
            temperature: T, which divides both.

        Returns:
            The mean over the images, a scalar in nats.
        """

    def misfit(self, logits: Tensor, targets: Tensor) -> ValueError:
        """The error for logits and targets whose shapes do not fit each other."""
        shapes = f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}"
        return ValueError(f"{shapes}: they must be {', or '.join(task.shapes for task in TASKS.values())}")


@dataclass(frozen=True)
class Metric:
    """A figure that networks are judged by.

    Attributes:
        name: in logs, tables and messages.
        task: the name of the task whose networks it judges.
        observe: logits and targets of a batch -> one row an image, ``(N, ...)``. Metrics that share this function
            share its results.
        summarize: the rows of all images -> the figure; None where it is not defined for these images.
        greater_is_better: only such a metric can decide among networks.
    """

    name: str
    task: str
    observe: Callable[[Tensor, Tensor], Tensor]
    summarize: Callable[[Tensor], float | None]
    greater_is_better: bool = True


TASKS: Registry[Task] = Registry("task", lambda task: task.name)
METRICS: Registry[Metric] = Registry("metric", lambda metric: metric.name)


def describe_tensor(tensor: Tensor) -> str:
    """Describe a tensor by type and shape for an error message, e.g. ``int64 of shape (4, 1)``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def task_of(targets: Tensor) -> Task | None:
    """The first task that ``targets`` can be of, by their shape; None where there is none."""
    return next((task for task in TASKS.values() if task.matches(targets)), None)


def metrics_of(task: str) -> list[Metric]:
    """The metrics that judge networks of the task of this name."""
    return [metric for metric in METRICS.values() if metric.task == task]
