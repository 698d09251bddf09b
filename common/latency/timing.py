"""Seconds of single operations in a runtime, many of them timed in turn, on the processor."""

from __future__ import annotations

import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from common.decomposition import Floats
from common.latency.measuring import RUNTIMES as RUNTIME_NAMES
from common.latency.operations import RUNTIMES, Operation
from common.progress import track
from common.validation import check_choice

ROUNDS, RUNS, FEWEST, WARM_UP = 4, 3, 1, 1
PART_S = 0.2
"""Seconds after which a part has been run often enough in a round, when that is as often as `FEWEST`."""
PART_BYTES = 32 * 2**20
"""Weights and activations of the operations that take turns."""
OPSET, IR_VERSION = 18, 9
CHAIN = 200
"""Operators, and runs of them, that show what the profile costs."""
SHORTEST = 2e-7
"""Seconds that any operation takes at least."""
POLISHING = 20
"""Passes that tell operations from parts; more change hardly anything."""


def time_operations(
    operations: Sequence[Operation], runtime: str, batch: int = 1, runs: int = RUNS
) -> dict[Operation, float]:
    """Median seconds of each operation, with a bias, its input just written as it is inside a network.

    All are timed in one order, then again in others: `ROUNDS` in all, so that no operation owes its time to one lucky
    moment. What the machine's becoming faster or slower did to all that were timed together is taken out, but of
    operations so large that they are timed alone.

    Args:
        operations: each timed once, however often it is given.
        runtime: ``eager``, ``channels_last`` or ``onnxruntime``, whose own clock is read: layouts are not changed
            between its operations inside a network, and so that change is not counted.
        batch: inputs that pass at once.
        runs: of each in a round, after ``WARM_UP`` that do not count; of slow ones as few as `FEWEST`.

    Raises:
        ValueError: ``runtime`` is unknown, or one that cannot be timed by operation.
    """
    check_choice("runtime", runtime, RUNTIMES)
    wanted = list(dict.fromkeys(operations))
    if not wanted:
        return {}
    orders = [random.Random(number).sample(wanted, len(wanted)) for number in range(ROUNDS)]
    parts = [(number, part) for number, order in enumerate(orders) for part in _parts(order, batch)]
    places = {operation: place for place, operation in enumerate(wanted)}
    found = np.zeros((ROUNDS, len(wanted)))
    labels = np.zeros((ROUNDS, len(wanted)), dtype=np.int64)
    label = f"timing {len(wanted):,} operations in {RUNTIME_NAMES[runtime]}"
    cost = _profiling_cost() if runtime == "onnxruntime" else 0.0
    for index, (number, part) in enumerate(track(parts, label, unit="part")):
        seconds = (
            _onnx_seconds(part, batch, runs) if runtime == "onnxruntime" else _seconds(part, runtime, batch, runs)
        )
        own = [places[operation] for operation in part]
        found[number, own] = np.median(seconds[WARM_UP:], axis=0).clip(min=SHORTEST)
        labels[number, own] = index
    medians = (without_drift(found, labels) - cost).clip(min=SHORTEST)
    return dict(zip(wanted, medians.tolist(), strict=True))


def without_drift(seconds: Floats, parts: NDArray[np.int64]) -> Floats:
    """Median seconds of each operation as if all had been timed at one speed of the machine, ``(operations,)``.

    Args:
        seconds: of each operation in each round, ``(rounds, operations)``.
        parts: what was timed together, a number for each of ``seconds``. All of a part is taken to be as much faster
            or slower than in other rounds, which is told by the operations that were in other company then; what is
            alone in its parts has the median of its rounds.
    """
    logs = np.log(seconds)
    speeds = np.zeros(parts.max() + 1)
    numbers = np.arange(len(speeds))
    for _ in range(POLISHING):
        own = np.median(logs - speeds[parts], axis=0)
        speeds = ndimage.median(logs - own, parts, numbers)
        speeds -= np.median(speeds[parts])
    return np.exp(np.median(logs - speeds[parts], axis=0))


