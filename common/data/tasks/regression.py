"""Regression: numbers to predict, such as depths, boxes or clean images. The loss is squared error, and R2 decides.

Every channel of the targets is one variable; pixels, if there are any, are further samples of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from common.calibration.divergence import Divergence, standardized_error
from common.data.tasks.base import METRICS, TASKS, Metric, Task, are_numbers, describe_tensor


class Regression(Task):
    """Targets are real numbers ``(N,)``, ``(N, K)`` or ``(N, K, ...)``. Outputs have the same shape.

    Either may lack an axis of one channel that the other has: ``(N, 1, H, W)`` and ``(N, H, W)``.
    """

    name = "regression"
    shapes = "numbers of one shape, (N, K, ...), or (N, 1, ...) and (N, ...)"
    metric = "r2"
    shows_all_classes = True
    spare_outputs = False

    def matches(self, targets: Tensor) -> bool:
        """See :func:`common.data.tasks.base.are_numbers`."""
        return are_numbers(targets)

    def checked_targets(self, targets: Tensor, images: int, classes: int | None, where: str) -> Tensor:
        """Finite numbers in float32, in their own shape."""
        if not targets.dim() or len(targets) != images or targets.is_complex():
            raise ValueError(
                f"{where}: targets are {describe_tensor(targets)}; they must be real numbers ({images}, ...) for "
                f"{images} inputs"
            )
        if classes is not None and targets.dim() != 3 and self.count_classes(targets) != classes:
            raise ValueError(
                f"{where}: there are {self.count_classes(targets)} numbers or channels per image but {classes} named"
            )
        numbers = targets.float()
        if not numbers.isfinite().all():
            raise ValueError(f"{where}: targets are not all finite; leave such images out")
        return numbers

    def count_classes(self, targets: Tensor) -> int:
        """The number of variables: the second axis, or 1 of depths ``(N, H, W)`` and numbers ``(N,)``.

        Signals ``(N, K, L)`` count as one, too, since nothing tells them from depths.
        """
        return targets.shape[1] if targets.dim() > 1 and targets.dim() != 3 else 1

    def count_outputs(self, logits: Tensor) -> int | None:
        """None: there are no classes; :meth:`check` compares the shapes."""
        return None

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise a ValueError unless the shapes are equal, but for an axis of one channel."""
        if _like(targets, logits).shape != logits.shape:
            raise self.misfit(logits, targets)

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean squared error, in the targets' unit squared; there are no labels to smooth."""
        self.check(logits, targets)
        return mse_loss(logits, _like(targets, logits).to(logits.dtype))

    def distillation_loss(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """The mean squared error from the teacher's outputs; a temperature has no meaning here."""
        return mse_loss(logits, taught)

    @property
    def divergence(self) -> Divergence:
        """See :func:`common.calibration.divergence.standardized_error`."""
        return standardized_error


def moments(logits: Tensor, targets: Tensor) -> Tensor:
    """For each image and variable: squared error, mean, squared deviations from it, and count, ``(N, K, 4)``."""
    targets = _like(targets, logits)
    found, wanted = (
        each.double().reshape(len(each), each.shape[1] if each.dim() > 1 else 1, -1) for each in (logits, targets)
    )
    mean = wanted.mean(2)
    parts = [(found - wanted).square().sum(2), mean, (wanted - mean[:, :, None]).square().sum(2)]
    return torch.stack([*parts, torch.full_like(mean, wanted.shape[2])], dim=2)


def r2(rows: Tensor) -> float:
    """The coefficient of determination, 1 less the squared error over the variance; the mean over the variables.

    A variable that does not vary, to single precision, counts 1 if it is predicted exactly, else 0, as in
    scikit-learn's ``r2_score``. The value is at most 1, and negative where the mean of the targets would be the better
    prediction. It is NaN if a target or an output is not finite.
    """
    if not rows.isfinite().all():
        return math.nan
    errors, means, within, counts = rows.unbind(2)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    spread = (within + counts * (means - mean).square()).sum(0)
    error = errors.sum(0)
    rounding = count * (torch.finfo(torch.float32).eps * mean).square()
    constant = spread <= rounding
    exact = (error <= rounding).double()
    return float(torch.where(constant, exact, 1 - error / torch.where(constant, 1.0, spread)).mean())


def _like(targets: Tensor, logits: Tensor) -> Tensor:
    """The targets with an axis of one channel more or less, where the outputs have it so."""
    if logits.dim() > 1 and targets.dim() == logits.dim() - 1 and logits.shape[1] == 1:
        return targets.unsqueeze(1)
    if logits.dim() and targets.dim() == logits.dim() + 1 and targets.shape[1] == 1:
        return targets.squeeze(1)
    return targets


TASKS.add(Regression())
METRICS.add(Metric("r2", Regression.name, moments, r2))
