"""Latency tables that are measured once on a machine and kept on its disk."""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from common.compression import factored_layer, planned_layers
from common.decomposition import DECOMPOSITIONS
from common.deploy import fold_batchnorm, merge_factors
from common.environment import describe_environment
from common.files import replacing
from common.latency.measuring import measure_latencies, measure_latency
from common.latency.network import NetworkLatencies, network_fingerprint
from common.latency.operations import RUNTIMES, Operation
from common.latency.table import MERGING, Conditions, LatencyTable, WholeNetwork, needed_operations, reference_plans
from common.latency.timing import time_operations
from common.network.copies import independent_copy
from common.network.held import replace_module
from common.network.shapes import LayerShape, trace_layers
from common.planning.plan import LayerPlan, RankPlan
from common.validation import check_choice

CACHE = "LOW_RANK_CNN_CACHE"
"""The variable of the environment that names the folder of the tables."""
TIMED_AGAIN = 100
"""Operations, of those that a table has, that are timed beside new ones."""


def measured_latencies(
    model: nn.Module,
    x: Tensor,
    runtime: str = "onnxruntime",
    method: str = "mixed",
    *,
    folder: str | Path | None = None,
    refresh: bool = False,
) -> NetworkLatencies:
    """Times of everything that ``method`` may make of ``model``'s layers: from the disk where they are, else measured.

    What is missing is measured and added to the file, so that layers of one shape are timed once, whatever network
    they are in. The machine should have nothing else to do meanwhile.

    Args:
        model: the dense network, on the processor.
        x: the batch that will pass at once, ``(N, C, H, W)``.
        runtime: ``eager``, ``channels_last`` or ``onnxruntime``.
        method: a decomposition, or ``mixed`` for all.
        folder: of the tables; None takes what ``LOW_RANK_CNN_CACHE`` names, else ``low-rank-cnn`` in
            ``XDG_CACHE_HOME`` or in ``~/.cache``.
        refresh: measure anew what this network and method need.

    Raises:
        ValueError: ``runtime`` or ``method`` is unknown, or the network is not on the processor or not in single
            precision, in which operations are timed.
    """
    check_choice("runtime", runtime, RUNTIMES)
    check_choice("method", method, (*DECOMPOSITIONS, "mixed"))
    if others := {parameter.dtype for parameter in model.parameters()} - {torch.float32}:
        raise ValueError(f"model is of {min(map(str, others))}: latency tables are measured in torch.float32")
    if x.device.type != "cpu":
        raise ValueError(f"x is on {x.device}: latency tables are measured on the processor; allowed: cpu")
    conditions = current_conditions(runtime, len(x))
    path = table_path(conditions, folder)
    table = read_table(path, conditions)
    methods = tuple(DECOMPOSITIONS) if method == "mixed" else (method,)
    shapes = trace_layers(model, x)
    needed = needed_operations(shapes.values(), methods)
    missing = [operation for operation in needed if refresh or operation not in table.seconds]
    if missing:
        _time_missing(table, missing)
    if refresh:
        table.networks.clear()  # what was fitted to the former times
    name = network_fingerprint(model, x)
    unknown = bool(missing) or name not in table.networks
    if unknown:
        table.networks[name] = _time_whole(model, x, table, shapes)
        write_table(table, path)
    return NetworkLatencies(table, table.networks[name], shapes, name)


def _time_missing(table: LatencyTable, missing: Sequence[Operation]) -> None:
    """Add the times of operations, at the speed that the machine had when the table's others were timed.

    Some of those are timed again beside the new ones to tell it, or the method that was timed on a fast day would win.
    """
    kept = list(table.seconds.keys() - set(missing))
    again = random.Random(0).sample(kept, min(len(kept), TIMED_AGAIN))
    found = time_operations([*missing, *again], table.conditions.runtime, table.conditions.batch)
    slower = statistics.median([found[operation] / table.seconds[operation] for operation in again] or [1.0])
    table.seconds |= {operation: found[operation] / slower for operation in missing}


