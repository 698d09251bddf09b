"""PyTorch as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.decomposition import Floats
from common.latency.operations import Operation
from common.latency.runtimes.base import RUNTIMES, OperationRuntime, repeat, repeated_call
from common.network.kinds import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS


class Eager(OperationRuntime):
    """The network and ``x`` run as they are."""

    name = "eager"
    title = "PyTorch eager"

    def arrange(self, network: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
        """Return the network and ``x`` in the memory format of this runtime. ``network`` itself stays unchanged."""
        return network, x

    def prepare(self, model: nn.Module, x: Tensor) -> Callable[[], object]:
        """A call of the network, made once already: what PyTorch makes once is made then."""
        with self.passing():
            return repeated_call(*self.arrange(model, x))

    def operation_seconds(self, operations: Sequence[Operation], batch: int, runs: int) -> Floats:
        """Seconds of the modules' calls, by the process's clock."""
        modules = [layer(operation).eval() for operation in operations]
        inputs = [torch.randn(operation.input_shape(batch)) for operation in operations]
        pairs = [self.arrange(module, x) for module, x in zip(modules, inputs, strict=True)]
        seconds: list[list[float]] = [[] for _ in operations]

        def run() -> None:
            for own, (module, x) in zip(seconds, pairs, strict=True):
                x.abs_()  # the input is written, as the layer before would write it
                start = time.perf_counter()
                module(x)
                own.append(time.perf_counter() - start)

        with self.passing():
            repeat(run, runs)
        return np.array(seconds).T


def layer(operation: Operation) -> nn.Module:
    """The layer that does this operation, with a bias and random weights."""
    inputs, outputs = operation.channels
    if operation.linear:
        return nn.Linear(inputs, outputs)
    shared: dict[str, Any] = {
        "kernel_size": operation.kernel,
        "stride": operation.stride,
        "padding": operation.padding,
        "groups": operation.groups,
    }
    axes = len(operation.kernel) - 1
    if operation.transposed:
        return TRANSPOSED_CONVOLUTIONS[axes](inputs, outputs, output_padding=operation.output_padding, **shared)
    return CONVOLUTIONS[axes](inputs, outputs, **shared)


RUNTIMES.add(Eager())
