"""Classification: one class for each image. The loss is cross-entropy, and accuracy decides."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from common.calibration.divergence import Divergence, kl_divergence
from common.data.tasks.base import (
    FOR_NUMBERS,
    METRICS,
    TASKS,
    Metric,
    Task,
    are_numbers,
    are_probabilities,
    describe_tensor,
)


class Classification(Task):
    """Targets are class numbers ``(N,)``, logits are ``(N, classes)``."""

    name = "classification"
    shapes = "(N, classes) and (N,)"
    metric = "accuracy"
    shows_all_classes = False
    spare_outputs = True

    def matches(self, targets: Tensor) -> bool:
        """Whether there is one whole number for each image."""
        return targets.dim() == 1 and not are_numbers(targets)

    def checked_targets(self, targets: Tensor, images: int, classes: int | None, where: str) -> Tensor:
        """Class numbers ``(N,)`` in int64."""
        whole = not (targets.is_floating_point() or targets.is_complex())
        if targets.shape != (images,) or not whole:
            advice = ""
            values = targets.double() if targets.dim() == 2 and not targets.is_complex() else targets.new_empty(0)
            if values.dim() == 2 and values.shape[1] == 1 and bool((values == values.round()).all()):
                advice = f"; take targets.squeeze(1), as whole numbers; {FOR_NUMBERS}"
            elif values.dim() == 2 and bool((((values == 0) | (values == 1)) & (values.sum(1, True) == 1)).all()):
                advice = "; for one-hot targets take targets.argmax(1)"
            elif targets.dim() == 3:
                advice = f", or masks ({images}, K, H, W), one for each class"
            elif targets.shape[:1] == (images,) and not bool(((targets == 0) | (targets == 1)).all()):
                advice = f"; {FOR_NUMBERS}"
            raise ValueError(
                f"{where}: targets are {describe_tensor(targets)}; they must be class numbers ({images},) of a "
                f"whole-number type for {images} inputs{advice}"
            )
        if images:
            low, high = (int(value) for value in targets.long().aminmax())
            if low < 0 or (classes is not None and high >= classes):
                allowed = "0 or more" if classes is None else f"in 0..{classes - 1}, as there are {classes} classes"
                raise ValueError(f"{where}: a target is {low if low < 0 else high}; it must be {allowed}")
        return targets.long()

    def count_classes(self, targets: Tensor) -> int:
        """One more than the greatest class number."""
        return int(targets.max()) + 1

    def count_outputs(self, logits: Tensor) -> int | None:
        """The second axis of ``(N, classes)``."""
        return logits.shape[1] if logits.dim() == 2 else None

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise a ValueError if the shapes do not fit, or a class number is not whole or has no logit."""
        if logits.dim() != 2 or targets.shape != logits.shape[:1]:
            raise self.misfit(logits, targets)
        if targets.is_floating_point() or targets.is_complex():
            raise ValueError(f"targets {targets.dtype}: class numbers must be of a whole-number type")
        if len(targets):
            low, high = (int(value) for value in torch.stack(targets.long().aminmax()))
            if low < 0 or high >= logits.shape[1]:
                raise ValueError(
                    f"a target is {low if low < 0 else high}, but the network has {logits.shape[1]} outputs; class "
                    f"numbers must be in 0..{logits.shape[1] - 1}"
                    + (f"; {FOR_NUMBERS}" if logits.shape[1] == 1 else "")
                )

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy in nats, the mean over the images."""
        self.check(logits, targets)
        return cross_entropy(logits, targets.long(), label_smoothing=label_smoothing)

    def distillation_loss(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """The divergence of softmax distributions over the classes."""
        student, teacher = (side / temperature for side in (logits, taught))
        divergence = kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)
        return divergence * temperature**2

    def last_layer_to_leave_out(self, outputs: Tensor) -> str:
        """The softmax, where the outputs of each image sum to 1."""
        return "softmax" if outputs.dim() == 2 and outputs.shape[1] > 1 and are_probabilities(outputs) else ""

    @property
    def divergence(self) -> Divergence:
        """See :func:`common.calibration.divergence.kl_divergence`."""
        return kl_divergence


def hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the greatest logit of each image is that of its class, ``(N,)`` in bool."""
    return logits.argmax(1) == targets


def share(flags: Tensor) -> float:
    """The share of flags that are set, in [0, 1]."""
    return float(flags.double().mean())


TASKS.add(Classification())
METRICS.add(Metric("accuracy", Classification.name, hits, share))
