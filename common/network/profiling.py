"""``profile``: count a network's parameters, multiply-accumulates (MACs) and bytes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import safetensors.torch
from torch import Tensor, nn

from common.display import Display, Displayed, count, share
from common.network.counting import count_operations
from common.network.passes import example_batch
from common.network.state import distinct_tensors


@dataclass(frozen=True)
class LayerProfile:
    """Cost of one leaf module: its parameters, and its MACs for one input."""

    params: int
    macs: int


@dataclass(frozen=True)
class Profile(Displayed):
    """Cost of a network.

    Attributes:
        params: number of parameters, including biases and BatchNorm.
        macs: multiply-accumulates of convolutions and matrix products for one input. A multiply-accumulate counts
            as one.
        size_bytes: size of a safetensors file with the network's tensors. ``save_compressed`` adds a few bytes for
            the plan.
        layers: leaf module with parameters -> its cost.
        params_in_use: number of parameters that a pass in evaluation mode reads. Budgets are fractions of this.
        uncounted: operator with unknown MACs -> number of times that a pass runs it.
    """

    params: int
    macs: int
    size_bytes: int
    layers: dict[str, LayerProfile] = field(default_factory=dict, repr=False)
    params_in_use: int = 0
    uncounted: dict[str, int] = field(default_factory=dict)

    def display(self) -> Display:
        """The layers with multiply-accumulates, the rest in one row, and the total."""
        counted = {name: layer for name, layer in self.layers.items() if layer.macs}
        params, macs = self.params, self.macs
        costs = [(name, layer.params, layer.macs) for name, layer in counted.items()]
        rest = params - sum(cost[1] for cost in costs), macs - sum(cost[2] for cost in costs)
        if any(rest):
            costs.append((f"{len(self.layers) - len(counted)} others", *rest))
        rows = [(name, count(own), share(own, params), count(made), share(made, macs)) for name, own, made in costs]
        title = f"{count(params)} parameters, {count(macs)} MACs, {self.size_bytes / 1e6:.2f} MB"
        headings = ("layer", "parameters", "share", "MACs", "share of MACs")
        notes = [f"{operator}, run {times} times, is not counted" for operator, times in self.uncounted.items()]
        return Display(title, headings, rows, ("total", count(params), "", count(macs), ""), notes)


def profile(model: nn.Module, x: Tensor) -> Profile:
    """Count the cost of a network for one input of the batch ``x``.

    Args:
        model: the network to count. It stays unchanged.
        x: example input ``(N, C, H, W)``. The MACs are divided by N.

    Warns:
        UserWarning: the pass runs operators with unknown MACs. The warning and the result name them.

    Raises:
        ValueError: the network does not accept ``x``.
    """
    found = count_operations(model, example_batch(x, model))
    if found.uncounted:
        named = ", ".join(f"{operator} ({count} times)" for operator, count in found.uncounted.items())
        warnings.warn(f"the MACs of these operators are unknown and not counted: {named}", stacklevel=2)
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
