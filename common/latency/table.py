"""Measured seconds of the operations that layers become, and from them the seconds of any plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from common.decomposition import DECOMPOSITIONS, Floats
from common.latency.operations import Operation, layer_operations, merged, with_widths
from common.network.shapes import LayerShape, dense_reason
from common.planning.decompositions import layer_method
from common.planning.plan import LayerPlan

FORMAT = 4
MERGING = ("onnxruntime",)
"""Runtimes that see a network's factors merged where that needs fewer MACs (:mod:`common.deploy.merging`)."""
STEPS = 4
"""Ranks an octave, above 32, at which a method is timed."""
TRUST = 0.3
"""How firmly operations are believed to take in a network what they take by themselves: to have them a third longer or
shorter counts as much as to foretell a network 10% wrong."""


@dataclass(frozen=True)
class Conditions:
    """What times depend on besides the operations.

    Attributes:
        runtime: one of `RUNTIMES` of :mod:`common.latency.operations`.
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
    """What a network's operations, timed one by one, do not tell of its time.

    Attributes:
        seconds: of the dense network as a whole.
        factor: how many times as long an operation takes in the network as by itself: the machine may have been
            faster or slower when it was timed, and one operation after the other has less to wait for.
        per_weight: seconds more that a weight costs in the network than in an operation by itself. There the weights
            are still in the cache from the time before; in a network that is larger than the cache they come from
            memory at every pass.
    """

    seconds: float
    factor: float = 1.0
    per_weight: float = 0.0


@dataclass(eq=False)
class LatencyTable:
    """Seconds of operations under some conditions, of a batch.

    Attributes:
        conditions: where they were measured.
        seconds: of each operation.
        networks: fingerprint of a dense network -> what was measured of it as a whole.
    """

    conditions: Conditions
    seconds: dict[Operation, float] = field(default_factory=dict)
    networks: dict[str, WholeNetwork] = field(default_factory=dict)

    def layer_seconds(self, shape: LayerShape, method: str | None, ranks: Floats) -> Floats:
        """Seconds of a layer at many ranks ``(K, modes)``, ``(K,)``; linear between the ranks that were measured.

        Factors count as merged where the runtime will see them so.

        Raises:
            ValueError: the table does not hold the operations.
        """
        cuts = _cuts(layer_operations(shape, method))
        if self.conditions.runtime not in MERGING:
            cuts = cuts[-1:]
        found = [self._cut_cost(cut, shape, method, ranks) for cut in cuts]
        fewest = np.argmin([macs for macs, _ in found], axis=0)
        return np.choose(fewest, [seconds for _, seconds in found])

    def _cut_cost(
        self, cut: Sequence[Piece], shape: LayerShape, method: str | None, ranks: Floats
    ) -> tuple[Floats, Floats]:
        """MACs and seconds of a layer's factors merged into these pieces; infinite MACs where they are not merged."""
        edge = np.zeros(len(ranks))  # the layer's own channels are not open
        widths = np.column_stack([edge, ranks, edge])
        macs, seconds = np.zeros(len(ranks)), np.zeros(len(ranks))
        for piece in cut:
            sides = widths[:, piece.first], widths[:, piece.last + 1]
            ladders = _ladders(shape, method, piece)
            for operation in piece.calls:
                grid = np.array([[self._known(with_widths(operation, i, o)) for o in ladders[1]] for i in ladders[0]])
                seconds += _bilinear(grid, ladders, *sides)
                macs += _weights(operation, *sides) * _positions(operation)
            apart = sum(
                (_weights(f[0], widths[:, k], widths[:, k + 1]) for k, f in enumerate(piece.factors, piece.first)),
                np.zeros(len(ranks)),
            )
            macs[_weights(piece.calls[0], *sides) > apart] = np.inf  # merge_factors adds no parameters
        return macs, seconds

    def plan_seconds(self, shape: LayerShape, plan: LayerPlan) -> float:
        """Seconds of what the plan makes of one layer."""
        return float(self.layer_seconds(shape, plan.method, np.array([plan.ranks], dtype=np.float64))[0])

    def network_seconds(
        self, shapes: Mapping[str, LayerShape], whole: WholeNetwork, plans: Mapping[str, LayerPlan]
    ) -> float:
        """Seconds of the network that ``plans`` make, predicted: the dense one's and what its layers gain.

        Args:
            shapes: of the dense network's layers.
            whole: the dense network.
            plans: of its layers.
        """
        planned = {name: shapes[name] for name in plans}
        gains = self.layers_seconds(planned, plans) - self.layers_seconds(planned)
        weights = _weights_of(planned, plans) - _weights_of(planned)
        return whole.seconds + whole.factor * gains + whole.per_weight * weights

    def layers_seconds(self, shapes: Mapping[str, LayerShape], plans: Mapping[str, LayerPlan] | None = None) -> float:
        """Seconds of the layers alone, one by one; without ``plans`` they are dense."""
        return sum(self.plan_seconds(shape, (plans or {}).get(name, LayerPlan())) for name, shape in shapes.items())

    def calibrated(
        self,
        shapes: Mapping[str, LayerShape],
        dense: float,
        small: Sequence[tuple[Mapping[str, LayerPlan], float]],
    ) -> WholeNetwork:
        """What networks timed whole tell beyond their operations, by non-negative least squares of relative errors.

        A network takes what belongs to no layer, ``factor`` times its operations and ``per_weight`` times its weights.

        Args:
            shapes: of the dense network's layers.
            dense: seconds of the dense network, which the answer foretells exactly.
            small: plans of all layers, and the seconds of the networks that they make.
        """
        networks: list[tuple[Mapping[str, LayerPlan], float]] = [({}, dense), *small]
        known = [[1.0, self.layers_seconds(shapes, plans), 1e-9 * _weights_of(shapes, plans)] for plans, _ in networks]
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
            for method in DECOMPOSITIONS
            if all(operation in self.seconds for operation in needed_operations(shapes.values(), (method,)))
        ]

    def _known(self, operation: Operation) -> float:
        try:
            return self.seconds[operation]
        except KeyError:
            raise ValueError(
                f"the latency table has no time of {operation}; make it for this network and these methods, with "
                "common.latency.measured_latencies"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The table as plain values that JSON can hold."""
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
            ValueError: it is not one, or one of another format.
        """
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"format={values['format']!r}; this suite reads {FORMAT}")
            seconds = {Operation.from_json(row[:-1]): float(row[-1]) for row in values["seconds"]}
            networks = {str(name): WholeNetwork(*map(float, whole)) for name, whole in values["networks"].items()}
            times = (*seconds.values(), *(whole.seconds for whole in networks.values()))
            if not all(np.isfinite(value) and value > 0 for value in times):
                raise ValueError("a time that is not a positive number")
            beyond = [value for whole in networks.values() for value in whole[1:]]
            if not all(np.isfinite(value) and value >= 0 for value in beyond):
                raise ValueError("a factor or a price of weights that is negative or no number")
            return cls(Conditions(**values["conditions"]), seconds, networks)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"this is not a latency table: {error!r}") from error


