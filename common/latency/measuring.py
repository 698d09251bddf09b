"""Time on the clock: networks timed in turn, in eager PyTorch, compiled, or in ONNX Runtime."""

from __future__ import annotations

import ctypes
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from common.network.copies import independent_copy
from common.network.modes import evaluating
from common.validation import check_choice

RUNTIMES = {
    "eager": "PyTorch eager",
    "channels_last": "PyTorch channels_last",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
}
"""In what a network can be timed, and how that is called in a record."""
MAX_SPREAD = 0.25
"""A speedup is reported when the middle half of the rounds' own ratios spans at most this share of their median."""


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of a batch, over repeated runs.

    Attributes:
        median_s: seconds.
        iqr_s: interquartile range in seconds.
        speedup: median of the baseline over this median; None when there was no baseline, or when the rounds differ
            too much for it to mean anything (see ``note``).
        baseline_median_s: the baseline's seconds, measured in turn with this network.
        runtime, threads, batch_size, memory_format: the conditions.
        baseline_iqr_s: interquartile range in seconds.
        spread: interquartile range of the ratios that each round gives by itself, over their median.
        peak_bytes: the most memory that a pass took on top of what was there before it (weights are): on a CPU by the
            process's resident memory, on a GPU by PyTorch's allocator; None where the system does not tell.
        baseline_peak_bytes: the same of the baseline.
        note: why there is no speedup though there is a baseline; empty otherwise.
    """

    median_s: float
    iqr_s: float
    speedup: float | None
    baseline_median_s: float | None
    runtime: str
    threads: int
    batch_size: int
    memory_format: str
    baseline_iqr_s: float | None = None
    spread: float | None = None
    peak_bytes: int | None = None
    baseline_peak_bytes: int | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values for a trial record."""
        return asdict(self)


def measure_latency(
    model: nn.Module,
    x: Tensor,
    *,
    baseline: nn.Module | None = None,
    runtime: str = "eager",
    rounds: int = 15,
    round_s: float = 0.02,
) -> Latency:
    """Median time of a forward pass (``torch.utils.benchmark``), data loading excluded.

    Args:
        model: the network to time; left as it was, in evaluation mode while timed.
        x: the batch, on the model's device.
        baseline: a network timed in turn with it, round by round, so that a machine whose speed drifts does not
            favour either.
        runtime: ``eager`` (the network and ``x`` as they are), ``channels_last``, ``compile`` (``torch.compile`` with
            the weights frozen; what was compiled before is forgotten) or ``onnxruntime`` (exported with BatchNorm
            folded and factors merged).
        rounds: how many times each is timed; at least 3.
        round_s: least seconds of one timing; as many passes as that takes are averaged.

    Raises:
        ValueError: ``runtime`` is unknown, ``rounds`` is below 3, ``channels_last`` gets an ``x`` of other than four
            axes, or ``onnxruntime`` a network or an ``x`` that :func:`common.deploy.export_onnx` does not take, such
            as one that returns more than one tensor.
        RuntimeError: ``compile`` without a C++ compiler, or ``onnxruntime`` with a network that cannot be exported.
    """
    return measure_latencies([model], x, baseline=baseline, runtime=runtime, rounds=rounds, round_s=round_s)[0]


def measure_latencies(
    models: Sequence[nn.Module],
    x: Tensor,
    *,
    baseline: nn.Module | None = None,
    runtime: str = "eager",
    rounds: int = 15,
    round_s: float = 0.02,
) -> list[Latency]:
    """:func:`measure_latency` of several networks that all take turns with one baseline, which is prepared once."""
    check_choice("runtime", runtime, RUNTIMES)
    if rounds < 3:
        raise ValueError(f"rounds={rounds}: it must be at least 3, for quartiles")
    if runtime == "channels_last" and x.dim() != 4:
        raise ValueError(f"runtime='channels_last': x has shape {tuple(x.shape)}; it takes (N, C, H, W)")
    networks = [*models] if baseline is None else [*models, baseline]
    threads = torch.get_num_threads()
    times: list[list[float]] = [[] for _ in networks]
    if runtime == "onnxruntime":
        x = _exportable_input(networks, x)
    settings = _compiler_settings(networks) if runtime == "compile" else nullcontext()
    with evaluating(*networks), settings:
        passes = [forward_pass(network, x, runtime) for network in networks]
        with _no_gradients(runtime):
            peaks = [_peak_bytes(run, x.device) for run in passes]
            timers = [Timer("run()", globals={"run": run}, num_threads=threads) for run in passes]
            repeats = [max(1, round(round_s / timer.timeit(2).median)) for timer in timers]  # also the warm-up
            for _ in range(rounds):
                for series, timer, count in zip(times, timers, repeats, strict=True):
                    series.append(timer.timeit(count).median)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()  # of one channel it is both
    blocked = runtime == "channels_last" or (runtime != "onnxruntime" and last)
    conditions: dict[str, Any] = {
        "runtime": RUNTIMES[runtime],
        "threads": threads,
        "batch_size": len(x),
        "memory_format": "channels_last" if blocked else "contiguous",
    }
    dense = (times[-1], peaks[-1]) if baseline is not None else (None, None)
    return [
        Latency(
            **_compare(times[index], dense[0]), peak_bytes=peaks[index], baseline_peak_bytes=dense[1], **conditions
        )
        for index in range(len(models))
    ]