def _time_whole(model: nn.Module, x: Tensor, table: LatencyTable, shapes: Mapping[str, LayerShape]) -> WholeNetwork:
    """Time the dense network in turn with small ones, by all methods whose operations the table has."""
    references = reference_plans(shapes, table.known_methods(shapes))
    networks = [with_random_factors(model, plans) for plans in references]
    found = measure_latencies(networks or [model], x, baseline=model, runtime=table.conditions.runtime, round_s=0.1)
    if notes := [latency.note for latency in found if latency.note]:
        warnings.warn(
            f"other work disturbs the latency table: {notes[0]}; the times are kept until "
            "measured_latencies(..., refresh=True) measures them anew",
            stacklevel=3,
        )
    dense = found[0].baseline_median_s
    assert dense is not None
    small = [(plans, latency.median_s) for plans, latency in zip(references, found, strict=False)]
    return table.calibrated(shapes, dense, small) if references else WholeNetwork(dense)


def with_random_factors(model: nn.Module, plans: Mapping[str, LayerPlan]) -> nn.Module:
    """A copy of ``model`` with the layers that ``plans`` make in place of its own, as they are born: for its time."""
    small = independent_copy(model)
    for name, (layer, effective) in planned_layers(small, RankPlan(dict(plans), "mixed", "fixed")).items():
        replace_module(small, layer, factored_layer(layer, effective, plans[name]))
    return small.eval()


def layer_times(model: nn.Module, x: Tensor, runtime: str, plan: RankPlan | None = None) -> dict[str, float]:
    """Where a network's time goes: seconds of each layer that a decomposition could replace, and of the ``rest``.

    The layers are timed one by one and the network as a whole, with BatchNorm as the runtime has it and factors merged
    where it merges them; the ``rest`` is what the layers do not make up, at least 0.

    Args:
        model: dense or compressed, on the processor.
        x: the batch that passes at once.
        runtime: ``eager``, ``channels_last`` or ``onnxruntime``.
        plan: that the network was made with; the factors of a layer then count as that layer.

    Raises:
        ValueError: ``runtime`` is unknown, or the network is not on the processor.
    """
    check_choice("runtime", runtime, RUNTIMES)
    if x.device.type != "cpu":
        raise ValueError(f"x is on {x.device}: layers are timed one by one on the processor; allowed: cpu")
    if runtime in MERGING:
        model = merge_factors(fold_batchnorm(model, x), x)
    shapes = trace_layers(model, x)
    seconds = time_operations(needed_operations(shapes.values(), ()), runtime, len(x))
    times = LatencyTable(current_conditions(runtime, len(x)), seconds)
    found: dict[str, float] = {}
    for name, shape in shapes.items():
        parent = name.rpartition(".")[0]
        layer = parent if plan is not None and parent in plan.factored else name
        found[layer] = found.get(layer, 0.0) + times.plan_seconds(shape, LayerPlan())
    whole = measure_latency(model, x, runtime=runtime).median_s
    return {**found, "rest": max(0.0, whole - sum(found.values()))}


def current_conditions(runtime: str, batch: int) -> Conditions:
    """Those of this machine and process."""
    machine = describe_environment()
    number = version("onnxruntime") if runtime == "onnxruntime" else torch.__version__
    return Conditions(runtime, number, str(machine["processor"]), torch.get_num_threads(), batch)


def table_path(conditions: Conditions, folder: str | Path | None = None) -> Path:
    """The file of the table that was measured under these conditions."""
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = os.environ.get(CACHE) or Path(home) / "low-rank-cnn"
    parts = (conditions.runtime, conditions.version, conditions.processor)
    words = [re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts]
    return Path(folder) / f"latency-{'-'.join(words)}-{conditions.threads}threads-batch{conditions.batch}.json"


def read_table(path: Path, conditions: Conditions) -> LatencyTable:
    """The table in a file; an empty one, with a warning, where the file is broken or of other conditions."""
    if not path.is_file():
        return LatencyTable(conditions)
    try:
        table = LatencyTable.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # a text that is no JSON is a ValueError too
        warnings.warn(f"{path} cannot be read ({error}); its times are measured anew", stacklevel=3)
        return LatencyTable(conditions)
    if table.conditions != conditions:
        warnings.warn(f"{path} was measured under {table.conditions}, not {conditions}; measured anew", stacklevel=3)
        return LatencyTable(conditions)
    return table


def write_table(table: LatencyTable, path: Path) -> None:
    """Write the table, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(table.to_json()), encoding="utf-8")
