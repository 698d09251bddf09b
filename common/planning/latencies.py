"""The protocol of measured latencies, which is all that planning knows of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from common.decomposition import Floats
from common.network.shapes import LayerShape
from common.planning.plan import LayerPlan


class Latencies(Protocol):
    """Seconds of a dense network and of every plan for its layers, in one runtime on one machine.

    :func:`common.latency.measured_latencies` returns one.
    """

    @property
    def runtime(self) -> str:
        """Name of the runtime."""

    @property
    def dense_seconds(self) -> float:
        """Seconds of a pass through the dense network."""

    @property
    def conditions(self) -> Mapping[str, Any]:
        """The conditions that the times depend on, as plain values."""

    def check(self, model: nn.Module, x: Tensor) -> None:
        """Raise a ValueError unless the times were measured for this network and this batch."""

    def timed_ranks(self, multiple: int) -> tuple[int, ...]:
        """The timed ranks that are multiples of ``multiple``, ascending."""

    def layer_seconds(self, shape: LayerShape, method: str | None, ranks: Floats, params: Floats) -> Floats:
        """Predict the seconds of a layer in the network at many ranks.

        Args:
            shape: the dense layer's shape.
            method: name of the decomposition; None for the dense layer.
            ranks: ``(K, modes)``.
            params: the layer's parameters at these ranks, ``(K,)``.

        Returns:
            ``(K,)``, in seconds.
        """

    def network_seconds(self, plans: Mapping[str, LayerPlan]) -> float:
        """Predict the seconds of a pass through the network that ``plans`` make."""
