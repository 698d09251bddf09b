"""What a network costs: parameters, multiply-accumulates, bytes; its time on the clock is measured next door."""

from __future__ import annotations

from dataclasses import dataclass, field

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.latency import Latency, measure_latency
from common.modes import evaluating

__all__ = ["Latency", "LayerProfile", "Profile", "distinct_tensors", "measure_latency", "profile"]


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
        size_bytes: of a safetensors file with its tensors; ``save_compressed`` adds a few for the plan.
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
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention in one operation, which the counter does not know
    try:
        plain = sdpa_kernel(SDPBackend.MATH)
        with evaluating(model), plain, FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    root = type(model).__name__
    flops: dict[int, int] = {}
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    for name, module in model.named_modules(remove_duplicate=False):  # a module of two names is counted under one
        flops[id(module)] = flops.get(id(module), 0) + counts.get(f"{root}.{name}" if name else root, 0)
    layers = {
        name: LayerProfile(
            sum(parameter.numel() for parameter in module.parameters()),
            flops[id(module)] // 2 // len(x),
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

    A module that is used twice has its tensors under both names, and a safetensors file refuses shared memory. Two
    tensors that are views of one memory are two, the second a copy.
    """
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), name)
    state, seen = model.state_dict(), set()
    found: dict[str, Tensor] = {}
    for name in first.values():
        place = state[name].untyped_storage().data_ptr()
        found[name] = (
            state[name].clone(memory_format=torch.contiguous_format) if place in seen else state[name].contiguous()
        )
        seen.add(place)
    return found
