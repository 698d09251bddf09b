"""Bringing pixels to the scale that a network is trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.network.provenance import get_provenance, set_provenance


@dataclass(frozen=True)
class Normalization:
    """``(value - mean) / deviation`` for each channel, values in [0, 1]; one number serves all channels.

    Attributes:
        mean: of each channel's values.
        deviation: standard deviation of the same.
    """

    mean: Sequence[float]
    deviation: Sequence[float]

    def __call__(self, images: Tensor) -> Tensor:
        """Network inputs ``(N, 3, H, W)`` from images ``(N, C, H, W)`` in [0, 1], C = 1 (grey) or 3."""
        mean, deviation = self._statistics()
        return ((images - mean) / deviation).expand(-1, 3, -1, -1).contiguous()

    def undo(self, inputs: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` in [0, 1] from network inputs, for pictures."""
        mean, deviation = self._statistics()
        return (inputs.cpu() * deviation + mean).clamp(0, 1)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.mean).view(1, -1, 1, 1), torch.tensor(self.deviation).view(1, -1, 1, 1)


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's weights were trained on."""

CENTRED = Normalization((0.5,), (0.5,))
"""To [-1, 1], for sets whose statistics are not known beforehand."""

AS_GIVEN = Normalization((0.0,), (1.0,))
"""Of inputs whose scale nobody has told: they are taken as they are."""


def remember_normalization(network: nn.Module, normalization: Normalization) -> None:
    """Note on a network of this suite how pixels became the inputs that it is trained on; it is saved with it."""
    provenance = get_provenance(network)
    if provenance is not None and normalization != AS_GIVEN:
        set_provenance(network, dataclasses.replace(provenance, inputs=_plain(normalization)))


def check_normalization(network: nn.Module, normalization: Normalization) -> None:
    """Do nothing where ``network`` was trained on pixels of this scale, or either scale is not known.

    Raises:
        ValueError: it was trained on another.
    """
    provenance = get_provenance(network)
    given = _plain(normalization)
    if normalization == AS_GIVEN or provenance is None or not provenance.inputs:
        return
    if dict(provenance.inputs) != given:
        raise ValueError(
            f"the network was trained on pixels normalised by {dict(provenance.inputs)}, the data has {given}; where "
            "it started from torchvision's weights the data wants normalize='imagenet' (pretrained in the notebooks)"
        )


def _plain(normalization: Normalization) -> dict[str, list[float]]:
    return {"mean": list(normalization.mean), "deviation": list(normalization.deviation)}
