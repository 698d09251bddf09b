"""Measured latencies of one network, as ``plan_ranks`` takes them for a budget of latency."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from common.decomposition import Floats
from common.latency.pieces import rank_steps
from common.latency.table import LatencyTable, WholeNetwork
from common.network.shapes import LayerShape, trace_layers
from common.planning.plan import LayerPlan


@dataclass(frozen=True, eq=False)
class NetworkLatencies:
    """Seconds of a dense network and of all that its layers may become; a ``Latencies`` of planning.

    Attributes:
        table: seconds of single operations.
        whole: what was measured of the dense network as a whole.
        shapes: of the network's layers.
        fingerprint: of the network and the batch, see :func:`network_fingerprint`.
    """

    table: LatencyTable
    whole: WholeNetwork
    shapes: Mapping[str, LayerShape]
    fingerprint: str

    @classmethod
    def of(cls, table: LatencyTable, model: nn.Module, x: Tensor) -> NetworkLatencies:
        """The latencies that ``table`` holds of ``model`` and the batch ``x``.

        Raises:
            ValueError: the table was made for other networks, or for another batch size.
        """
        _check_batch(table, x)
        name = network_fingerprint(model, x)
        if name not in table.networks:
            raise ValueError(_UNKNOWN)
        return cls(table, table.networks[name], trace_layers(model, x), name)

    @property
    def runtime(self) -> str:
        """Name of the runtime in which the times were measured."""
        return self.table.conditions.runtime

    @property
    def dense_seconds(self) -> float:
        """Seconds of a pass through the dense network."""
        return self.whole.seconds

    @property
    def conditions(self) -> dict[str, Any]:
        """Runtime, its version, processor, threads and batch size."""
        return asdict(self.table.conditions)

    def check(self, model: nn.Module, x: Tensor) -> None:
        """Raise a ValueError unless the times are of this network and this batch."""
        _check_batch(self.table, x)
        if network_fingerprint(model, x) != self.fingerprint:
            raise ValueError(_UNKNOWN)

    def timed_ranks(self, multiple: int) -> tuple[int, ...]:
        """The ranks that were timed and are multiples of ``multiple``, ascending."""
        return tuple(rank for rank in rank_steps() if rank % multiple == 0)

    def layer_seconds(self, shape: LayerShape, method: str | None, ranks: Floats, params: Floats) -> Floats:
        """Seconds that a layer takes in the network at many ranks ``(K, modes)``: ``(K,)``."""
        seconds = self.table.layer_seconds(shape, method, ranks)
        return self.whole.factor * seconds + self.whole.per_weight * params

    def network_seconds(self, plans: Mapping[str, LayerPlan]) -> float:
        """Predicted seconds of a pass through the network that ``plans`` make."""
        return self.table.network_seconds(self.shapes, self.whole, plans)


_UNKNOWN = "the latencies are not of this network; measure them with common.latency.measured_latencies"


def _check_batch(table: LatencyTable, x: Tensor) -> None:
    if table.conditions.batch != len(x):
        raise ValueError(f"the latency table is of batches of {table.conditions.batch}, x is one of {len(x)}")


def network_fingerprint(model: nn.Module, x: Tensor) -> str:
    """A hash of a network's architecture, its layers' calls in a pass and its input's size."""
    calls = {name: shape.calls for name, shape in trace_layers(model, x).items()}
    text = f"{model!r} {tuple(x.shape)} {calls}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
