"""Latency tables, measured once on a machine and kept on its disk."""

from __future__ import annotations

import json
import math
import os
import random
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common.environment import describe_environment
from common.files import check_writable, read_bounded, replacing
from common.latency.measuring import measure_latencies
from common.latency.network import NetworkLatencies, network_fingerprint
from common.latency.operations import Operation
from common.latency.pieces import needed_operations
from common.latency.references import reference_plans, with_random_factors
from common.latency.runtimes import RUNTIMES, operation_runtime
from common.latency.table import Conditions, LatencyTable, WholeNetwork
from common.latency.timing import time_operations
from common.network.passes import example_batch
from common.network.shapes import LayerShape, trace_layers
from common.planning.methods import decomposing_methods, decompositions_of, timed_methods

CACHE = "LOW_RANK_CNN_CACHE"
"""Environment variable that names the folder of the tables."""
TIMED_AGAIN = 100
"""Operations that a table already has and that are timed again beside new ones."""
WHOLE_ROUND_S = 0.1
"""Least seconds of one timing of a whole network."""
MOST_BYTES = 2**26
"""Maximum size of a table's file. A file with a million operations has less."""
MOST_ELEMENTS = 2**30
"""Maximum number of elements of an operation's weight, input or output in a file. Some operations are timed again."""


def check_timed(runtime: str, method: str, device: torch.device) -> None:
    """Raise a ValueError unless operations can be timed in ``runtime`` on ``device``, and the layers of ``method``."""
    operation_runtime(runtime)
    if device.type != "cpu":
        raise ValueError(f"device={str(device)!r}: latency tables are measured on the processor; allowed: cpu")
    decompositions_of(method)
    allowed = [each for each in decomposing_methods() if {*decompositions_of(each)} & {*timed_methods()}]
    if method not in allowed:
        raise ValueError(
            f"method={method!r}: the times of its layers are not tabulated; a budget of latency takes "
            f"{', '.join(allowed)}"
        )


def measured_latencies(
    model: nn.Module,
    x: Tensor,
    runtime: str = "onnxruntime",
    method: str = "mixed",
    *,
    folder: str | Path | None = None,
    refresh: bool = False,
) -> NetworkLatencies:
    """Times of everything that ``method`` may make of ``model``'s layers, from the disk or measured now.

    Times that the disk lacks are measured and added to the file. Layers of one shape are timed once, whatever network
    they are in. The machine should do no other work meanwhile.

    Args:
        model: the dense network, on the processor.
        x: the batch that passes at once, ``(N, C, H, W)``; a single image ``(C, H, W)`` is a batch of one.
        runtime: name of one that can time operations, see :class:`common.latency.OperationRuntime`.
        method: a decomposition, or ``mixed`` for all.
        folder: of the tables; None takes the one that ``LOW_RANK_CNN_CACHE`` names, else ``low-rank-cnn`` in
            ``XDG_CACHE_HOME`` or in ``~/.cache``.
        refresh: whether to measure again what this network and method need.

    Raises:
        ValueError: ``folder`` cannot be written, ``method`` is unknown, ``runtime`` is unknown or cannot time
            operations, or the network is not on the processor or not in single precision, in which operations are
            timed.
        RuntimeError: the runtime lacks something on this machine, such as its package.
    """
    check_timed(runtime, method, x.device)
    clock = operation_runtime(runtime)
    if others := {parameter.dtype for parameter in model.parameters()} - {torch.float32}:
        raise ValueError(f"model is of {min(map(str, others))}: latency tables are measured in torch.float32")
    clock.check(x.device)
    x = example_batch(x, model)
    conditions = current_conditions(runtime, len(x))
    path = table_path(conditions, folder)
    table = read_table(path, conditions)
    methods = tuple(each for each in decompositions_of(method) if each in timed_methods())
    shapes = trace_layers(model, x)
    needed = needed_operations(shapes.values(), methods)
    missing = [operation for operation in needed if refresh or operation not in table.seconds]
    name = network_fingerprint(model, x)
    unknown = bool(missing) or name not in table.networks
    if unknown:  # before any work
        check_writable(path.parent, CACHE if folder is None else "folder")
    if missing:
        _time_missing(table, missing)
    if refresh:
        table.networks.clear()  # they were fitted to the former times
    if unknown:
        table.networks[name] = _time_whole(model, x, table, shapes)
        write_table(table, path)
    return NetworkLatencies(table, table.networks[name], shapes, name)


