"""What a network costs: parameters, multiply-accumulates, bytes, and time on the clock."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from common.modes import evaluating


@dataclass(frozen=True)
class LayerProfile:
    """One leaf module: its own parameters, and its MACs for one input."""

    params: int
    macs: int


@dataclass(frozen=True)
class Profile:
    """Cost of a network.

    Attributes:
        params: every parameter, biases and BatchNorm included.
        macs: multiply-accumulates of one input in convolutions and matrix products; one counts as one.
        size_bytes: bytes of the network's safetensors file.
        layers: leaf module -> its share, for the modules that have parameters.
    """

    params: int
    macs: int
    size_bytes: int
    layers: dict[str, LayerProfile] = field(default_factory=dict, repr=False)


def profile(model: nn.Module, x: Tensor) -> Profile:
    """Count what one pass of ``x`` costs, an input of the batch.

    Args:
        model: left as it was.
        x: example input ``(N, C, H, W)``; MACs are divided by N.
    """
    with evaluating(model), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(model).__name__
    layers = {
        name: LayerProfile(
            sum(parameter.numel() for parameter in module.parameters()),
            flops.get(f"{root}.{name}", 0) // 2 // len(x),
        )
        for name, module in model.named_modules()
        if not list(module.children()) and list(module.parameters())
    }
    return Profile(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counter.get_total_flops() // 2 // len(x),
        size_bytes=len(safetensors.torch.save(distinct_tensors(model))),
        layers=layers,
    )


def distinct_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``model.state_dict()``, contiguous; one that stands under several names comes once, by the first.

    A module that is used twice has its tensors under both names, and a safetensors file refuses shared memory.
    """
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), name)
    state = model.state_dict()
    return {name: state[name].contiguous() for name in first.values()}


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of a batch, over repeated runs.

    Attributes:
        median_s: seconds.
        iqr_s: interquartile range in seconds.
        speedup: median of the baseline over this median; None when there was no baseline.
        baseline_median_s: the baseline's seconds, measured in turn with this network.
        runtime, threads, batch_size, memory_format: the conditions.
    """

    median_s: float
    iqr_s: float
    speedup: float | None
    baseline_median_s: float | None
    runtime: str
    threads: int
    batch_size: int
    memory_format: str

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values for a trial record."""
        return asdict(self)


def measure_latency(
    model: nn.Module, x: Tensor, *, baseline: nn.Module | None = None, rounds: int = 15, round_s: float = 0.02
) -> Latency:
    """Median time of a forward pass in eager PyTorch (``torch.utils.benchmark``), data loading excluded.

    Args:
        model: the network to time; it is put in evaluation mode while timed.
        x: the batch, on the model's device.
        baseline: a network timed in turn with it, round by round, so that a machine whose speed drifts does not
            favour either.
        rounds: how many times each is timed; at least 3.
        round_s: least seconds of one timing; as many passes as that takes are averaged.

    Raises:
        ValueError: ``rounds`` is below 3.
    """
    if rounds < 3:
        raise ValueError(f"rounds={rounds}: it must be at least 3, for quartiles")
    networks = [model] if baseline is None else [model, baseline]
    threads = torch.get_num_threads()
    times: list[list[float]] = [[] for _ in networks]
    with evaluating(*networks), torch.inference_mode():
        timers = [
            Timer("network(x)", globals={"network": network, "x": x}, num_threads=threads) for network in networks
        ]
        passes = [max(1, round(round_s / timer.timeit(2).median)) for timer in timers]  # also the warm-up
        for _ in range(rounds):
            for series, timer, count in zip(times, timers, passes, strict=True):
                series.append(timer.timeit(count).median)
    median = statistics.median(times[0])
    low, _, high = statistics.quantiles(times[0], n=4)
    dense = statistics.median(times[1]) if baseline is not None else None
    return Latency(
        median_s=median,
        iqr_s=high - low,
        speedup=dense / median if dense is not None else None,
        baseline_median_s=dense,
        runtime="PyTorch eager",
        threads=threads,
        batch_size=len(x),
        memory_format="channels_last" if x.is_contiguous(memory_format=torch.channels_last) else "contiguous",
    )
