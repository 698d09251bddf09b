"""The held-out calibration images, which judge each step of ``shrink``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.calibration.divergence import (
    Divergence,
    divergence_for,
    kl_divergence,
    mask_divergence,
    mean_divergence,
    outputs_on,
    standardized_error,
)
from common.calibration.moments import held_out_images
from common.data.tasks import TASKS, Task, task_of
from common.data.tasks.base import are_probabilities
from common.network.batches import Batches
from common.network.outputs import describe
from common.training import evaluate


class HeldOutImages:
    """Images that no step learns from, and what the dense network makes of them.

    Args:
        model: the dense network.
        inputs: the images, in batches on the network's device.
        targets: their targets; empty if there are none. A warning names those that do not fit their task; they may
            still choose the divergence.
        task: name of the targets' task; None to recognise it.
        divergence: see :func:`common.shrink.shrink`.

    Attributes:
        divergence: how far outputs are from the dense ones.
        dense_metrics: metrics of the dense network; empty, as all metrics are then, without targets of a known task.

    Raises:
        ValueError: the targets do not fit the task that is named, or the dense network's outputs are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        task: str | None,
        divergence: Divergence | None,
    ) -> None:
        self._inputs, self._targets = inputs, targets
        self._task: Task | None = None
        self.dense_metrics: dict[str, float] = {}
        if targets:
            try:
                self._task = TASKS[task] if task else task_of(targets[0])
                self.dense_metrics = self.metrics(model)
            except ValueError as error:
                if task:
                    raise
                if self._task:  # else there is nothing that they could be
                    warnings.warn(f"no metric is measured: {error}", stacklevel=2)
                self._task = None
        self._dense_outputs = outputs_on(model, inputs)
        self.divergence = divergence or self._suited_divergence(task)
        if not self.divergence(self._dense_outputs, self._dense_outputs).isfinite().all():
            raise ValueError("the dense network's outputs on the held-out calibration images are not finite")

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """The metrics of a network; empty without targets of a known task."""
        task = self._task
        if task is None:
            return {}
        targets = (task.checked_targets(each, len(each), None, "batches") for each in self._targets)
        return evaluate(network, zip(self._inputs, targets, strict=True), task.name)

    def distance(self, network: nn.Module) -> float:
        """The mean divergence of a network's outputs from the dense ones."""
        return mean_divergence(self.divergence, self._dense_outputs, outputs_on(network, self._inputs))

    def _suited_divergence(self, task: str | None) -> Divergence:
        """That of the task; without one, what the targets suggest, else the outputs.

        Numbers to predict take the squared error, maps of class numbers the divergence of each pixel's classes, and
        several labels of each input that of masks.
        """
        outputs, targets = self._dense_outputs, self._targets
        if known := TASKS[task] if task else self._task:
            return known.divergence
        if targets and all(_are_class_maps(each, outputs) for each in targets):
            return kl_divergence
        if targets and all(_are_labels(each, outputs) for each in targets):
            one_each = all(bool((each.long().sum(1) == 1).all()) for each in targets)
            return kl_divergence if one_each else mask_divergence
        predicted = any(_are_predicted(each, outputs) for each in targets)
        return standardized_error if predicted else divergence_for(outputs)


def _are_labels(targets: Tensor, outputs: Tensor) -> bool:
    """Whether targets ``(N, K)`` say of each of several classes whether it is there, as the outputs do."""
    same = targets.dim() == outputs.dim() == 2 and targets.shape[1] == outputs.shape[1] > 1
    return same and not targets.is_complex() and bool(((targets == 0) | (targets == 1)).all())


def _are_predicted(targets: Tensor, outputs: Tensor) -> bool:
    """Whether targets are numbers to predict. Whole numbers ``(N,)`` of any type are none beside class scores."""
    if not targets.is_floating_point() or are_probabilities(targets):
        return False
    are_scores = outputs.dim() == 2 and outputs.shape[1] > 1
    return not (are_scores and targets.dim() == 1 and bool((targets == targets.round()).all()))


def _are_class_maps(targets: Tensor, outputs: Tensor) -> bool:
    """Whether targets ``(N, H, W)`` are a class number for each pixel of outputs ``(N, classes, H, W)``."""
    whole = not (targets.is_floating_point() or targets.is_complex())
    return whole and outputs.dim() > 2 and outputs.shape[1] > 1 and targets.shape[1:] == outputs.shape[2:]


def split_images(
    batches: Batches, inputs: Sequence[Tensor], task: str | None = None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Hold out some images, see :func:`common.calibration.moments.held_out_images`.

    Args:
        batches: as the caller of :func:`common.shrink.shrink` gives them.
        inputs: the inputs of each batch, on the network's device.
        task: name of the targets' task, if the caller names it.

    Returns:
        The inputs to learn from, the held-out inputs, and the latter's targets, empty if a batch has none.

    Raises:
        ValueError: there are fewer than two images, or a batch has targets of no use though their task is named.
    """
    fitted, held_out, targets, seen = [], [], [], 0
    for batch, images in zip(batches, inputs, strict=True):
        flags = held_out_images(seen, len(images))
        seen += len(images)
        if not flags.all():
            fitted.append(images[~flags.to(images.device)])
        if flags.any():
            held_out.append(images[flags.to(images.device)])
            given = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
            if isinstance(given, Tensor) and given.shape[:1] == flags.shape:
                targets.append(given[flags.to(given.device)])
            elif given is not None and task is not None:
                raise ValueError(
                    f"task={task!r}: the targets of a batch are {describe(given)}; they must be a tensor with one "
                    f"entry for each of its {len(images)} inputs"
                )
    if not held_out:
        raise ValueError(f"batches hold {seen} images: at least 2 are needed, to hold one out")
    kept = _joined(held_out, held_out)
    return _joined(fitted, fitted), kept, _joined(targets, held_out) if len(targets) == len(held_out) else []


def _joined(parts: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Join parts to the ones before where one of ``like`` is a single image, which a network may not take."""
    groups: list[list[int]] = []
    for place, part in enumerate(like):
        images = sum(len(like[index]) for index in groups[-1]) if groups else 0
        if groups and 1 in (len(part), images) and part.shape[1:] == like[groups[-1][0]].shape[1:]:
            groups[-1].append(place)
        else:
            groups.append([place])
    return [torch.cat([parts[index] for index in group]) for group in groups]
