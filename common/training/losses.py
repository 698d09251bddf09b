"""What training minimises."""

from __future__ import annotations

import torch
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
        ValueError: see :func:`check_targets`.
    """
    check_targets(logits, targets)
    if logits.dim() == 2:
        return nn.functional.cross_entropy(logits, targets.long(), label_smoothing=label_smoothing)
    smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
    return nn.functional.binary_cross_entropy_with_logits(logits, smoothed) + soft_dice_loss(logits, targets)


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Do nothing where :func:`task_loss` can compare the two.

    Raises:
        ValueError: the shapes do not fit, or a class number is not whole or has no logit.
    """
    if logits.dim() == 4 and targets.shape == logits.shape:
        return
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: they must be (N, classes) and (N,), "
            "or both (N, K, H, W)"
        )
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"targets {targets.dtype}: class numbers must be of a whole-number type, e.g. torch.int64")
    if len(targets):
        low, high = (int(value) for value in torch.stack(targets.long().aminmax()))
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(
                f"a target is {low if low < 0 else high}, and the network has {logits.shape[1]} outputs; class "
                f"numbers must be in 0..{logits.shape[1] - 1}"
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
