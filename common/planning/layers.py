"""The layers of a network that a decomposition can replace: their shapes, their costs, their decompositions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.decomposition import DECOMPOSITIONS, Decomposition, Ranks

FactorableLayer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class LayerShape:
    """All that the cost of a layer depends on.

    Attributes:
        channels: ``(in, out)``.
        kernel: ``(kh, kw)``; ``(1, 1)`` for a Linear.
        groups: as in ``Conv2d``.
        bias: whether the layer has one.
        calls: ``(input size, output size)`` of every time one input passes the layer, sizes as ``(h, w)``.
            A Linear's positions, 1 for a plain one, stand as ``(positions, 1)``.
    """

    channels: tuple[int, int]
    kernel: tuple[int, int]
    groups: int
    bias: bool
    calls: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    @property
    def dense_cost(self) -> tuple[int, int]:
        """Parameters and MACs of the layer as it is."""
        weight = self.channels[1] * (self.channels[0] // self.groups) * math.prod(self.kernel)
        params = weight + self.bias * self.channels[1]
        return params, sum(weight * math.prod(output) for _, output in self.calls)

    def cost(self, method: str, ranks: Ranks) -> tuple[int, int]:
        """Parameters and MACs of the layer's factors; one multiply-accumulate counts as one, a bias as none."""
        (inputs, outputs), (height, width), groups = self.channels, self.kernel, self.groups
        inner = inputs // groups
        # One entry a factor: its weights, and which rows and columns it runs over (0 the input's, 1 the output's).
        factors: list[tuple[int, int, int]]
        if method == "svd":
            (rank,) = ranks
            factors = [(groups * rank * inner * height * width, 1, 1), (outputs * rank, 1, 1)]
        elif method == "tucker2":
            r_in, r_out = ranks
            core = groups * r_out * r_in * height * width
            factors = [(inputs * r_in, 0, 0), (core, 1, 1), (outputs * r_out, 1, 1)]
        else:
            r_in, r_mid, r_out = ranks
            vertical, horizontal = groups * r_mid * r_in * height, groups * r_out * r_mid * width
            factors = [(inputs * r_in, 0, 0), (vertical, 1, 0), (horizontal, 1, 1), (outputs * r_out, 1, 1)]
        params = sum(weights for weights, _, _ in factors) + self.bias * outputs
        macs = sum(
            weights * call[rows][0] * call[columns][1] for call in self.calls for weights, rows, columns in factors
        )
        return params, macs


def trace_layers(model: nn.Module, x: Tensor) -> dict[str, LayerShape]:
    """Shapes of every Conv2d and Linear that ``x`` passes, by name, in the order of ``model.named_modules()``.

    Args:
        model: left as it was, its training mode included.
        x: example input ``(N, C, H, W)``.
    """
    calls: dict[str, list[tuple[tuple[int, int], tuple[int, int]]]] = {}

    def record(name: str, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            sizes = (tuple(inputs.shape[-2:]), tuple(output.shape[-2:]))
        else:
            positions = inputs.numel() // inputs.shape[-1] // x.shape[0]
            sizes = ((positions, 1), (positions, 1))
        calls.setdefault(name, []).append(sizes)  # type: ignore[arg-type]

    layers = {name: module for name, module in model.named_modules() if isinstance(module, FactorableLayer)}
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: record(name, m, i[0], o))
        for name, module in layers.items()
    ]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return {name: _shape(layer, tuple(calls[name])) for name, layer in layers.items() if name in calls}


def _shape(layer: FactorableLayer, calls: tuple[tuple[tuple[int, int], tuple[int, int]], ...]) -> LayerShape:
    if isinstance(layer, nn.Linear):
        return LayerShape((layer.in_features, layer.out_features), (1, 1), 1, layer.bias is not None, calls)
    height, width = layer.kernel_size
    channels = (layer.in_channels, layer.out_channels)
    return LayerShape(channels, (height, width), layer.groups, layer.bias is not None, calls)


def layer_method(method: str, shape: LayerShape) -> str:
    """The method that really serves a layer: a Linear or a 1x1 convolution has no kernel to split, so it takes SVD."""
    return "svd" if shape.kernel == (1, 1) else method


class Decompositions:
    """The decompositions of a network's layers, each made when it is first asked for and then kept.

    Hand one to :func:`common.planning.plan_ranks` and :func:`common.compression.compress` to decompose once and
    plan and compress many times. The weights must not change in between.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, FactorableLayer)}
        self._made: dict[tuple[str, str], Decomposition] = {}

    def get(self, name: str, method: str) -> Decomposition:
        """The decomposition of layer ``name`` by ``method``."""
        if (name, method) not in self._made:
            layer = self._layers[name]
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            self._made[name, method] = DECOMPOSITIONS[method](layer.weight, groups)
        return self._made[name, method]

    def spectra(self) -> dict[str, list[float]]:
        """Layer -> singular values of its weight unfolded along the output channels, descending."""
        return {name: self.get(name, "svd").spectrum.tolist() for name in self._layers}
