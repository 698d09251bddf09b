"""ONNX Runtime: whole networks, and single operations by its own profile."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.decomposition import Floats
from common.deploy.sessions import INPUT, OUTPUT, check_provider, onnx_session, session_options
from common.environment import describe_environment
from common.latency.operations import Operation
from common.latency.operators import chain_model, operations_inputs, operations_model
from common.latency.runtimes.base import RUNTIMES, OperationRuntime, repeat
from common.latency.runtimes.onnx_file import OnnxFile

# onnxruntime takes seconds to import. The functions that need it import it, so that the whole suite does not wait for
# it.

CHAIN = 200
"""Operators in a chain, and runs of it, that show what the profile costs."""


class OnnxSession(OnnxFile):
    """A session of ONNX Runtime."""

    @property
    def version(self) -> str:
        """Version of the package ``onnxruntime``, or ``onnxruntime-gpu``."""
        return str(describe_environment()["onnxruntime"])

    def check(self, device: torch.device) -> None:
        """Do nothing if ONNX Runtime can use the device.

        Raises:
            ValueError: it cannot.
        """
        check_provider(device)

    def prepare(self, model: nn.Module, x: Tensor) -> Callable[[], object]:
        """A run of a session on inputs and outputs that stay on their device, so that no copy is timed."""
        with tempfile.TemporaryDirectory() as folder:
            return self.file_pass(self.export(model, folder, x), x)

    def file_pass(self, path: Path, x: Tensor) -> Callable[[], object]:
        """A run of an ONNX file, as :meth:`prepare` makes it of a network."""
        x = x.contiguous()
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


class OnnxRuntime(OnnxSession, OperationRuntime):
    """The network is exported with its BatchNorm folded and its factors merged, see :mod:`common.deploy`."""

    name = "onnxruntime"
    title = "ONNX Runtime"

    def operation_seconds(self, operations: Sequence[Operation], batch: int, runs: int) -> Floats:
        """Seconds of the operators alone, by the profile of one session.

        Raises:
            RuntimeError: the profile misses an operation.
        """
        feeds = operations_inputs(operations, batch)
        seconds = _profiled(operations_model(operations, batch), feeds, runs)
        for place, operation in enumerate(operations):
            if place not in seconds:
                raise RuntimeError(f"ONNX Runtime's profile misses {operation}, which it ran")
        return np.array([seconds[place] for place in range(len(operations))]).T

    def clock_cost(self) -> float:
        """Seconds that the profile adds to an operator.

        A chain of the smallest operators is run with the profile and without; the cost is the difference.
        """
        model = chain_model(CHAIN)
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


RUNTIMES.add(OnnxRuntime())
