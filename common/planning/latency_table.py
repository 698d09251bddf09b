"""Measured seconds of the operations that layers become, and from them the seconds of any plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from common.decomposition import DECOMPOSITIONS, Floats
from common.planning.layers import LayerShape, dense_reason, layer_method
from common.planning.operations import Operation, layer_operations, with_widths
from common.planning.plan import LayerPlan

FORMAT = 1
SINGLE_STEPS, JOINT_STEPS = 4, 4
"""Ranks an octave at which a method with one rank, and one whose ranks meet in an operation, is timed."""


@dataclass(frozen=True)
class Conditions:
    """What times depend on besides the operations.

    Attributes:
        runtime: one of `RUNTIMES` of :mod:`common.planning.operations`.
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


@dataclass(eq=False)
class LatencyTable:
    """Seconds of operations under some conditions, of a batch.

    Attributes:
        conditions: where they were measured.
        seconds: of each operation.
        networks: fingerprint of a dense network -> its seconds as a whole.
    """

    conditions: Conditions
    seconds: dict[Operation, float] = field(default_factory=dict)
    networks: dict[str, float] = field(default_factory=dict)

    def layer_seconds(self, shape: LayerShape, method: str | None, ranks: Floats) -> Floats:
        """Seconds of a layer at many ranks ``(K, modes)``, ``(K,)``; linear between the ranks that were measured.

        Raises:
            ValueError: the table does not hold the operations.
        """
        widths = np.column_stack([np.zeros(len(ranks)), ranks, np.zeros(len(ranks))])  # the layer's own are closed
        total = np.zeros(len(ranks))
        for place, calls in enumerate(layer_operations(shape, method)):
            ladders = _ladders(shape, method, place)
            for operation in calls:
                grid = np.array([[self._known(with_widths(operation, i, o)) for o in ladders[1]] for i in ladders[0]])
                total += _bilinear(grid, ladders, widths[:, place], widths[:, place + 1])
        return total

    def plan_seconds(self, shape: LayerShape, plan: LayerPlan) -> float:
        """Seconds of what the plan makes of one layer."""
        return float(self.layer_seconds(shape, plan.method, np.array([plan.ranks], dtype=np.float64))[0])

    def network_seconds(self, shapes: Mapping[str, LayerShape], dense: float, plans: Mapping[str, LayerPlan]) -> float:
        """Seconds of the network that ``plans`` make, predicted: the dense one's and what its layers gain.

        Args:
            shapes: of the dense network's layers.
            dense: seconds of the dense network.
            plans: of its layers.
        """
        gains = (self.plan_seconds(shapes[n], p) - self.plan_seconds(shapes[n], LayerPlan()) for n, p in plans.items())
        return dense + sum(gains)

    def _known(self, operation: Operation) -> float:
        try:
            return self.seconds[operation]
        except KeyError:
            raise ValueError(
                f"the latency table has no time of {operation}; make it for this network and these methods, with "
                "common.latency_cache.latency_table"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The table as plain values that JSON can hold."""
        return {
            "format": FORMAT,
            "conditions": asdict(self.conditions),
            "networks": self.networks,
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
            networks = {str(name): float(value) for name, value in values["networks"].items()}
            if not all(np.isfinite(value) and value > 0 for value in (*seconds.values(), *networks.values())):
                raise ValueError("a time that is not a positive number")
            return cls(Conditions(**values["conditions"]), seconds, networks)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"this is not a latency table: {error!r}") from error


def rank_steps(method: str, most: int = 1 << 16) -> tuple[int, ...]:
    """The ranks at which ``method`` is timed, ascending, up to ``most``.

    Multiples of 8 up to 32 and then so many an octave, which below 64 are multiples of 8 and then of 16 or more. What
    a runtime likes among them is read off the times: a rank that is as slow as a greater one is not worth having.
    """
    steps = SINGLE_STEPS if len(DECOMPOSITIONS[method].rank_names) == 1 else JOINT_STEPS
    found = [8, 16, 24, 32]
    while found[-1] < most:
        octave = found[-1]
        found += [octave + octave * step // steps for step in range(1, steps + 1)]
    return tuple(rank for rank in found if rank <= most)


def needed_operations(shapes: Iterable[LayerShape], methods: Sequence[str]) -> list[Operation]:
    """Every operation that tells what these layers cost dense and by these methods, each once."""
    found: dict[Operation, None] = {}
    for shape in shapes:
        kinds = () if dense_reason(shape) else dict.fromkeys(layer_method(method, shape) for method in methods)
        for method in (None, *kinds):
            for place, calls in enumerate(layer_operations(shape, method)):
                inputs, outputs = _ladders(shape, method, place)
                found.update((with_widths(call, i, o), None) for call in calls for i in inputs for o in outputs)
    return list(found)


def _ladders(shape: LayerShape, method: str | None, place: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ranks on both sides of a factor at which it is timed; ``(0,)`` where the layer's own channels are."""
    if method is None:
        return (0,), (0,)
    ladders = [(0,), *(_mode_ladder(most, method) for most in _most_ranks(shape, method)), (0,)]
    return ladders[place], ladders[place + 1]


def _mode_ladder(most: int, method: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*rank_steps(method, most), most)))


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
