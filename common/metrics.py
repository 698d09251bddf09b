"""What a network is judged by."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from common.modes import evaluating

Batches = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Quality of a classifier in float32, in evaluation mode; the modules' training modes are left as they were.

    Args:
        model: maps ``(N, C, H, W)`` to logits ``(N, classes)``.
        batches: pairs of inputs and class numbers ``(N,)``.

    Returns:
        ``accuracy``, the share of inputs whose greatest logit is at their class (top-1, in [0, 1]), and ``loss``, the
        mean cross-entropy in nats.

    Raises:
        ValueError: there is no batch.
    """
    device = next(model.parameters()).device
    correct = loss = count = 0.0
    with evaluating(model):
        for inputs, targets in batches:
            logits = model(inputs.to(device)).float()
            targets = targets.to(device)
            correct += float((logits.argmax(1) == targets).sum())
            loss += float(nn.functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
    if not count:
        raise ValueError("there is no batch to evaluate on")
    return {"accuracy": correct / count, "loss": loss / count}
