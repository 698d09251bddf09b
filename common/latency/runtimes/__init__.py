"""Runtimes: one file each, which says all about it and registers it.

A runtime of your own is a subclass of ``Runtime``, or of ``OperationRuntime`` when the time of each operation can be
told, and ``RUNTIMES.add(Mine())`` in a module that is imported before the runtime is used.
"""

from common.latency.runtimes.base import (
    RUNTIMES,
    OperationRuntime,
    Runtime,
    available_runtimes,
    operation_runtime,
    operation_runtimes,
)

# Messages list the runtimes in this order.
# isort: off
from common.latency.runtimes.eager import Eager
from common.latency.runtimes.channels_last import ChannelsLast
from common.latency.runtimes.compile import Compile
from common.latency.runtimes.onnxruntime import OnnxRuntime
from common.latency.runtimes.openvino import OpenVino
from common.latency.runtimes.onnxruntime_int8 import OnnxRuntimeInt8
# isort: on

__all__ = [
    "RUNTIMES",
    "ChannelsLast",
    "Compile",
    "Eager",
    "OnnxRuntime",
    "OnnxRuntimeInt8",
    "OpenVino",
    "OperationRuntime",
    "Runtime",
    "available_runtimes",
    "operation_runtime",
    "operation_runtimes",
]
