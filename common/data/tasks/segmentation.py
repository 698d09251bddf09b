"""Segmentation: a mask for each class. The loss is binary cross-entropy plus soft Dice, and the mean Dice decides.

A case is one image and one class. In many cases the true mask is empty, so that the usual fractions are 0/0. A pixel
counts as predicted if its logit is positive.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from common.calibration.divergence import Divergence, mask_divergence
from common.data.tasks.base import FOR_NUMBERS, METRICS, TASKS, Metric, Task, are_numbers, describe_tensor

SMOOTH = 1.0
"""Pixels added to both sides of the Dice fraction, so that the loss is finite even if all true masks are empty."""


class Segmentation(Task):
    """Targets are masks ``(N, K, H, W)``, or ``(N, K, D, H, W)`` of volumes, in [0, 1]. Logits have the same shape.

    Each class has its own sigmoid: a pixel may belong to several classes or to none.
    """

    name = "segmentation"
    shapes = "both (N, K, H, W) or (N, K, D, H, W)"
    metric = "dice"
    shows_all_classes = True
    spare_outputs = False

    def matches(self, targets: Tensor) -> bool:
        """Whether there are masks ``(N, K, H, W)``, or such of volumes."""
        return targets.dim() in (4, 5) and not are_numbers(targets)

    def checked_targets(self, targets: Tensor, images: int, classes: int | None, where: str) -> Tensor:
        """Masks ``(N, K, H, W)`` or ``(N, K, D, H, W)`` in float32."""
        if targets.dim() not in (4, 5) or len(targets) != images or targets.is_complex():
            advice = "; give each class its own mask" if targets.dim() == 3 else ""
            raise ValueError(
                f"{where}: targets are {describe_tensor(targets)}; they must be masks ({images}, K, H, W) for "
                f"{images} inputs{advice}"
            )
        if classes is not None and targets.shape[1] != classes:
            raise ValueError(f"{where}: there are {targets.shape[1]} masks per image but {classes} classes")
        masks = targets.float()
        if not ((masks >= 0) & (masks <= 1)).all():
            low, high = (float(value) for value in masks.aminmax())
            raise ValueError(
                f"{where}: masks hold values from {low:g} to {high:g}; they must be in [0, 1]; {FOR_NUMBERS}"
            )
        return masks

    def count_classes(self, targets: Tensor) -> int:
        """The number of masks per image."""
        return targets.shape[1]

    def count_outputs(self, logits: Tensor) -> int | None:
        """The second axis of ``(N, K, H, W)``."""
        return logits.shape[1] if logits.dim() in (4, 5) else None

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise a ValueError unless both are ``(N, K, H, W)``, or both those of volumes."""
        if logits.dim() not in (4, 5) or targets.shape != logits.shape:
            raise self.misfit(logits, targets)

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Binary cross-entropy in nats plus the soft Dice loss in [0, 1].

        Label smoothing moves a pixel's target toward one half; the Dice term ignores it.
        """
        self.check(logits, targets)
        smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
        return binary_cross_entropy_with_logits(logits, smoothed) + soft_dice_loss(logits, targets)

    def distillation_loss(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """The divergence of each pixel's two outcomes, the mean over pixels and classes."""
        student, teacher = (side / temperature for side in (logits, taught))
        chances = teacher.sigmoid()
        cross, own = (binary_cross_entropy_with_logits(side, chances) for side in (student, teacher))
        return (cross - own) * temperature**2

    def last_layer_to_leave_out(self, outputs: Tensor) -> str:
        """The sigmoid, where all outputs are in [0, 1]."""
        return "sigmoid" if bool(((outputs >= 0) & (outputs <= 1)).all()) else ""

    @property
    def divergence(self) -> Divergence:
        """See :func:`common.calibration.divergence.mask_divergence`."""
        return mask_divergence


