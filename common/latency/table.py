"""Measured seconds of the operations that layers become, and from them the seconds of any plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from common.decomposition import Floats
from common.deploy.cutting import last_pieces
from common.latency.interpolation import bilinear
from common.latency.operations import Operation, layer_operations, with_widths
from common.latency.pieces import (
    Ladders,
    merged_calls,
    needed_operations,
    piece_ladders,
    weights_between,
)
from common.latency.runtimes import RUNTIMES
from common.network.shapes import LayerShape
from common.planning.methods import timed_methods
from common.planning.plan import LayerPlan

FORMAT = 4
"""Of the file; a file of another format is not read."""
TRUST = 0.3
"""Weight of the belief that operations take as long in a network as in isolation. A factor that is off by a third
counts as much as a network's time that is predicted 10% wrong."""


@dataclass(frozen=True)
class Conditions:
    """What times depend on besides the operations.

    Attributes:
        runtime: name of one that can time operations, see :class:`common.latency.runtimes.OperationRuntime`.
        version: of the runtime.
        processor: its name.
        threads: of every operation.
        batch: inputs that pass at once.
    """

    runtime: str
    version: str
    processor: str
    threads: int
    batch: int


class WholeNetwork(NamedTuple):
    """What the times of a network's operations, each timed in isolation, leave out of the network's time.

    Attributes:
        seconds: of the dense network as a whole.
        factor: an operation's time in the network over its time in isolation. The machine may have been faster or
            slower when the operation was timed, and operations that follow each other wait less.
        per_weight: seconds that a weight costs in the network beyond its cost in isolation. In isolation the weights
            are still in the cache from the run before. In a network larger than the cache they come from memory in
            each pass.
    """

    seconds: float
    factor: float = 1.0
    per_weight: float = 0.0


