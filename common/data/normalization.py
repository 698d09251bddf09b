"""Scales pixels to the inputs that a network is trained on, and remembers that scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.network.provenance import get_provenance, set_provenance


@dataclass(frozen=True)
class Normalization:
    """Maps values in [0, 1] to ``(value - mean) / deviation``, channel by channel; one number serves all channels.

    Attributes:
        mean: of each channel.
        deviation: standard deviation of each channel.
    """

    mean: Sequence[float]
    deviation: Sequence[float]

    def __call__(self, images: Tensor) -> Tensor:
        """Return network inputs ``(N, 3, H, W)`` for images ``(N, C, H, W)`` in [0, 1], C = 1 (grey) or 3."""
        mean, deviation = self._statistics()
        return ((images - mean) / deviation).expand(-1, 3, -1, -1).contiguous()

    def undo(self, inputs: Tensor) -> Tensor:
        """Return images ``(N, 3, H, W)`` in [0, 1] for network inputs, for pictures."""
        mean, deviation = self._statistics()
        return (inputs.cpu() * deviation + mean).clamp(0, 1)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation ``(1, C, 1, 1)``."""
        return torch.tensor(self.mean).view(1, -1, 1, 1), torch.tensor(self.deviation).view(1, -1, 1, 1)


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The scale of torchvision's weights."""

CENTRED = Normalization((0.5,), (0.5,))
"""To [-1, 1], for data sets of unknown statistics."""

AS_GIVEN = Normalization((0.0,), (1.0,))
"""Inputs of an unknown scale, which stay as they are."""


def remember_normalization(network: nn.Module, normalization: Normalization) -> None:
    """Note on a network of this suite how pixels become its inputs; the note is saved with it."""
    provenance = get_provenance(network)
    if provenance is not None and normalization != AS_GIVEN:
        set_provenance(network, dataclasses.replace(provenance, inputs=_plain(normalization)))


def check_normalization(network: nn.Module, normalization: Normalization) -> None:
    """Raise a ValueError if ``network`` was trained on inputs of another scale; unknown scales pass."""
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
