"""``evaluate``: the metrics of a network on a split; ``evaluate_images``: also what they are made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.data.own import OwnLoader
from common.data.tasks import TASKS, Task, metrics_of, task_of
from common.data.tasks.base import warn_of_probabilities
from common.network.batches import pair_of
from common.network.inputs import for_one_pass, to_network
from common.network.modes import evaluating
from common.network.outputs import single_tensor

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """What was observed of a network on a split.

    Attributes:
        metrics: as :func:`evaluate` returns them.
        rows: a metric's ``observe`` -> its results, a row for each image, in the order of the images.
    """

    metrics: dict[str, float]
    rows: Mapping[Callable[[Tensor, Tensor], Tensor], Tensor]


def evaluate(model: nn.Module, batches: Batches, task: str | None = None) -> dict[str, float]:
    """Measure a network in float32 and evaluation mode; its modules keep their training modes.

    The targets tell the task: class numbers ``(N,)`` mean classification, masks ``(N, K, H, W)`` segmentation, other
    numbers regression, see :func:`common.data.tasks.base.are_numbers`. Loaders of a ``DataBundle`` know their task.

    Args:
        model: maps ``(N, C, H, W)`` to logits ``(N, classes)``, or to ``(N, K, H, W)`` for masks, or to the numbers.
        batches: pairs of inputs and targets.
        task: name of the task; None to recognise it.

    Returns:
        Every registered metric of the task, see :data:`common.data.METRICS`, that is defined on these images, e.g.
        ``accuracy``, the share of inputs in [0, 1] whose greatest logit is at their class. Also ``loss``: that of
        the task, the mean over the batches weighted by their numbers of inputs.

    Raises:
        ValueError: there is no batch, a batch is no pair of tensors, the network does not return one tensor, or the
            targets do not fit what it returns.
    """
    return evaluate_images(model, batches, task).metrics


@torch.no_grad()
def evaluate_images(model: nn.Module, batches: Batches, task: str | None = None) -> Evaluation:
    """Measure a network as :func:`evaluate` does, and keep what was observed on each image.

    :func:`common.training.paired_difference` compares two such measurements.
    """
    device = next(model.parameters(), torch.empty(0)).device
    observed: dict[Callable[[Tensor, Tensor], Tensor], list[Tensor]] = defaultdict(list)
    known = task or (batches.task if isinstance(batches, OwnLoader) else None)
    judge: Task | None = TASKS[known] if known else None
    loss, images = 0.0, 0
    with evaluating(model):
        for batch in batches:
            inputs, targets = pair_of(batch)
            if not len(inputs):
                continue
            logits = single_tensor(model(for_one_pass(to_network(inputs, model))), "the network").float()
            targets = targets.to(device)
            judge = judge or task_of(targets) or next(iter(TASKS.values()))
            if not images:
                warn_of_probabilities(judge, logits)
            loss += float(judge.loss(logits, targets)) * len(targets)
            images += len(targets)
            for observe in {metric.observe for metric in metrics_of(judge.name)}:
                observed[observe].append(observe(logits, targets).cpu())
    if judge is None or not images:
        raise ValueError("there is no batch to evaluate on")
    rows = {observe: torch.cat(parts) for observe, parts in observed.items()}
    found = {metric.name: metric.summarize(rows[metric.observe]) for metric in metrics_of(judge.name)}
    defined = {name: value for name, value in found.items() if value is not None}
    return Evaluation({**defined, "loss": loss / images}, rows)
