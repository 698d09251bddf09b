"""Networks timed in turn, in any runtime."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from common.display import Display, Displayed, duration
from common.latency.runtimes import RUNTIMES, OnnxRuntime, Runtime
from common.network.inputs import for_one_pass
from common.network.modes import evaluating
from common.network.passes import check_input
from common.validation import is_whole

MAX_SPREAD = 0.25
"""A speedup is reported if the middle half of the rounds' ratios spans at most this share of their median."""


@dataclass(frozen=True)
class Latency(Displayed):
    """Time of one forward pass of a batch, over repeated runs.

    Attributes:
        median_s: seconds.
        iqr_s: interquartile range in seconds.
        speedup: median of the baseline over this median; None without a baseline, or if the rounds differ too much for
            it to mean anything (see ``note``).
        baseline_median_s: the baseline's seconds, measured in turn with this network.
        runtime: title of the runtime.
        threads, batch_size, memory_format: the other conditions.
        baseline_iqr_s: the baseline's interquartile range in seconds.
        spread: interquartile range of the rounds' own ratios, over their median.
        peak_bytes: the most memory that a pass took beyond what was held before it (such as weights): on a CPU by the
            process's resident memory, on a GPU by PyTorch's allocator; None if the system does not say.
        baseline_peak_bytes: the baseline's.
        note: why there is no speedup although there is a baseline; empty otherwise.
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

    def display(self) -> Display:
        """The times with half of their interquartile range, peak memory, and the conditions."""
        timed = [("network", self.median_s, self.iqr_s, self.peak_bytes)]
        if self.baseline_median_s is not None:
            timed.append(("baseline", self.baseline_median_s, self.baseline_iqr_s or 0.0, self.baseline_peak_bytes))
        rows = [
            (name, duration(median, iqr / 2), "-" if peak is None else f"{peak / 1e6:.1f} MB")
            for name, median, iqr, peak in timed
        ]
        title = f"{rows[0][1]} for a pass" + (f", {self.speedup:.2f}x as fast as the baseline" if self.speedup else "")
        images = f"{self.batch_size} input{'s' if self.batch_size > 1 else ''}"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        conditions = ", ".join((self.runtime, images, threads, self.memory_format))
        notes = [f"Median ± half of the interquartile range; {conditions}.", self.note]
        return Display(title, ("", "time", "peak memory"), rows, notes=[note for note in notes if note])

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
        model: the network to time. It is in evaluation mode during the timing, and stays unchanged.
        x: the batch, on the model's device.
        baseline: a network that is timed in turn with it, round by round, so a drift of the machine's speed favours
            neither.
        runtime: name of one of ``common.latency.RUNTIMES``.
        rounds: how many times each is timed; at least 3.
        round_s: least seconds of one timing, which averages as many passes as fit.

    Raises:
        ValueError: ``runtime`` is unknown or does not take the networks, ``x`` or its device; a network does not take
            ``x``; ``rounds`` is below 3.
        RuntimeError: the runtime lacks something on this machine, such as a compiler, or a network cannot be prepared
            for it.
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
    chosen = RUNTIMES[runtime]
    check_rounds(rounds)
    if not isinstance(x, Tensor) or not x.numel():
        given = f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
        raise ValueError(f"x {given}: it holds nothing to time a pass on; it must be a batch (N, C, H, W)")
    chosen.check(x.device)
    networks = [*models] if baseline is None else [*models, baseline]
    x = for_one_pass(chosen.accept(networks, x))
    with evaluating(*networks), chosen.serving(networks):
        try:
            passes = [chosen.prepare(network, x) for network in networks]
            return _in_turn(chosen, passes, x, baseline is not None, (rounds, round_s))
        except Exception:
            check_input(networks, x)
            raise


def measure_files(
    files: Sequence[str | Path], x: Tensor, *, baseline: str | Path, rounds: int = 15, round_s: float = 0.02
) -> list[Latency]:
    """:func:`measure_latencies` of ONNX files in ONNX Runtime, whatever their precision.

    Args:
        files: from :func:`common.deploy.export_onnx`.
        x: the batch, on the processor.
        baseline: the file that takes turns with them.
        rounds: as in :func:`measure_latency`.
        round_s: as in :func:`measure_latency`.
    """
    check_rounds(rounds)
    chosen = OnnxRuntime()
    passes = [chosen.file_pass(Path(file), x) for file in (*files, baseline)]
    return _in_turn(chosen, passes, x, True, (rounds, round_s))


def check_rounds(rounds: int) -> None:
    """Raise a ValueError if there are too few rounds for quartiles."""
    if not (is_whole(rounds) and rounds >= 3):
        raise ValueError(f"rounds={rounds!r}: it must be a whole number of at least 3, for quartiles")


def _in_turn(
    chosen: Runtime, passes: Sequence[Callable[[], object]], x: Tensor, has_baseline: bool, effort: tuple[int, float]
) -> list[Latency]:
    """Time passes in turn; the last may be the baseline of the others. ``effort`` is the rounds and their seconds."""
    threads, (rounds, round_s) = torch.get_num_threads(), effort
    times: list[list[float]] = [[] for _ in passes]
    with chosen.passing():
        peaks = [_peak_bytes(run, x.device) for run in passes]
        timers = [Timer("run()", globals={"run": run}, num_threads=threads) for run in passes]
        repeats = [max(1, round(round_s / timer.timeit(2).median)) for timer in timers]  # also the warm-up
        for _ in range(rounds):
            for series, timer, count in zip(times, timers, repeats, strict=True):
                series.append(timer.timeit(count).median)
    conditions: dict[str, Any] = {
        "runtime": chosen.title,
        "threads": threads,
        "batch_size": len(x),
        "memory_format": chosen.memory_format(x),
    }
    dense = (times[-1], peaks[-1]) if has_baseline else (None, None)
    return [
        Latency(
            **_compare(times[index], dense[0]), peak_bytes=peaks[index], baseline_peak_bytes=dense[1], **conditions
        )
        for index in range(len(passes) - has_baseline)
    ]


def _compare(times: Sequence[float], dense: Sequence[float] | None) -> dict[str, Any]:
    """Figures of one network, from its seconds in each round and the baseline's."""
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
    """Peak memory of the first pass. Memory that was freed before is returned first, so that it counts again."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # reset the highest resident size to the present one
        before = _resident_bytes("VmRSS")
        run()
        return max(0, _resident_bytes("VmHWM") - before)
    except (OSError, AttributeError, TypeError):  # not Linux, or not its C library
        return None


def _resident_bytes(field: str) -> int:
    """A field of this process's status, such as ``VmRSS``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
