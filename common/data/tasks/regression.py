"""Regression: numbers to predict, such as depths, boxes or clean images. The loss is squared error, and R2 decides.

Every channel of the targets is one variable; pixels, if there are any, are further samples of it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from common.calibration.divergence import Divergence, squared_error
from common.data.tasks.base import METRICS, TASKS, Metric, Task, are_numbers, describe_tensor


class Regression(Task):
    """Targets are real numbers ``(N,)``, ``(N, K)`` or ``(N, K, ...)``. Outputs have the same shape, or ``(N, 1)``."""

    name = "regression"
    shapes = "numbers of one shape, (N, K, ...), or (N, 1) and (N,)"
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
        if classes is not None and self.count_classes(targets) != classes:
            raise ValueError(
                f"{where}: there are {self.count_classes(targets)} numbers or channels per image but {classes} names"
            )
        numbers = targets.float()
        if not numbers.isfinite().all():
            raise ValueError(f"{where}: targets are not all finite; leave such images out")
        return numbers

    def count_classes(self, targets: Tensor) -> int:
        """The number of variables: the second axis, or 1."""
        return targets.shape[1] if targets.dim() > 1 else 1

    def count_outputs(self, logits: Tensor) -> int | None:
        """None: there are no classes; :meth:`check` compares the shapes."""
        return None

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise a ValueError unless the shapes are equal, or ``(N, 1)`` and ``(N,)``."""
        shapes = {tuple(logits.shape), tuple(targets.shape)}
        if len(shapes) > 1 and shapes != {(len(logits),), (len(logits), 1)}:
            raise self.misfit(logits, targets)

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean squared error, in the targets' unit squared."""
        if label_smoothing:
            raise ValueError(f"label_smoothing={label_smoothing}: numbers to predict have no classes; it must be 0")
        self.check(logits, targets)
        return mse_loss(logits, targets.to(logits.dtype).reshape(logits.shape))

    def distillation_loss(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """The mean squared error from the teacher's outputs; a temperature has no meaning here."""
        return mse_loss(logits, taught)

    @property
    def divergence(self) -> Divergence:
        """See :func:`common.calibration.divergence.squared_error`."""
        return squared_error


def sums(logits: Tensor, targets: Tensor) -> Tensor:
    """For each image and variable: squared error, sum and sum of squares of the targets, and count, ``(N, K, 4)``."""
    found, wanted = (
        each.double().reshape(len(each), each.shape[1] if each.dim() > 1 else 1, -1) for each in (logits, targets)
    )
    parts = [(found - wanted).square().sum(2), wanted.sum(2), wanted.square().sum(2)]
    return torch.stack([*parts, torch.full_like(parts[0], wanted.shape[2])], dim=2)


def r2(rows: Tensor) -> float:
    """The coefficient of determination, 1 less the squared error over the variance; the mean over the variables.

    A variable that does not vary counts 1 if it is predicted exactly, else 0, as in scikit-learn's ``r2_score``. The
    value is at most 1, and negative where the mean of the targets would be the better prediction.
    """
    error, total, squares, count = rows.sum(0).unbind(1)
    spread = squares - total.square() / count
    varies = spread > 1e-12 * squares
    exact = (error <= 1e-12 * squares).double()
    return float(torch.where(varies, 1 - error / torch.where(varies, spread, 1.0), exact).mean())


TASKS.add(Regression())
METRICS.add(Metric("r2", Regression.name, sums, r2))
