"""PyTorch with the channels last in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.latency.runtimes.base import RUNTIMES
from common.latency.runtimes.eager import Eager
from common.network.copies import independent_copy

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory formats by number of axes."""


class ChannelsLast(Eager):
    """A copy of the network and ``x`` run in the memory format ``torch.channels_last``, or its kind for volumes.

    Inside a network no layout changes between operations, so that change is not counted in an operation's time.
    """

    name = "channels_last"
    title = "PyTorch channels_last"

    def accept(self, networks: Sequence[nn.Module], x: Tensor) -> Tensor:
        """``x`` as it is.

        Raises:
            ValueError: ``x`` has neither four nor five axes.
        """
        if x.dim() not in FORMATS:
            raise ValueError(
                f"runtime={self.name!r}: x has shape {tuple(x.shape)}; it takes (N, C, H, W) or (N, C, D, H, W)"
            )
        return x

    def arrange(self, network: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
        """Copies with the channels last; tensors of neither four nor five axes stay as they are."""
        arranged = independent_copy(network)
        for tensor in (*arranged.parameters(), *arranged.buffers()):
            tensor.data = _channels_last(tensor.data)
        return arranged, _channels_last(x)

    def memory_format(self, x: Tensor) -> str:
        """Always ``channels_last``."""
        return "channels_last"


def _channels_last(tensor: Tensor) -> Tensor:
    """The tensor with the channels last in memory, if it has a layout of this kind."""
    kind = FORMATS.get(tensor.dim())
    return tensor if kind is None else tensor.contiguous(memory_format=kind)


RUNTIMES.add(ChannelsLast())