def rank_steps(most: int = 1 << 16) -> tuple[int, ...]:
    """The ranks at which methods are timed, ascending, up to ``most``: multiples of 8 to 64, of 16 to 128, and so on.

    What a runtime likes among them is read off the times: a rank that is as slow as a greater one is worth nothing.
    """
    found = [8, 16, 24, 32]
    while found[-1] < most:
        octave = found[-1]
        found += [octave + octave * step // STEPS for step in range(1, STEPS + 1)]
    return tuple(rank for rank in found if rank <= most)


def needed_operations(shapes: Iterable[LayerShape], methods: Sequence[str]) -> list[Operation]:
    """Every operation that tells what these layers cost dense and by these methods, merged or not, each once."""
    found: dict[Operation, None] = {}
    for shape in shapes:
        kinds = () if dense_reason(shape) else dict.fromkeys(layer_method(method, shape) for method in methods)
        for method in (None, *kinds):
            for piece in {
                (p.first, p.last): p for cut in _cuts(layer_operations(shape, method)) for p in cut
            }.values():
                inputs, outputs = _ladders(shape, method, piece)
                found.update((with_widths(call, i, o), None) for call in piece.calls for i in inputs for o in outputs)
    return list(found)


def reference_plans(shapes: Mapping[str, LayerShape], methods: Sequence[str]) -> list[dict[str, LayerPlan]]:
    """Small networks to be timed beside the dense one, see :meth:`LatencyTable.calibrated`.

    By each method one at a quarter and one at a sixteenth of all ranks, and by the first one two of which only the
    first or the last half of the layers is at a sixteenth: in most networks the first layers need the time and the
    last ones have the weights, which tells the two apart.
    """
    names = list(shapes)
    half = len(names) // 2
    wanted = [(method, part, names) for method in methods for part in (4, 16)]
    wanted += [(methods[0], 16, chosen) for chosen in (names[:half], names[half:])]
    found: list[dict[str, LayerPlan]] = []
    for method, part, chosen in wanted:
        plans = {name: _small(shapes[name], method, part) if name in chosen else LayerPlan() for name in names}
        if any(plan.method for plan in plans.values()) and plans not in found:
            found.append(plans)
    return found


def _small(shape: LayerShape, method: str, part: int) -> LayerPlan:
    """The layer at about a part of its ranks, multiples of 8, below which they are whole; dense if not smaller."""
    method = layer_method(method, shape)
    ranks = tuple(max(min(8, most), most // part // 8 * 8) for most in _most_ranks(shape, method))
    plan = LayerPlan(method, ranks)
    smaller = not dense_reason(shape) and shape.cost(plan)[0] < shape.dense_cost[0]
    return plan if smaller else LayerPlan()


class Piece(NamedTuple):
    """Factors that follow each other, from ``first`` to ``last``, and for each call what they are as one operation."""

    first: int
    last: int
    factors: Sequence[Sequence[Operation]]
    calls: Sequence[Operation]


def _cuts(factors: Sequence[Sequence[Operation]]) -> list[list[Piece]]:
    """Every way to cut a layer's factors into pieces, the fewest pieces first."""
    inner = range(1, len(factors))
    found = []
    for count in range(len(factors)):
        for places in combinations(inner, count):
            edges = pairwise((0, *places, len(factors)))
            parts = [(first, end - 1, factors[first:end]) for first, end in edges]
            found.append([Piece(*part, [merged(*calls) for calls in zip(*part[2], strict=True)]) for part in parts])
    return found


def _weights_of(shapes: Mapping[str, LayerShape], plans: Mapping[str, LayerPlan] | None = None) -> int:
    """Parameters of the layers; without ``plans`` they are dense."""
    return sum(shape.cost((plans or {}).get(name, LayerPlan()))[0] for name, shape in shapes.items())


def _weights(operation: Operation, inputs: Floats, outputs: Floats) -> Floats:
    """Weights of an operation with these channels, of one group, where its own are open."""
    (own_in, own_out), groups = operation.channels, operation.groups
    rows = np.full_like(inputs, own_in / groups) if own_in else inputs
    columns = np.full_like(outputs, own_out / groups) if own_out else outputs
    return rows * columns * operation.kernel[0] * operation.kernel[1]


def _positions(operation: Operation) -> int:
    rows, columns = operation.before if operation.transposed else operation.after
    return rows * columns


def _ladders(shape: LayerShape, method: str | None, piece: Piece) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ranks on both sides of a piece at which it is timed; ``(0,)`` where the layer's own channels are."""
    most = () if method is None else _most_ranks(shape, method)
    ladders = [(0,), *(tuple(dict.fromkeys((*rank_steps(rank), rank))) for rank in most), (0,)]
    return ladders[piece.first], ladders[piece.last + 1]


def _most_ranks(shape: LayerShape, method: str) -> tuple[int, ...]:
    """The greatest rank of each mode, from the shape alone."""
    inputs, outputs = (channels // shape.groups for channels in shape.channels)
    height, width = shape.kernel
    if method == "svd":
        return (min(outputs, inputs * height * width),)
    if method == "spatial_svd":
        return (min(inputs * height, outputs * width),)
    r_in, r_out = min(inputs, outputs * height * width), min(outputs, inputs * height * width)
    return (r_in, r_out) if method == "tucker2" else (r_in, min(r_in * height, r_out * width), r_out)


def _bilinear(grid: Floats, ladders: Sequence[Sequence[int]], inputs: Floats, outputs: Floats) -> Floats:
    """``grid`` between its points, ``(K,)``; below the first and above the last point it is that point's."""
    (low, high, share), (left, right, part) = (
        _between(*pair) for pair in zip(ladders, (inputs, outputs), strict=True)
    )
    below = grid[low, left] * (1 - part) + grid[low, right] * part
    above = grid[high, left] * (1 - part) + grid[high, right] * part
    return below * (1 - share) + above * share


def _between(ladder: Sequence[int], values: Floats) -> tuple[Any, Any, Floats]:
    """Indices of the points around each value, and how far it lies from the first to the second."""
    points = np.asarray(ladder, dtype=np.float64)
    high = np.searchsorted(points, values).clip(0, len(points) - 1)
    low = np.maximum(high - 1, 0)
    gap = np.where(points[high] > points[low], points[high] - points[low], 1.0)
    return low, high, ((values - points[low]) / gap).clip(0.0, 1.0)
