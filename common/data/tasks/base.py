"""``Task`` and ``Metric``, and the registries of both."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from common.calibration.divergence import Divergence
from common.validation import Registry


class Task(ABC):
    """A task that networks learn from data.

    Attributes:
        name: name in data sets, models and messages.
        shapes: shapes of logits and targets, in words, for messages.
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
        """Whether these targets, of one batch, look like those of the task. At most one task matches."""

    @abstractmethod
    def checked_targets(self, targets: Tensor, images: int, classes: int | None, where: str) -> Tensor:
        """Return the targets of a batch in the type that :meth:`loss` takes.

        Args:
            targets: targets as a data loader gives them.
            images: number of images in the batch.
            classes: number of classes; None allows any.
            where: start of an error message, e.g. ``the train loader``.

        Raises:
            ValueError: a network cannot learn the task from these targets.
        """

    @abstractmethod
    def count_classes(self, targets: Tensor) -> int:
        """Number of classes that these targets need."""

    @abstractmethod
    def count_outputs(self, logits: Tensor) -> int | None:
        """Number of classes for which ``logits`` have an output; None if their shape does not fit the task."""

    @abstractmethod
    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise a ValueError unless :meth:`loss` can compare the two."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The loss that training minimises, a scalar.

        Args:
            logits: logits of a batch, see ``shapes``.
            targets: targets of the same batch.
            label_smoothing: probability mass in [0, 1) that is spread evenly over all classes.

        Raises:
            ValueError: see :meth:`check`.
        """

    @abstractmethod
    def distillation_loss(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """How far a student's outputs are from its teacher's.

        Of classes, it is the Kullback-Leibler divergence from the teacher's softened outputs, times T^2, in nats
        (Hinton, Vinyals and Dean 2015).

        Args:
            logits: logits of the student.
            taught: logits of the teacher, of the same shape.
            temperature: T, by which both are divided.

        Returns:
            The mean over the images, a scalar.
        """

    @property
    @abstractmethod
    def divergence(self) -> Divergence:
        """The function of :mod:`common.calibration.divergence` for how far logits are from the dense network's."""

    def last_layer_to_leave_out(self, outputs: Tensor) -> str:
        """Name the layer that made probabilities of the logits, if ``outputs`` look so; else return nothing."""
        return ""

    def misfit(self, logits: Tensor, targets: Tensor) -> ValueError:
        """Return the error for logits and targets whose shapes do not fit each other."""
        shapes = f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}"
        others = (f"{task.shapes} for {task.name}" for task in TASKS.values() if task is not self)
        return ValueError(f"{shapes}: they must be {self.shapes} for {self.name}, or {', or '.join(others)}")


@dataclass(frozen=True)
class Metric:
    """A metric by which networks are judged.

    Attributes:
        name: name in logs, tables and messages.
        task: name of the task whose networks it judges.
        observe: logits and targets of a batch -> one row for each image, ``(N, ...)``. Metrics that share this
            function share its results.
        summarize: rows of all images -> value of the metric; None if it is not defined for these images.
        greater_is_better: whether greater values are better. Only such a metric can decide among networks.
    """

    name: str
    task: str
    observe: Callable[[Tensor, Tensor], Tensor]
    summarize: Callable[[Tensor], float | None]
    greater_is_better: bool = True


TASKS: Registry[Task] = Registry("task", lambda task: task.name)
METRICS: Registry[Metric] = Registry("metric", lambda metric: metric.name)


FOR_NUMBERS = "numbers to predict need task='regression'"
"""Advice for targets that other tasks refuse."""


def describe_tensor(tensor: Tensor) -> str:
    """Describe a tensor by type and shape for an error message, e.g. ``int64 of shape (4, 1)``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def are_numbers(targets: Tensor) -> bool:
    """Whether the targets of a batch are numbers to predict: neither class numbers, nor shares of classes, nor masks.

    They are if one of them is not a whole number. Exceptions are ``(N, K)`` whose rows are probabilities, as those of
    smoothed or mixed labels; values in [0, 1] of which there are only two, as those of smoothed masks; and what looks
    like masks with soft edges: ``(N, K, H, W)`` in [0, 1], of which at least as many are 1 as lie between 0 and 1.
    """
    if not targets.is_floating_point() or bool((targets == targets.round()).all()):
        return False
    if targets.dim() > 1 and bool(((targets >= 0) & (targets <= 1)).all()):
        low, high = targets.aminmax()
        if targets.numel() > 2 and bool(((targets == low) | (targets == high)).all()):
            return False
        if may_be_soft(targets):
            ones = targets == 1
            return int(ones.sum()) < int(((targets > 0) & ~ones).sum())
    return not are_probabilities(targets)


def may_be_soft(targets: Tensor) -> bool:
    """Whether targets of images ``(N, K, H, W)`` may be masks with soft edges as well as numbers to predict."""
    in_range = targets.dim() in (4, 5) and bool(((targets >= 0) & (targets <= 1)).all())
    return in_range and bool((targets != targets.round()).any())


def are_probabilities(targets: Tensor) -> bool:
    """Whether targets ``(N, K)`` are probabilities of classes, as those of smoothed or mixed labels are."""
    sums = targets.sum(1) if targets.dim() == 2 else None
    return sums is not None and bool((targets >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


def warn_of_probabilities(task: Task, outputs: Tensor) -> None:
    """Warn once if a network returns probabilities, of which metrics and losses would make others."""
    whole = bool((outputs == outputs.round()).all())
    if not whole and (layer := task.last_layer_to_leave_out(outputs)):
        warnings.warn(
            f"the network's outputs look like probabilities; {task.name} takes logits: leave out the last {layer}",
            stacklevel=1,  # one place for all callers, so that it is said once
        )


def task_of(targets: Tensor) -> Task | None:
    """The task that the targets of a batch match; None if there is none."""
    return next((task for task in TASKS.values() if task.matches(targets)), None)


def metrics_of(task: str) -> list[Metric]:
    """The metrics of the task with this name."""
    return [metric for metric in METRICS.values() if metric.task == task]