def _time_missing(table: LatencyTable, missing: Sequence[Operation]) -> None:
    """Add the times of operations, rescaled to match the existing entries.

    Some existing entries are timed again beside the new ones, which shows how much faster or slower the machine is
    now. Without that the method that was timed on a fast day would win.
    """
    kept = list(table.seconds.keys() - set(missing))
    again = random.Random(0).sample(kept, min(len(kept), TIMED_AGAIN))
    found = time_operations([*missing, *again], table.conditions.runtime, table.conditions.batch)
    slower = statistics.median([found[operation] / table.seconds[operation] for operation in again] or [1.0])
    table.seconds |= {operation: found[operation] / slower for operation in missing}


def _time_whole(model: nn.Module, x: Tensor, table: LatencyTable, shapes: Mapping[str, LayerShape]) -> WholeNetwork:
    """Time the dense network in turn with small ones, by every method whose operations the table has."""
    references = reference_plans(shapes, table.known_methods(shapes))
    networks = [with_random_factors(model, plans) for plans in references]
    found = measure_latencies(
        networks or [model], x, baseline=model, runtime=table.conditions.runtime, round_s=WHOLE_ROUND_S
    )
    if notes := [latency.note for latency in found if latency.note]:
        warnings.warn(
            f"other work disturbs the latency table: {notes[0]}; the times are kept until "
            "measured_latencies(..., refresh=True) measures them again",
            stacklevel=3,
        )
    dense = found[0].baseline_median_s
    assert dense is not None
    small = [(plans, latency.median_s) for plans, latency in zip(references, found, strict=False)]
    return table.calibrated(shapes, dense, small) if references else WholeNetwork(dense)


def current_conditions(runtime: str, batch: int) -> Conditions:
    """The conditions of a measurement in this process."""
    processor = str(describe_environment()["processor"])
    return Conditions(runtime, RUNTIMES[runtime].version, processor, torch.get_num_threads(), batch)


def table_path(conditions: Conditions, folder: str | Path | None = None) -> Path:
    """Path of the table that is measured under these conditions."""
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = os.environ.get(CACHE) or Path(home) / "low-rank-cnn"
    parts = (conditions.runtime, conditions.version, conditions.processor)
    words = [re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts]
    return Path(folder) / f"latency-{'-'.join(words)}-{conditions.threads}threads-batch{conditions.batch}.json"


def read_table(path: Path, conditions: Conditions) -> LatencyTable:
    """The table in a file; an empty one without a file, and with a warning if it is broken or of other conditions."""
    if not path.is_file():
        return LatencyTable(conditions)
    try:
        table = LatencyTable.from_json(json.loads(read_bounded(path, MOST_BYTES)))
        for operation in table.seconds:
            _check_operation(operation, conditions.batch)
    except (OSError, ValueError, RecursionError, OverflowError) as error:  # broken JSON is a ValueError too
        warnings.warn(f"{path} cannot be read ({error}); its times are measured again", stacklevel=3)
        return LatencyTable(conditions)
    if table.conditions != conditions:
        warnings.warn(
            f"{path} was measured under {table.conditions}, not {conditions}; its times are measured again",
            stacklevel=3,
        )
        return LatencyTable(conditions)
    return table


def _check_operation(operation: Operation, batch: int) -> None:
    """Raise a ValueError if an operation of a file cannot be timed, or only in an absurd amount of memory."""
    (inputs, outputs), sizes = operation.channels, (*operation.kernel, *operation.before, *operation.after)
    if min(inputs, outputs, operation.groups, *sizes) < 1 or inputs % operation.groups or outputs % operation.groups:
        raise ValueError(f"{operation} is impossible")
    weights = inputs * outputs * math.prod(operation.kernel) // operation.groups
    passed = (
        batch * channels * math.prod(size)
        for channels, size in ((inputs, operation.before), (outputs, operation.after))
    )
    if max(weights, *passed) > MOST_ELEMENTS:
        raise ValueError(f"{operation} is absurdly large")


def write_table(table: LatencyTable, path: Path) -> None:
    """Write the table atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(table.to_json()), encoding="utf-8")
