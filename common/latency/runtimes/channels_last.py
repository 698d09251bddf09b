"""PyTorch with the channels last in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.latency.runtimes.base import RUNTIMES
from common.latency.runtimes.eager import Eager
from common.network.copies import independent_copy


class ChannelsLast(Eager):
    """A copy of the network and ``x`` run in the memory format ``torch.channels_last``.

    Inside a network no layout changes between operations, so that change is not counted in an operation's time.
    """

    name = "channels_last"
    title = "PyTorch channels_last"

    def accept(self, networks: Sequence[nn.Module], x: Tensor) -> Tensor:
        """``x`` as it is.

        Raises:
            ValueError: ``x`` has other than four axes.
        """
        if x.dim() != 4:
            raise ValueError(f"runtime={self.name!r}: x has shape {tuple(x.shape)}; it takes (N, C, H, W)")
        return x

    def arrange(self, network: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
        """Copies with the channels last; the input of a Linear stays as it is."""
        arranged = independent_copy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return arranged, x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def memory_format(self, x: Tensor) -> str:
        """Always ``channels_last``."""
        return "channels_last"


RUNTIMES.add(ChannelsLast())
