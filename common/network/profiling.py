"""What a network costs: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import safetensors.torch
from torch import Tensor, nn

from common.network.counting import count_operations
from common.network.passes import example_batch
from common.network.state import distinct_tensors


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
        params_in_use: those that a pass in evaluation mode reads; a budget is a fraction of these.
        uncounted: operators whose MACs are not known -> how often a pass runs them.
    """

    params: int
    macs: int
    size_bytes: int
    layers: dict[str, LayerProfile] = field(default_factory=dict, repr=False)
    params_in_use: int = 0
    uncounted: dict[str, int] = field(default_factory=dict)


def profile(model: nn.Module, x: Tensor) -> Profile:
    """Count what one pass of ``x`` costs, an input of the batch.

    What multiplies and cannot be counted is named in a warning and in the result.

    Args:
        model: left as it was.
        x: example input ``(N, C, H, W)``; MACs are divided by N.

    Raises:
        ValueError: the network does not take ``x``.
    """
    found = count_operations(model, example_batch(x, model))
    if found.uncounted:
        named = ", ".join(f"{operator} ({count} times)" for operator, count in found.uncounted.items())
        warnings.warn(f"the MACs of these operators are not known and not counted: {named}", stacklevel=2)
    return Profile(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=found.macs,
        size_bytes=len(safetensors.torch.save(distinct_tensors(model))),
        layers={
            name: LayerProfile(sum(parameter.numel() for parameter in module.parameters()), found.by_module[name])
            for name, module in model.named_modules()
            if not list(module.children()) and list(module.parameters())
        },
        params_in_use=sum(p.numel() for name, p in model.named_parameters() if name in found.used),
        uncounted=found.uncounted,
    )
