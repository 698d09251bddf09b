"""What a network is judged by."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from common.network.batches import pair_of
from common.network.inputs import to_network
from common.network.modes import evaluating
from common.network.outputs import single_tensor
from common.training.losses import task_loss

Batches = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Quality of a network in float32, in evaluation mode; the modules' training modes are left as they were.

    Args:
        model: maps ``(N, C, H, W)`` to logits ``(N, classes)``, or to ``(N, K, H, W)``.
        batches: pairs of inputs and class numbers ``(N,)``, or masks ``(N, K, H, W)``.

    Returns:
        For class numbers ``accuracy``, the share of inputs whose greatest logit is at their class (top-1, in [0, 1]);
        for masks what :func:`mask_metrics` says. And ``loss``, that of
        :func:`common.training.losses.task_loss`, the mean over the batches
        weighted by their numbers of inputs: for class numbers the mean over all inputs.

    Raises:
        ValueError: there is no batch, one is no pair of tensors, the network does not return one tensor, or targets do
            not fit what it returns.
    """
    device = next(model.parameters()).device
    results: list[Tensor] = []
    loss = pixels = 0.0
    with evaluating(model):
        for batch in batches:
            inputs, targets = pair_of(batch)
            if not len(inputs):
                continue
            logits = single_tensor(model(to_network(inputs, model)), "the network").float()
            targets = targets.to(device)
            loss += float(task_loss(logits, targets)) * len(targets)
            if targets.dim() == 1:
                results.append((logits.argmax(1) == targets).cpu())
            else:
                results.append(_areas(logits > 0, targets > 0.5).cpu())
                pixels = targets[0, 0].numel()
    if not results:
        raise ValueError("there is no batch to evaluate on")
    outcome = torch.cat(results)
    metrics = mask_metrics(outcome, pixels) if pixels else {"accuracy": float(outcome.double().mean())}
    return {**metrics, "loss": loss / len(outcome)}


def _areas(predicted: Tensor, truth: Tensor) -> Tensor:
    """Pixels ``(N, K, 3)`` in both, in the prediction and in the truth, of masks ``(N, K, H, W)``."""
    return torch.stack([(part.sum((2, 3))) for part in (predicted & truth, predicted, truth)], dim=2)


def mask_metrics(areas: Tensor, pixels: float) -> dict[str, float]:
    """What masks are judged by; a pixel is predicted where its logit is positive.

    A case is one image and one class. A split has many cases without any truth, on which the usual fractions are 0/0.

    Args:
        areas: ``(N, K, 3)``, for each case the pixels in both prediction and truth, in the prediction, in the truth.
        pixels: of an image.

    Returns:
        All in [0, 1], greater is better but for the last two:

        - ``dice``: 2 |P and T| / (|P| + |T|), the mean over all cases; one where both are empty counts 1, so one
          where the truth is empty and the prediction is not counts 0.
        - ``iou``: |P and T| / |P or T|, likewise.
        - ``dice_present``: the mean Dice over the cases that have a truth.
        - ``dice_pooled``: Dice over the pixels of all images at once, the mean over classes; 1 for a class that is in
          no truth and no prediction.
        - ``pixel_accuracy``: the share of all pixels of all cases that are decided rightly.
        - ``missed``: of the cases that have a truth, the share whose prediction shares no pixel with it.
        - ``false_alarms``: of the cases that have none, the share in which something is predicted.

        A share of no cases is left out: ``dice_present`` and ``missed`` where no image has a truth,
        ``false_alarms`` where every one has.
    """
    both, predicted, truth = areas.double().unbind(2)
    dice = _fraction(2 * both, predicted + truth)
    present = truth > 0
    metrics = {
        "dice": dice.mean(),
        "iou": _fraction(both, predicted + truth - both).mean(),
        "dice_pooled": _fraction(2 * both.sum(0), (predicted + truth).sum(0)).mean(),
        "pixel_accuracy": 1 - ((predicted + truth - 2 * both) / pixels).mean(),
    }
    if present.any():
        metrics["dice_present"] = dice[present].mean()
        metrics["missed"] = (both[present] == 0).double().mean()
    if not present.all():
        metrics["false_alarms"] = (predicted[~present] > 0).double().mean()
    return {name: float(value) for name, value in metrics.items()}


def _fraction(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, and 1 where nothing is."""
    return torch.where(whole > 0, part / whole.clamp(min=1), 1.0)