def forward_pass(model: nn.Module, x: Tensor, runtime: str) -> Callable[[], object]:
    """What runs ``x`` through ``model`` (in evaluation mode) in a runtime; to be called without gradients."""
    if runtime == "onnxruntime":
        return _onnx_pass(model, x)
    network: Callable[[Tensor], object] = model
    with warnings.catch_warnings(), _no_gradients(runtime):
        if runtime == "channels_last":
            network = independent_copy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            x = x.contiguous(memory_format=torch.channels_last)
        elif runtime == "compile":
            warnings.simplefilter("ignore")  # the compiler's own, about itself
            network = torch.compile(model, dynamic=False, options={"freezing": True})  # it is timed on one shape
        network(
            x
        )  # what is made once is made before memory is measured; ONNX Runtime's memory is made in its first run
    return partial(network, x)


def _no_gradients(runtime: str) -> AbstractContextManager[None]:
    """Dynamo cannot guard the arrays that some layers hold (TensorLy-Torch's) in inference mode."""
    return torch.no_grad() if runtime == "compile" else torch.inference_mode()


def _exportable_input(networks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """``x`` as a batch; before any network is exported, which takes seconds, all are looked at.

    Raises:
        ValueError: one of them cannot be exported.
    """
    from common.deploy.exportable import exportable  # seconds to import

    batches = [exportable(network, x)[1] for network in networks]
    return x.reshape(batches[0].shape)


def _onnx_pass(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Inputs and outputs stay on their device, so that no copy is timed."""
    from common.deploy.onnx_files import INPUT, OUTPUT, export_onnx, onnx_session  # seconds to import

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
        return x  # which the binding points into

    return run


def check_runtime(runtime: str, device: torch.device) -> None:
    """Do nothing where networks on ``device`` can be timed in this runtime.

    Raises:
        ValueError: there is no such runtime, or ``onnxruntime`` cannot use the GPU.
        RuntimeError: ``compile`` without a C++ compiler.
    """
    check_choice("runtime", runtime, RUNTIMES)
    if runtime == "compile":
        _check_compiler()
    elif runtime == "onnxruntime":
        from common.deploy.onnx_files import check_provider  # seconds to import

        check_provider(device)


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            "runtime='compile': torch.compile needs a C++ compiler and finds none; install g++ or name one in CXX"
        ) from error


def _compiler_settings(networks: Sequence[nn.Module]) -> Any:
    """Settings under which every network is compiled, also when all are of one class, or fails.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    from torch._dynamo import config

    _check_compiler()
    torch.compiler.reset()
    return config.patch(recompile_limit=8 * len(networks), fail_on_recompile_limit_hit=True)


def _compare(times: Sequence[float], dense: Sequence[float] | None) -> dict[str, Any]:
    """The figures of one network from its seconds in each round and the baseline's."""
    median, iqr = _middle(times)
    if dense is None:
        return {"median_s": median, "iqr_s": iqr, "speedup": None, "baseline_median_s": None}
    dense_median, dense_iqr = _middle(dense)
    ratio, ratio_iqr = _middle([whole / part for whole, part in zip(dense, times, strict=True)])
    spread = ratio_iqr / ratio
    note = ""
    if spread > MAX_SPREAD:
        note = (
            f"no speedup: in {len(times)} rounds the middle half of the ratios spans {spread:.0%} of their median "
            f"{ratio:.2f}, over {MAX_SPREAD:.0%}; time again on a quiet machine, or with more or longer rounds"
        )
    return {
        "median_s": median,
        "iqr_s": iqr,
        "speedup": None if note else dense_median / median,
        "baseline_median_s": dense_median,
        "baseline_iqr_s": dense_iqr,
        "spread": spread,
        "note": note,
    }


def _middle(values: Sequence[float]) -> tuple[float, float]:
    """Median and interquartile range."""
    low, _, high = statistics.quantiles(values, n=4)
    return statistics.median(values), high - low


def _peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """What the first pass takes at most; memory that was freed before is handed back first, so that it counts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size is that of now
        before = _resident_bytes("VmRSS")
        run()
        return max(0, _resident_bytes("VmHWM") - before)
    except (OSError, AttributeError, TypeError):  # not Linux, or not its C library
        return None


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
