"""Time on the clock: measured, predicted for any plan, and kept on disk."""

from common.latency.cache import measured_latencies
from common.latency.measuring import RUNTIMES, Latency, check_runtime, measure_latencies, measure_latency
from common.latency.network import NetworkLatencies
from common.latency.table import LatencyTable

__all__ = [
    "RUNTIMES",
    "Latency",
    "LatencyTable",
    "NetworkLatencies",
    "check_runtime",
    "measure_latencies",
    "measure_latency",
    "measured_latencies",
]
