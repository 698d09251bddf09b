"""OpenVINO: whole networks, and single operations by its own profile. The package is optional."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.decomposition import Floats
from common.deploy.onnx_files import TOLERANCE
from common.deploy.openvino_models import check_openvino, compiled_openvino, openvino_model
from common.deploy.parity import difference, tensors, tolerance
from common.latency.operations import Operation
from common.latency.operators import operations_inputs, operations_model
from common.latency.runtimes.base import RUNTIMES, WARM_UP, OperationRuntime, repeat
from common.latency.runtimes.onnx_file import OnnxFile
from common.network.inputs import for_one_pass

OPERATORS = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul")
"""What OpenVINO calls the operators of :func:`operations_model` while it runs them."""


class OpenVino(OnnxFile, OperationRuntime):
    """The network is exported to an ONNX file, with its BatchNorm folded and its factors merged, and read from it."""

    name = "openvino"
    title = "OpenVINO"

    @property
    def version(self) -> str:
        """Version of the package ``openvino``."""
        check_openvino()
        return version("openvino")

    def check(self, device: torch.device) -> None:
        """Do nothing if OpenVINO is installed and ``device`` is the processor.

        Raises:
            ValueError: the device is another one.
            RuntimeError: the package is not installed.
        """
        if device.type != "cpu":
            raise ValueError(f"device={device.type!r}: OpenVINO runs networks on the processor here; allowed: cpu")
        check_openvino()

    def prepare(self, model: nn.Module, x: Tensor) -> Callable[[], object]:
        """A request on inputs and outputs that stay in place, made once already.

        Raises:
            RuntimeError: the outputs differ from PyTorch's by more than 1e-4 of the largest.
        """
        values = x.contiguous()
        with tempfile.TemporaryDirectory() as folder:
            request = openvino_model(self.export(model, folder, x)).create_infer_request()
        # The input is shared with the request, so it is not copied in each run.
        request.set_input_tensor(_shared(values.numpy()))
        request.infer()
        _check_parity(
            torch.from_numpy(request.get_output_tensor(0).data.copy()), next(tensors(model(for_one_pass(x))))
        )

        def run() -> object:
            request.infer()
            return values  # the request reads it

        return run

    def operation_seconds(self, operations: Sequence[Operation], batch: int, runs: int) -> Floats:
        """Seconds of the operators alone, by the profile of one model: of the warm-up, and the mean of the other runs.

        The profile holds the mean of all runs so far, in whole microseconds, so single runs cannot be told.

        Raises:
            RuntimeError: the profile misses an operation.
        """
        model = compiled_openvino(operations_model(operations, batch), {"PERF_COUNT": True})
        request, feeds, places = model.create_infer_request(), operations_inputs(operations, batch), _places(model)
        sums: list[Floats] = []

        def run() -> None:
            request.infer(feeds)
            means = {places.get(step.node_name): step.real_time for step in request.profiling_info}
            if missing := [operation for place, operation in enumerate(operations) if place not in means]:
                raise RuntimeError(f"OpenVINO's profile misses {missing[0]}, which it ran")
            seconds = np.array([means[place].total_seconds() for place in range(len(operations))])
            count = len(sums) + 1
            sums.append(seconds * count + 1e-6 * (count - 1) / 2)  # the mean was rounded down

        repeat(run, runs)
        warm = sums[WARM_UP - 1]
        return np.stack([warm / WARM_UP, (sums[-1] - warm).clip(min=0.0) / (len(sums) - WARM_UP)])


def _places(model: Any) -> dict[str, int]:
    """The operators in a compiled :func:`operations_model`: the name in the profile -> the operation's number."""
    found = {}
    for node in model.get_runtime_model().get_ordered_ops():
        if node.get_rt_info()["layerType"].astype(str) in OPERATORS:
            source = node
            while source.get_input_size():
                source = source.input_value(0).get_node()
            found[node.get_friendly_name()] = int(source.get_friendly_name().removeprefix("in"))
    return found


def _shared(values: np.ndarray) -> Any:
    """The array as OpenVINO's tensor, without a copy."""
    import openvino

    return openvino.Tensor(values, shared_memory=True)


def _check_parity(found: Tensor, expected: Tensor) -> None:
    """Raise a RuntimeError if OpenVINO's outputs are not PyTorch's."""
    gap, allowed = difference(found, expected), max(tolerance(expected.dtype), TOLERANCE)
    if not gap <= allowed:
        raise RuntimeError(f"OpenVINO's outputs differ from PyTorch's by {gap:.1e}; allowed is {allowed:.0e}")


RUNTIMES.add(OpenVino())
