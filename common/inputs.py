"""Batches on their way into a network."""

from __future__ import annotations

import torch
from torch import Tensor


def to_network(inputs: Tensor, device: torch.device) -> Tensor:
    """Inputs on the network's device, and on a CPU with their channels last.

    In that memory format PyTorch's convolutions run up to twice as fast on CPUs, those of compressed networks above
    all; every layer hands it on, and no value changes but for rounding. The network's weights stay as they are.

    Args:
        inputs: ``(N, C, H, W)``; of any other shape they are only moved.
        device: of the network.
    """
    if inputs.dim() != 4 or device.type != "cpu":
        return inputs.to(device)
    return inputs.to(device, memory_format=torch.channels_last)
