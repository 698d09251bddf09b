"""What planning knows of time: a protocol that measured latencies fulfil."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from common.decomposition import Floats
from common.network.shapes import LayerShape
from common.planning.plan import LayerPlan


class Latencies(Protocol):
    """Seconds of a dense network and of all that its layers may become, in one runtime on one machine.

    :func:`common.latency.measured_latencies` makes one.
    """

    @property
    def runtime(self) -> str:
        """Name of the runtime that the times are of."""

    @property
    def dense_seconds(self) -> float:
        """Of a pass through the dense network."""

    @property
    def conditions(self) -> Mapping[str, Any]:
        """What the times depend on, as plain values."""

    def check(self, model: nn.Module, x: Tensor) -> None:
        """Raise a ValueError unless the times are of this network and this batch."""

    def timed_ranks(self, multiple: int) -> tuple[int, ...]:
        """The ranks that were timed and are multiples of ``multiple``, ascending."""

    def layer_seconds(self, shape: LayerShape, method: str | None, ranks: Floats, params: Floats) -> Floats:
        """Seconds that a layer takes in the network at many ranks.

        Args:
            shape: of the dense layer.
            method: name of the decomposition; None for the dense layer.
            ranks: ``(K, modes)``.
            params: parameters of the layer at these ranks, ``(K,)``.

        Returns:
            ``(K,)``.
        """

    def network_seconds(self, plans: Mapping[str, LayerPlan]) -> float:
        """Predicted seconds of a pass through the network that ``plans`` make."""
