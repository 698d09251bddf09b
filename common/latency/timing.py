"""Seconds of single operations in a runtime, many of them timed in turn, on the processor."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from common.decomposition import Floats
from common.latency.operations import Operation
from common.latency.runtimes import operation_runtime
from common.latency.runtimes.base import WARM_UP
from common.progress import track

ROUNDS, RUNS = 4, 3
PART_BYTES = 32 * 2**20
"""Bytes of weights and activations that the operations of one part hold."""
SHORTEST_S = 2e-7
"""Seconds that any operation takes at least."""
POLISHING = 20
"""Passes that separate the operations' times from the parts' speeds; more passes change hardly anything."""


def time_operations(
    operations: Sequence[Operation], runtime: str, batch: int = 1, runs: int = RUNS
) -> dict[Operation, float]:
    """Median seconds of each operation.

    All are timed in one order, then again in others: `ROUNDS` in all, so no operation owes its time to one lucky
    moment. A change of the machine's speed that all operations of a part share is taken out; operations so large that
    they are timed alone keep it.

    Args:
        operations: each is timed once, even if it is given more often.
        runtime: name of one that can time operations, see :class:`common.latency.runtimes.OperationRuntime`.
        batch: inputs that pass at once.
        runs: of each operation in a round, see :func:`common.latency.runtimes.base.repeat`.

    Raises:
        ValueError: ``runtime`` is unknown, or its operations cannot be timed one by one.
    """
    clock = operation_runtime(runtime)
    wanted = list(dict.fromkeys(operations))
    if not wanted:
        return {}
    orders = [random.Random(number).sample(wanted, len(wanted)) for number in range(ROUNDS)]
    parts = [(number, part) for number, order in enumerate(orders) for part in _parts(order, batch)]
    places = {operation: place for place, operation in enumerate(wanted)}
    found = np.zeros((ROUNDS, len(wanted)))
    labels = np.zeros((ROUNDS, len(wanted)), dtype=np.int64)
    cost = clock.clock_cost()
    for index, (number, part) in enumerate(
        track(parts, f"timing {len(wanted):,} operations in {clock.title}", unit="part")
    ):
        seconds = clock.operation_seconds(part, batch, runs)
        own = [places[operation] for operation in part]
        found[number, own] = np.median(seconds[WARM_UP:], axis=0).clip(min=SHORTEST_S)
        labels[number, own] = index
    medians = (without_drift(found, labels) - cost).clip(min=SHORTEST_S)
    return dict(zip(wanted, medians.tolist(), strict=True))


def without_drift(seconds: Floats, parts: NDArray[np.int64]) -> Floats:
    """Median seconds of each operation, as if the machine had kept one speed: ``(operations,)``.

    All operations of a part are taken to be faster or slower by one factor, the part's speed. It shows in the
    operations that were timed in other company in other rounds. An operation that is always alone gets the median of
    its rounds.

    Args:
        seconds: of each operation in each round, ``(rounds, operations)``.
        parts: number of the part in which each of ``seconds`` was timed, in the same shape.
    """
    logs = np.log(seconds)
    speeds = np.zeros(parts.max() + 1)
    numbers = np.arange(len(speeds))
    for _ in range(POLISHING):
        own = np.median(logs - speeds[parts], axis=0)
        speeds = ndimage.median(logs - own, parts, numbers)
        speeds -= np.median(speeds[parts])
    return np.exp(np.median(logs - speeds[parts], axis=0))


def _parts(operations: Sequence[Operation], batch: int) -> Iterator[list[Operation]]:
    """Cut the operations into parts of at most `PART_BYTES`, or of one operation, to save memory."""
    part: list[Operation] = []
    size = 0
    for operation in operations:
        (inputs, outputs), area, kernel = operation.channels, math.prod(operation.before), math.prod(operation.kernel)
        own = 4 * (inputs * outputs * kernel // operation.groups + batch * inputs * area)
        if part and size + own > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(operation)
        size += own
    if part:
        yield part
