"""ONNX models of single operations, in which a runtime's profile shows the time of each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from common.latency.operations import Operation

# onnx takes seconds to import. The functions that need it import it, so that the whole suite does not wait for it.

OPSET, IR_VERSION = 18, 9


def operations_model(operations: Sequence[Operation], batch: int) -> bytes:
    """A model in which each operation has a bias and its own input; its output is averaged at once, to be small.

    The operator of the first operation is named ``op0`` and its input ``in0``, and so on.
    """
    from onnx import TensorProto, helper

    nodes, inputs, outputs, weights = [], [], [], []
    for place, operation in enumerate(operations):
        kind, size, settings = _operator(operation)
        shape, channels = operation.input_shape(batch), operation.channels[1]
        reduced = (shape[0], channels) if operation.linear else (batch, channels, *[1] * len(operation.kernel))
        names = [f"in{place}", f"weight{place}", f"bias{place}"]
        # A bias of zeros would be left out by OpenVINO.
        weights += [_filled(names[1], size, 0.0), _filled(names[2], (channels,), 1.0)]
        nodes.append(helper.make_node(kind, names, [f"op{place}"], name=f"op{place}", **settings))
        end = "Identity" if operation.linear else "GlobalAveragePool"
        nodes.append(helper.make_node(end, [f"op{place}"], [f"out{place}"]))
        inputs.append(helper.make_tensor_value_info(names[0], TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"out{place}", TensorProto.FLOAT, reduced))
    return _serialized(helper.make_graph(nodes, "operations", inputs, outputs, weights))


def operations_inputs(operations: Sequence[Operation], batch: int) -> dict[str, np.ndarray]:
    """Inputs of :func:`operations_model` by name."""
    return {
        f"in{place}": np.ones(operation.input_shape(batch), dtype=np.float32)
        for place, operation in enumerate(operations)
    }


def chain_model(length: int) -> bytes:
    """A model of ``length`` products of 16 numbers with one 16 x 16 matrix, one after the other."""
    from onnx import TensorProto, helper

    matrix = _filled("matrix", (16, 16), 0.0)
    names = ["in0", *(f"op{place}" for place in range(length))]
    nodes = [helper.make_node("MatMul", [before, "matrix"], [name], name=name) for before, name in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 16)) for name in (names[0], names[-1])]
    return _serialized(helper.make_graph(nodes, "chain", ends[:1], ends[1:], [matrix]))


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


def _filled(name: str, shape: tuple[int, ...], value: float) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.FLOAT, shape, np.full(shape, value, np.float32).tobytes(), raw=True)


def _serialized(graph: Any) -> bytes:
    from onnx import helper

    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
