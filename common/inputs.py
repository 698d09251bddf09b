"""Batches on their way into a network, and the scale of what it is fed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from common.data.normalization import AS_GIVEN, Normalization
from common.models.provenance import get_provenance, set_provenance


def to_network(inputs: Tensor, network: nn.Module) -> Tensor:
    """Inputs on the network's device, and on a CPU with their channels last where the network is one of this suite's.

    In that memory format PyTorch's convolutions run up to twice as fast on CPUs, those of compressed networks above
    all; no value changes but for rounding, and the weights stay as they are. A network from elsewhere gets its inputs
    as they are: one that flattens with ``view`` would not take them.

    Args:
        inputs: ``(N, C, H, W)``; of any other shape they are only moved.
        network: that they are for; it has parameters.
    """
    device = next(network.parameters()).device
    provenance = get_provenance(network)
    if inputs.dim() != 4 or device.type != "cpu" or provenance is None or provenance.builder is None:
        return inputs.to(device)
    return inputs.to(device, memory_format=torch.channels_last)


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
