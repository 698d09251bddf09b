"""Where the time of a network goes, layer by layer."""

from __future__ import annotations

from torch import Tensor, nn

from common.deploy import fold_batchnorm, merge_factors
from common.latency.cache import current_conditions
from common.latency.measuring import measure_latency
from common.latency.pieces import needed_operations
from common.latency.runtimes import operation_runtime
from common.latency.table import LatencyTable
from common.latency.timing import time_operations
from common.network.passes import example_batch
from common.network.shapes import trace_layers
from common.planning.plan import LayerPlan, RankPlan


def layer_times(model: nn.Module, x: Tensor, runtime: str, plan: RankPlan | None = None) -> dict[str, float]:
    """Where a network's time goes: seconds of each layer that a decomposition could replace, and of the ``rest``.

    The layers are timed one by one, and the network as a whole. If the runtime merges factors, BatchNorm is folded and
    factors are merged first. The ``rest`` is the time of the network less that of its layers, at least 0.

    Args:
        model: dense or compressed, on the processor.
        x: the batch that passes at once; a single image ``(C, H, W)`` is a batch of one.
        runtime: name of one that can time operations, see :class:`common.latency.OperationRuntime`.
        plan: with which the network was made; the factors of a layer then count as that layer.

    Raises:
        ValueError: ``runtime`` is unknown or cannot time operations, or the network is not on the processor.
        RuntimeError: the runtime lacks something on this machine, such as its package.
    """
    chosen = operation_runtime(runtime)
    if x.device.type != "cpu":
        raise ValueError(f"x is on {x.device}: layers are timed one by one on the processor; allowed: cpu")
    chosen.check(x.device)
    x = example_batch(x, model)
    if chosen.merges_factors:
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
