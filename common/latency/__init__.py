"""Time on the clock: measured in any runtime, predicted for any plan, and kept on disk."""

from common.latency.breakdown import layer_times
from common.latency.cache import measured_latencies
from common.latency.measuring import Latency, measure_files, measure_latencies, measure_latency
from common.latency.network import NetworkLatencies
from common.latency.runtimes import RUNTIMES, OperationRuntime, Runtime, available_runtimes, operation_runtimes
from common.latency.table import LatencyTable

__all__ = [
    "RUNTIMES",
    "Latency",
    "LatencyTable",
    "NetworkLatencies",
    "OperationRuntime",
    "Runtime",
    "available_runtimes",
    "layer_times",
    "measure_files",
    "measure_latencies",
    "measure_latency",
    "measured_latencies",
    "operation_runtimes",
]
