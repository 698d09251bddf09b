"""ONNX Runtime: whole networks, and single operations by its own profile."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.decomposition import Floats
from common.deploy.exportable import exportable
from common.deploy.onnx_files import INPUT, OUTPUT, export_onnx
from common.deploy.sessions import check_provider, onnx_session, session_options
from common.latency.operations import Operation
from common.latency.runtimes.base import RUNTIMES, OperationRuntime, repeat

# onnx and onnxruntime take seconds to import. The functions that need them import them, so that the whole suite does
# not wait for them.

OPSET, IR_VERSION = 18, 9
CHAIN = 200
"""Operators in a chain, and runs of it, that show what the profile costs."""


class OnnxRuntime(OperationRuntime):
    """The network is exported with its BatchNorm folded and its factors merged, see :mod:`common.deploy`."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    merges_factors = True

    @property
    def version(self) -> str:
        """Version of the package ``onnxruntime``."""
        return version("onnxruntime")

    def check(self, device: torch.device) -> None:
        """Do nothing if ONNX Runtime can use the device.

        Raises:
            ValueError: it cannot.
        """
        check_provider(device)

    def accept(self, networks: Sequence[nn.Module], x: Tensor) -> Tensor:
        """``x`` as a batch. All networks are checked before the first export, which takes seconds.

        Raises:
            ValueError: a network or ``x`` is of a kind that no ONNX file holds.
        """
        batches = [exportable(network, x)[1] for network in networks]
        return x.reshape(batches[0].shape)

    def prepare(self, model: nn.Module, x: Tensor) -> Callable[[], object]:
        """A run of a session on inputs and outputs that stay on their device, so that no copy is timed."""
        x = x.contiguous()
        with tempfile.TemporaryDirectory() as folder:
            path = export_onnx(model, Path(folder) / "timed.onnx", x, dynamic_batch=False)
            session = onnx_session(path, device=x.device)
        binding = session.io_binding()
        index = x.device.index or 0
        kind = torch.empty(0, dtype=x.dtype).numpy().dtype
        binding.bind_input(INPUT, x.device.type, index, kind, tuple(x.shape), x.data_ptr())
        binding.bind_output(OUTPUT, x.device.type, index)

        def run() -> object:
            session.run_with_iobinding(binding)
            return x  # the binding points into it

        return run

    def memory_format(self, x: Tensor) -> str:
        """Always ``contiguous``; inside, ONNX Runtime may lay tensors out in blocks."""
        return "contiguous"

    def operation_seconds(self, operations: Sequence[Operation], batch: int, runs: int) -> Floats:
        """Seconds of the operators alone, by the profile of one session.

        Raises:
            RuntimeError: the profile misses an operation.
        """
        feeds = {
            f"in{place}": np.ones(operation.input_shape(batch), dtype=np.float32)
            for place, operation in enumerate(operations)
        }
        seconds = _profiled(_model_of(operations, batch), feeds, runs)
        for place, operation in enumerate(operations):
            if place not in seconds:
                raise RuntimeError(f"ONNX Runtime's profile misses {operation}, which it ran")
        return np.array([seconds[place] for place in range(len(operations))]).T

    def clock_cost(self) -> float:
        """Seconds that the profile adds to an operator.

        A chain of the smallest operators is run with the profile and without; the cost is the difference.
        """
        model = _chain()
        feeds = {"in0": np.zeros((1, 16), np.float32)}
        profiled = np.median(list(_profiled(model, feeds, CHAIN).values()))
        session = _session(model, session_options())
        walls = []
        for _ in range(CHAIN):
            start = time.perf_counter()
            session.run(None, feeds)
            walls.append(time.perf_counter() - start)
        return max(0.0, float(profiled) - float(np.median(walls)) / CHAIN)


def _session(model: bytes, options: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _profiled(model: bytes, feeds: dict[str, np.ndarray], runs: int) -> dict[int, list[float]]:
    """Seconds of each run of the operators that are named ``op0``, ``op1``, ..., by number."""
    seconds: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _session(model, options)
        repeat(partial(session.run, None, feeds), runs)
        events = json.loads(Path(session.end_profiling()).read_text())
    for event in events:
        match = re.fullmatch(r"op(\d+)(_nchwc)?_kernel_time", event["name"])
        if match:
            seconds.setdefault(int(match[1]), []).append(event["dur"] * 1e-6)
    return seconds


def _chain() -> bytes:
    """A model of `CHAIN` products of 16 numbers with one 16 x 16 matrix, one after the other."""
    from onnx import TensorProto, helper

    matrix = _zeros("matrix", (16, 16))
    names = ["in0", *(f"op{place}" for place in range(CHAIN))]
    nodes = [helper.make_node("MatMul", [before, "matrix"], [name], name=name) for before, name in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 16)) for name in (names[0], names[-1])]
    return _serialized(helper.make_graph(nodes, "chain", ends[:1], ends[1:], [matrix]))


def _model_of(operations: Sequence[Operation], batch: int) -> bytes:
    """A model in which each operation has its own input; its output is averaged at once, to be small."""
    from onnx import TensorProto, helper

    nodes, inputs, outputs, weights = [], [], [], []
    for place, operation in enumerate(operations):
        kind, size, settings = _operator(operation)
        shape, channels = operation.input_shape(batch), operation.channels[1]
        reduced = (shape[0], channels) if operation.linear else (batch, channels, 1, 1)
        names = [f"in{place}", f"weight{place}", f"bias{place}"]
        weights += [_zeros(names[1], size), _zeros(names[2], (channels,))]
        nodes.append(helper.make_node(kind, names, [f"op{place}"], name=f"op{place}", **settings))
        end = "Identity" if operation.linear else "GlobalAveragePool"
        nodes.append(helper.make_node(end, [f"op{place}"], [f"out{place}"]))
        inputs.append(helper.make_tensor_value_info(names[0], TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"out{place}", TensorProto.FLOAT, reduced))
    return _serialized(helper.make_graph(nodes, "operations", inputs, outputs, weights))


def _operator(operation: Operation) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    """ONNX's operator for an operation, the shape of its weight, and its attributes."""
    inputs, outputs = operation.channels
    if operation.linear:
        return "Gemm", (outputs, inputs), {"transB": 1}
    settings: dict[str, Any] = {
        "kernel_shape": operation.kernel,
        "strides": operation.stride,
        "group": operation.groups,
        "pads": operation.padding * 2,
    }
    if operation.transposed:
        settings["output_padding"] = operation.output_padding
        return "ConvTranspose", (inputs, outputs // operation.groups, *operation.kernel), settings
    return "Conv", (outputs, inputs // operation.groups, *operation.kernel), settings


def _zeros(name: str, shape: tuple[int, ...]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape, np.float32).tobytes(), raw=True)


def _serialized(graph: Any) -> bytes:
    from onnx import helper

    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()


RUNTIMES.add(OnnxRuntime())
