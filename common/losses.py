"""What training minimises."""

from __future__ import annotations

from torch import Tensor, nn

SMOOTH = 1.0
"""Pixels added to both sides of the Dice fraction: a batch without any truth has a finite loss and gradient."""


def task_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy for class numbers, soft Dice plus binary cross-entropy for masks; the kind of targets decides.

    Args:
        logits: ``(N, classes)``, or ``(N, K, H, W)`` with one sigmoid a class.
        targets: class numbers ``(N,)``, or masks ``(N, K, H, W)`` of values in [0, 1].
        label_smoothing: mass spread evenly over all classes; for masks, over a pixel's being of the class or not. The
            Dice term is left as it is.

    Returns:
        A scalar, in nats; the Dice term has no unit and lies in [0, 1].

    Raises:
        ValueError: the shapes fit neither.
    """
    if logits.dim() == 2 and targets.shape == logits.shape[:1]:
        return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if logits.dim() == 4 and targets.shape == logits.shape:
        smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
        return nn.functional.binary_cross_entropy_with_logits(logits, smoothed) + soft_dice_loss(logits, targets)
    raise ValueError(
        f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: they must be (N, classes) and (N,), "
        "or both (N, K, H, W)"
    )


def soft_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """``1 - (2 sum p t + s) / (sum p + sum t + s)``, the mean over classes; p are the sigmoids of the logits.

    The sums run over the whole batch, as nnU-Net's batch Dice does (Isensee et al. 2021; Drozdzal et al. 2016 for the
    loss itself). Over each image alone the term would say nothing about how wrong a slice without any truth is.

    Args:
        logits: ``(N, K, H, W)``.
        targets: masks ``(N, K, H, W)``.
    """
    shares = logits.sigmoid()
    both = (shares * targets).sum((0, 2, 3))
    either = (shares + targets).sum((0, 2, 3))
    return (1 - (2 * both + SMOOTH) / (either + SMOOTH)).mean()