@dataclass(eq=False)
class LatencyTable:
    """Seconds of operations under given conditions.

    Attributes:
        conditions: under which the times were measured.
        seconds: of each operation.
        networks: fingerprint of a dense network -> what was measured of it as a whole.
    """

    conditions: Conditions
    seconds: dict[Operation, float] = field(default_factory=dict)
    networks: dict[str, WholeNetwork] = field(default_factory=dict)

    def layer_seconds(self, shape: LayerShape, method: str | None, ranks: Floats) -> Floats:
        """Seconds of a layer at many ranks ``(K, modes)``: ``(K,)``; linear between the ranks that were timed.

        If the runtime merges factors, they count as merged where that needs fewer MACs.

        Raises:
            ValueError: the table does not hold the operations.
        """
        merges = RUNTIMES[self.conditions.runtime].merges_factors
        factors = layer_operations(shape, method)
        edge = np.zeros(len(ranks))  # the layer's own channels are not open
        widths = np.column_stack([edge, ranks, edge])
        seconds: dict[tuple[int, int], Floats] = {}

        def piece_macs(start: int, end: int) -> Floats:
            if end - start > 1 and not merges:
                seconds[start, end] = np.full(len(ranks), np.inf)
                return seconds[start, end]
            calls, sides = merged_calls(factors[start:end]), (widths[:, start], widths[:, end])
            ladders = piece_ladders(shape, method, start, end)
            seconds[start, end] = sum((self._between(call, ladders, sides) for call in calls), edge)
            macs = sum((weights_between(call, *sides) * call.positions for call in calls), edge)
            apart = [weights_between(factors[k][0], widths[:, k], widths[:, k + 1]) for k in range(start, end)]
            more = weights_between(calls[0], *sides) > sum(apart, edge)
            return np.where(more, np.inf, macs)  # a merged layer never has more parameters than its factors

        heads = [edge]  # seconds of the first 0, 1, 2, ... factors
        for end, start in enumerate(last_pieces(len(factors), piece_macs), 1):
            heads.append(np.choose(start, [head + seconds[first, end] for first, head in enumerate(heads)]))
        return heads[-1]

    def _between(self, call: Operation, ladders: Ladders, sides: tuple[Floats, Floats]) -> Floats:
        """Seconds of an operation at many widths of its open sides, ``(K,)`` each: ``(K,)``."""
        grid = np.array([[self._known(with_widths(call, i, o)) for o in ladders[1]] for i in ladders[0]])
        return bilinear(grid, ladders, *sides)

    def plan_seconds(self, shape: LayerShape, plan: LayerPlan) -> float:
        """Seconds of one layer as planned."""
        return float(self.layer_seconds(shape, plan.method, np.array([plan.ranks], dtype=np.float64))[0])

    def network_seconds(
        self, shapes: Mapping[str, LayerShape], whole: WholeNetwork, plans: Mapping[str, LayerPlan]
    ) -> float:
        """Predicted seconds of the network that ``plans`` make: the dense network's, and the change in its layers.

        Args:
            shapes: of the dense network's layers.
            whole: what was measured of the dense network.
            plans: of its layers.
        """
        planned = {name: shapes[name] for name in plans}
        gains = self.layers_seconds(planned, plans) - self.layers_seconds(planned)
        weights = _params(planned, plans) - _params(planned)
        return whole.seconds + whole.factor * gains + whole.per_weight * weights

    def layers_seconds(self, shapes: Mapping[str, LayerShape], plans: Mapping[str, LayerPlan] | None = None) -> float:
        """Sum of the seconds of single layers; without ``plans`` they are dense."""
        return sum(self.plan_seconds(shape, (plans or {}).get(name, LayerPlan())) for name, shape in shapes.items())

    def calibrated(
        self,
        shapes: Mapping[str, LayerShape],
        dense: float,
        small: Sequence[tuple[Mapping[str, LayerPlan], float]],
    ) -> WholeNetwork:
        """Fit what operations leave out to networks timed whole, by non-negative least squares of relative errors.

        A network's time is a constant, ``factor`` times its operations' time and ``per_weight`` times its weights.

        Args:
            shapes: of the dense network's layers.
            dense: seconds of the dense network; the fit predicts them exactly.
            small: plans of all layers, and the seconds of the networks that they make.
        """
        networks: list[tuple[Mapping[str, LayerPlan], float]] = [({}, dense), *small]
        known = [[1.0, self.layers_seconds(shapes, plans), 1e-9 * _params(shapes, plans)] for plans, _ in networks]
        scale = 1 / np.array([seconds for _, seconds in networks])
        scale[0] *= 100
        rows = np.vstack([np.array(known) * scale[:, None], [0.0, TRUST, 0.0]])
        targets = np.append([seconds for _, seconds in networks] * scale, TRUST)
        (_, factor, price), _ = nnls(rows, targets)
        return WholeNetwork(dense, float(factor), 1e-9 * float(price))

    def known_methods(self, shapes: Mapping[str, LayerShape]) -> list[str]:
        """The decompositions whose operations the table has for all of these layers."""
        return [
            method
            for method in timed_methods()
            if all(operation in self.seconds for operation in needed_operations(shapes.values(), (method,)))
        ]

    def _known(self, operation: Operation) -> float:
        try:
            return self.seconds[operation]
        except KeyError:
            raise ValueError(
                f"the latency table has no time of {operation}; common.latency.measured_latencies makes one for this "
                "network and method"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The table as values that JSON can hold."""
        return {
            "format": FORMAT,
            "conditions": asdict(self.conditions),
            "networks": {name: list(whole) for name, whole in self.networks.items()},
            "seconds": [[*operation.to_json(), seconds] for operation, seconds in self.seconds.items()],
        }

    @classmethod
    def from_json(cls, values: Any) -> LatencyTable:
        """The table that :meth:`to_json` wrote.

        Raises:
            ValueError: ``values`` are no table, or one of another format.
        """
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"format={values['format']!r}; this suite reads {FORMAT}")
            seconds = {Operation.from_json(row[:-1]): float(row[-1]) for row in values["seconds"]}
            networks = {str(name): WholeNetwork(*map(float, whole)) for name, whole in values["networks"].items()}
            times = (*seconds.values(), *(whole.seconds for whole in networks.values()))
            if not all(np.isfinite(value) and value > 0 for value in times):
                raise ValueError("a time is not a positive number")
            beyond = [value for whole in networks.values() for value in whole[1:]]
            if not all(np.isfinite(value) and value >= 0 for value in beyond):
                raise ValueError("a factor or a time per weight is negative or no number")
            return cls(Conditions(**values["conditions"]), seconds, networks)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"this is not a latency table: {error!r}") from error


def _params(shapes: Mapping[str, LayerShape], plans: Mapping[str, LayerPlan] | None = None) -> int:
    """Parameters of the layers; without ``plans`` they are dense."""
    return sum(shape.cost((plans or {}).get(name, LayerPlan()))[0] for name, shape in shapes.items())
