"""Scale pixels to the inputs on which a network is trained, and remember this scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.network.provenance import get_provenance, set_provenance


@dataclass(frozen=True)
class Normalization:
    """Maps values in [0, 1] to ``(value - mean) / deviation`` in each channel.

    Attributes:
        mean: mean of each channel, or one number for all channels.
        deviation: standard deviation of each channel, or one number for all channels.
    """

    mean: Sequence[float]
    deviation: Sequence[float]

    def __call__(self, images: Tensor) -> Tensor:
        """Return network inputs ``(N, 3, H, W)`` for images ``(N, C, H, W)`` in [0, 1], C = 1 (grey) or 3."""
        mean, deviation = self._statistics()
        return ((images - mean) / deviation).expand(-1, 3, -1, -1).contiguous()

    def undo(self, inputs: Tensor) -> Tensor:
        """Return the images ``(N, 3, H, W)`` in [0, 1] of network inputs, for showing them."""
        mean, deviation = self._statistics()
        return (inputs.cpu() * deviation + mean).clamp(0, 1)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation ``(1, C, 1, 1)``."""
        return torch.tensor(self.mean).view(1, -1, 1, 1), torch.tensor(self.deviation).view(1, -1, 1, 1)


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The scale of torchvision's weights."""

CENTRED = Normalization((0.5,), (0.5,))
"""The scale [-1, 1], for data sets with unknown statistics."""

UNIT = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""The scale [0, 1] of the pixels themselves."""

AS_GIVEN = Normalization((0.0,), (1.0,))
"""The scale of inputs that stay as they are, because it is unknown."""


def remember_normalization(network: nn.Module, normalization: Normalization) -> None:
    """Store in a network of this suite how pixels become its inputs. This is saved with the network."""
    provenance = get_provenance(network)
    if provenance is not None and normalization != AS_GIVEN:
        set_provenance(network, dataclasses.replace(provenance, inputs=_plain(normalization)))


def check_normalization(network: nn.Module, normalization: Normalization) -> None:
    """Raise a ValueError if ``network`` was trained on inputs of another scale. Unknown scales are accepted."""
    provenance = get_provenance(network)
    given = _plain(normalization)
    if normalization == AS_GIVEN or provenance is None or not provenance.inputs:
        return
    if dict(provenance.inputs) != given:
        raise ValueError(
            f"the network was trained on pixels normalised by {dict(provenance.inputs)}, but the data has {given}; if "
            "it started from torchvision's weights, load the data with normalize='imagenet' (pretrained in notebooks)"
        )


def _plain(normalization: Normalization) -> dict[str, list[float]]:
    return {"mean": list(normalization.mean), "deviation": list(normalization.deviation)}