def soft_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """``1 - (2 sum p t + s) / (sum p + sum t + s)``, the mean over classes; p are the sigmoids of the logits.

    The sums run over the whole batch, as nnU-Net's batch Dice does (Isensee et al. 2021; Drozdzal et al. 2016 for the
    loss itself). Over a single image whose true mask is empty, the term would not measure how wrong a prediction is.

    Args:
        logits: ``(N, K, H, W)`` or ``(N, K, D, H, W)``.
        targets: masks of the same shape.
    """
    shares, axes = logits.sigmoid(), (0, *range(2, logits.dim()))
    both = (shares * targets).sum(axes)
    either = (shares + targets).sum(axes)
    return (1 - (2 * both + SMOOTH) / (either + SMOOTH)).mean()


def areas(logits: Tensor, targets: Tensor) -> Tensor:
    """Pixel counts of each case, ``(N, K, 4)``: in prediction and truth, in the prediction, in the truth, in all."""
    predicted, truth = logits > 0, targets > 0.5
    counts = [part.flatten(2).sum(2) for part in (predicted & truth, predicted, truth)]
    return torch.stack([*counts, torch.full_like(counts[0], targets[0, 0].numel())], dim=2)


def dice(cases: Tensor) -> float:
    """2 |P and T| / (|P| + |T|), the mean over all cases; 1 for a case where both are empty."""
    return float(_dice_of_cases(cases).mean())


def dice_present(cases: Tensor) -> float | None:
    """The mean Dice over the cases whose true mask is not empty; None if there is none."""
    present = cases[:, :, 2] > 0
    return float(_dice_of_cases(cases)[present].mean()) if present.any() else None


def dice_pooled(cases: Tensor) -> float:
    """Dice over the pixels of all images at once, the mean over classes; 1 for a class that never occurs."""
    both, predicted, truth, _ = cases.double().unbind(2)
    return float(_fraction(2 * both.sum(0), (predicted + truth).sum(0)).mean())


def iou(cases: Tensor) -> float:
    """|P and T| / |P or T|, the mean over all cases; 1 for a case where both are empty."""
    both, predicted, truth, _ = cases.double().unbind(2)
    return float(_fraction(both, predicted + truth - both).mean())


def pixel_accuracy(cases: Tensor) -> float:
    """The share of correct pixels of a case, the mean over all cases."""
    both, predicted, truth, pixels = cases.double().unbind(2)
    return float(1 - ((predicted + truth - 2 * both) / pixels).mean())


def missed(cases: Tensor) -> float | None:
    """Of the cases whose true mask is not empty, the share in which no true pixel is predicted; None if none is."""
    both, _, truth, _ = cases.unbind(2)
    present = truth > 0
    return float((both[present] == 0).double().mean()) if present.any() else None


def false_alarms(cases: Tensor) -> float | None:
    """Of the cases whose true mask is empty, the share in which a pixel is predicted; None if there is none."""
    _, predicted, truth, _ = cases.unbind(2)
    absent = truth == 0
    return float((predicted[absent] > 0).double().mean()) if absent.any() else None


def _dice_of_cases(cases: Tensor) -> Tensor:
    """``(N, K)``."""
    both, predicted, truth, _ = cases.double().unbind(2)
    return _fraction(2 * both, predicted + truth)


def _fraction(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, and 1 where ``whole`` is 0."""
    return torch.where(whole > 0, part / whole.clamp(min=1), 1.0)


TASKS.add(Segmentation())
_SUMMARIES: dict[str, Callable[[Tensor], float | None]] = {
    "dice": dice,
    "iou": iou,
    "dice_pooled": dice_pooled,
    "pixel_accuracy": pixel_accuracy,
    "dice_present": dice_present,
    "missed": missed,
    "false_alarms": false_alarms,
}
"""All in [0, 1]. Records list them in this order."""
for _name, _summary in _SUMMARIES.items():
    METRICS.add(
        Metric(_name, Segmentation.name, areas, _summary, greater_is_better=_name not in ("missed", "false_alarms"))
    )