def _parts(operations: Sequence[Operation], batch: int) -> Iterator[list[Operation]]:
    """The operations cut into parts of at most `PART_BYTES`, or of one, so that little memory is taken."""
    part: list[Operation] = []
    size = 0
    for operation in operations:
        (inputs, outputs), area = operation.channels, operation.before[0] * operation.before[1]
        kernel = operation.kernel[0] * operation.kernel[1]
        own = 4 * (inputs * outputs * kernel // operation.groups + batch * inputs * area)
        if part and size + own > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(operation)
        size += own
    if part:
        yield part


def _module(operation: Operation) -> nn.Module:
    inputs, outputs = operation.channels
    if operation.linear:
        return nn.Linear(inputs, outputs)
    shared: dict[str, Any] = {
        "stride": operation.stride,
        "padding": operation.padding,
        "groups": operation.groups,
    }
    if operation.transposed:
        return nn.ConvTranspose2d(
            inputs, outputs, operation.kernel, output_padding=_output_padding(operation), **shared
        )
    return nn.Conv2d(inputs, outputs, operation.kernel, **shared)


def _output_padding(operation: Operation) -> tuple[int, int]:
    """What a transposed convolution lacks to reach its output's size, as far as one may have it (below the stride)."""
    axes = zip(operation.after, operation.before, operation.stride, operation.padding, operation.kernel, strict=True)
    lacking = [(after - ((before - 1) * step - 2 * pad + k), step) for after, before, step, pad, k in axes]
    first, second = (min(max(0, missing), step - 1) for missing, step in lacking)
    return first, second


def _input_shape(operation: Operation, batch: int) -> tuple[int, ...]:
    inputs, (height, width) = operation.channels[0], operation.before
    return (batch * height, inputs) if operation.linear else (batch, inputs, height, width)


def _seconds(operations: Sequence[Operation], runtime: str, batch: int, runs: int) -> np.ndarray:
    """Seconds in PyTorch, ``(runs, operations)``, those of the warm-up first."""
    modules = [_module(operation).eval() for operation in operations]
    inputs = [torch.randn(_input_shape(operation, batch)) for operation in operations]
    if runtime == "channels_last":
        modules = [module.to(memory_format=torch.channels_last) for module in modules]  # type: ignore[call-overload]
        inputs = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    seconds: list[list[float]] = [[] for _ in operations]

    def run() -> None:
        for own, module, x in zip(seconds, modules, inputs, strict=True):
            x.abs_()  # written by what came before
            start = time.perf_counter()
            module(x)
            own.append(time.perf_counter() - start)

    with torch.inference_mode():
        _repeat(run, runs)
    return np.array(seconds).T


def _repeat(run: Callable[[], object], runs: int) -> None:
    """Run ``WARM_UP`` times and then ``runs`` times, or fewer when that takes long."""
    for _ in range(WARM_UP):
        run()
    start = time.perf_counter()
    for done in range(runs):
        if done >= FEWEST and time.perf_counter() - start > PART_S:
            break
        run()


def _onnx_seconds(operations: Sequence[Operation], batch: int, runs: int) -> np.ndarray:
    """Seconds of the operators alone, by the profile of one session, ``(runs, operations)``, the warm-up's first."""
    feeds = {
        f"in{place}": np.ones(_input_shape(operation, batch), dtype=np.float32)
        for place, operation in enumerate(operations)
    }
    seconds = _profiled(_onnx_model(operations, batch), feeds, runs)
    for place, operation in enumerate(operations):
        if place not in seconds:
            raise RuntimeError(f"ONNX Runtime's profile does not name {operation}, which it ran")
    return np.array([seconds[place] for place in range(len(operations))]).T


def _profiled(model: bytes, feeds: dict[str, np.ndarray], runs: int) -> dict[int, list[float]]:
    """Seconds of each run of the operators that are named ``op0``, ``op1``, ..."""
    import onnxruntime

    from common.deploy.onnx_files import session_options

    seconds: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        _repeat(partial(session.run, None, feeds), runs)
        events = json.loads(Path(session.end_profiling()).read_text())
    for event in events:
        match = re.fullmatch(r"op(\d+)(_nchwc)?_kernel_time", event["name"])
        if match:
            seconds.setdefault(int(match[1]), []).append(event["dur"] * 1e-6)
    return seconds


def _profiling_cost() -> float:
    """Seconds that the profile adds to an operator: what it says of the smallest, less what they really take."""
    import onnxruntime
    from onnx import TensorProto, helper

    from common.deploy.onnx_files import session_options

    weight = helper.make_tensor(
        "weight", TensorProto.FLOAT, (16, 16), np.zeros((16, 16), np.float32).tobytes(), raw=True
    )
    nodes = [
        helper.make_node("MatMul", [f"op{place - 1}" if place else "in0", "weight"], [f"op{place}"], name=f"op{place}")
        for place in range(CHAIN)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 16)) for name in ("in0", f"op{CHAIN - 1}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [weight])
    model = _serialized(graph)
    feeds = {"in0": np.zeros((1, 16), np.float32)}
    said = np.median(list(_profiled(model, feeds, CHAIN).values()))
    session = onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
    walls = []
    for _ in range(CHAIN):
        start = time.perf_counter()
        session.run(None, feeds)
        walls.append(time.perf_counter() - start)
    return max(0.0, float(said) - float(np.median(walls)) / CHAIN)


def _onnx_model(operations: Sequence[Operation], batch: int) -> bytes:
    """A file in which each operation has an input of its own, and its output is averaged at once to be small."""
    from onnx import TensorProto, helper

    nodes, inputs, outputs, weights = [], [], [], []
    size: tuple[int, ...]
    settings: dict[str, Any]
    reduced: tuple[int, ...]
    for place, operation in enumerate(operations):
        own_in, own_out = operation.channels
        shape = _input_shape(operation, batch)
        names = [f"in{place}", f"weight{place}", f"bias{place}"]
        if operation.linear:
            size = (own_out, own_in)
            kind, settings, reduced = "Gemm", {"transB": 1}, (shape[0], own_out)
        else:
            first, second = (own_in, own_out) if operation.transposed else (own_out, own_in)
            size = (first, second // operation.groups, *operation.kernel)
            kind, reduced = ("ConvTranspose" if operation.transposed else "Conv"), (batch, own_out, 1, 1)
            settings = {"kernel_shape": operation.kernel, "strides": operation.stride, "group": operation.groups}
            settings["pads"] = operation.padding * 2
            if operation.transposed:
                settings["output_padding"] = _output_padding(operation)
        for name, values in ((names[1], np.zeros(size, np.float32)), (names[2], np.zeros(own_out, np.float32))):
            weights.append(helper.make_tensor(name, TensorProto.FLOAT, values.shape, values.tobytes(), raw=True))
        nodes.append(helper.make_node(kind, names, [f"op{place}"], name=f"op{place}", **settings))
        if operation.linear:
            nodes.append(helper.make_node("Identity", [f"op{place}"], [f"out{place}"]))
        else:
            nodes.append(helper.make_node("GlobalAveragePool", [f"op{place}"], [f"out{place}"]))
        inputs.append(helper.make_tensor_value_info(f"in{place}", TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"out{place}", TensorProto.FLOAT, reduced))
    graph = helper.make_graph(nodes, "operations", inputs, outputs, weights)
    return _serialized(graph)


def _serialized(graph: Any) -> bytes:
    from onnx import helper

    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
