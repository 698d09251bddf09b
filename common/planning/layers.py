"""The layers of a network that a decomposition can replace: their shapes, their costs, their decompositions."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from common.choices import check_choice
from common.decomposition import DECOMPOSITIONS, Decomposition, Floats, LayerMoments, Ranks
from common.modes import evaluating, hooked
from common.planning.plan import LayerPlan, RankPlan

FactorableLayer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
PLAIN_FORWARDS = (nn.Conv2d.forward, nn.ConvTranspose2d.forward, nn.Linear.forward)
Size = tuple[int, int]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class LayerShape:
    """All that the cost of a layer depends on.

    Attributes:
        channels: ``(in, out)``.
        kernel: ``(kh, kw)``; ``(1, 1)`` for a Linear.
        groups: as in ``Conv2d``.
        bias: whether the layer has one.
        transposed: whether it is a transposed convolution.
        calls: ``(input size, output size)`` of every time one input passes the layer, sizes as ``(h, w)``.
            A Linear's positions, 1 for a plain one, stand as ``(positions, 1)``.
            Frames or patches that are folded into the batch stand as so many times the height; where inputs share a
            row (a mean over the batch), each has a fraction of it.
        linear: whether it is a Linear.
        reason: why it has to stay dense whatever the ranks; empty for one that need not.
    """

    channels: tuple[int, int]
    kernel: Size
    groups: int
    bias: bool
    transposed: bool
    calls: tuple[tuple[Size, Size], ...]
    linear: bool = False
    reason: str = ""

    @property
    def dense_cost(self) -> tuple[int, int]:
        """Parameters and MACs of the layer as it is."""
        return self._cost((), ((True, True),), self.bias)

    def cost(self, plan: LayerPlan) -> tuple[int, int]:
        """Parameters and MACs of what the plan makes of the layer; biases are parameters but no MACs."""
        if plan.method is None:
            return self.dense_cost
        return self._cost(plan.ranks, DECOMPOSITIONS[plan.method].axes, self.bias or plan.shift)

    def costs(self, method: str, ranks: Floats, shift: bool) -> tuple[Floats, Floats]:
        """Parameters and MACs of many ranks ``(K, modes)`` at once, ``(K,)`` each."""
        columns = tuple(ranks[:, mode] for mode in range(ranks.shape[1]))
        params, macs = self._cost(columns, DECOMPOSITIONS[method].axes, self.bias or shift)
        return params, macs

    def _cost(self, ranks: tuple[Any, ...], axes: tuple[tuple[bool, bool], ...], bias: bool) -> tuple[Any, Any]:
        widths = (self.channels[0], *(rank * self.groups for rank in ranks), self.channels[1])
        weights = [
            outputs
            * (inputs // self.groups)
            * math.prod(k for k, taken in zip(self.kernel, axis, strict=True) if taken)
            for (inputs, outputs), axis in zip(pairwise(widths), axes, strict=True)
        ]
        macs: Any = 0
        for before, after in self.calls:
            rows, columns = before
            for weight, (height, width) in zip(weights, axes, strict=True):
                old = rows * columns
                rows, columns = after[0] if height else rows, after[1] if width else columns
                # A transposed convolution multiplies once for each input position, any other for each output position.
                macs += weight * (old if self.transposed and (height or width) else rows * columns)
        return sum(weights) + bias * self.channels[1], macs


def trace_layers(model: nn.Module, x: Tensor) -> dict[str, LayerShape]:
    """Shapes of every layer that can be factored and that ``x`` passes, in the order of ``model.named_modules()``.

    Args:
        model: left as it was, its training mode included.
        x: example input ``(N, C, H, W)``.
    """
    calls: dict[str, list[tuple[Size, Size]]] = {}
    reasons = irreplaceable_layers(model)

    def record(name: str, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        inputs = layer_input(given, named)
        rows = max(1, inputs[..., 0].numel() if isinstance(module, nn.Linear) else inputs.shape[0])
        share: Any = rows / len(x) if rows % len(x) else rows // len(x)
        if len(given) + len(named) > 1:
            reasons.setdefault(name, "it is called with an output size, which its factors would not take")
        if isinstance(module, nn.Linear):
            sizes = ((share, 1), (share, 1))
        else:
            sizes = ((share * inputs.shape[-2], inputs.shape[-1]), (share * output.shape[-2], output.shape[-1]))
        calls.setdefault(name, []).append(sizes)

    layers = factorable_layers(model)
    handles = [
        module.register_forward_hook(lambda m, i, k, o, name=name: record(name, m, i, k, o), with_kwargs=True)
        for name, module in layers.items()
    ]
    with hooked(handles), evaluating(model), torch.no_grad():
        model(x)
    return {
        name: _shape(layer, tuple(calls[name]), reasons.get(name, ""))
        for name, layer in layers.items()
        if name in calls
    }


def layer_input(given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """What a layer was called with, as a hook sees it."""
    found: Tensor = given[0] if given else named["input"]
    return found


def irreplaceable_layers(model: nn.Module) -> dict[str, str]:
    """Layer -> why nothing can stand in for it: its weight is not its own, or its forward not PyTorch's."""
    owners: dict[Hashable, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(_memory(parameter), []).append(name)
    reasons: dict[str, str] = {}
    for name, layer in factorable_layers(model).items():
        others = [other for other in owners.get(_memory(layer.weight), []) if other != name]
        if type(layer).forward not in PLAIN_FORWARDS:
            reasons[name] = f"a {type(layer).__name__} computes something of its own"
        elif "weight" not in dict(layer.named_parameters(recurse=False)):
            reasons[name] = "its weight is computed from other parameters; remove the parametrization first"
        elif others:
            reasons[name] = f"it shares its weight with {', '.join(others)}"
    return reasons


def _memory(parameter: Tensor) -> Hashable:
    """What two parameters have in common when they are the same memory, seen in the same shape."""
    if type(parameter) is not nn.Parameter or parameter.is_meta:  # others, as lazy ones, may have no memory
        return id(parameter)
    return parameter.untyped_storage().data_ptr(), parameter.storage_offset(), parameter.shape, parameter.stride()


def factorable_layers(model: nn.Module) -> dict[str, FactorableLayer]:
    """The layers that a decomposition could replace, by name; a module that is used twice stands once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FactorableLayer)}


def _shape(layer: FactorableLayer, calls: tuple[tuple[Size, Size], ...], reason: str) -> LayerShape:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return LayerShape((layer.in_features, layer.out_features), (1, 1), 1, bias, False, calls, True, reason)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    height, width = layer.kernel_size
    channels = (layer.in_channels, layer.out_channels)
    return LayerShape(channels, (height, width), layer.groups, bias, transposed, calls, reason=reason)


def layer_method(method: str, shape: LayerShape) -> str:
    """The method that really serves a layer.

    A Linear or a 1x1 convolution has no kernel to split, so it takes SVD. A transposed convolution's kernel is not
    split between its axes: it takes Tucker-2 for ``htd`` and SVD for ``spatial_svd``.
    """
    if shape.kernel == (1, 1):
        return "svd"
    return {"htd": "tucker2", "spatial_svd": "svd"}.get(method, method) if shape.transposed else method


def dense_reason(shape: LayerShape) -> str:
    """Why a layer has to stay dense whatever the ranks; empty for one that need not."""
    if shape.reason:
        return shape.reason
    depthwise = shape.groups > 1 and shape.groups == shape.channels[0]
    return "a depthwise convolution has no channels to factor" if depthwise else ""


def convolution_weight(layer: FactorableLayer) -> Tensor:
    """The weight as that of a convolution, ``(O, I/groups, kh, kw)``, or ``(O, I)`` of a Linear."""
    return _swap_channels(layer.weight, layer.groups) if isinstance(layer, nn.ConvTranspose2d) else layer.weight


def set_convolution_weight(layer: FactorableLayer, weight: Tensor) -> None:
    """Write a weight that is laid out as :func:`convolution_weight` gives it."""
    layer.weight.copy_(_swap_channels(weight, layer.groups) if isinstance(layer, nn.ConvTranspose2d) else weight)


def _swap_channels(weight: Tensor, groups: int) -> Tensor:
    """``(O, I/groups, kh, kw)`` to ``(I, O/groups, kh, kw)`` or back."""
    split = weight.unflatten(0, (groups, -1))
    return split.transpose(1, 2).flatten(0, 1)


class Decompositions:
    """The decompositions of a network's layers, each made when it is first asked for and then kept.

    Hand one to :func:`common.planning.plan_ranks` and :func:`common.compression.compress` to decompose once and
    plan and compress many times. The weights must not change in between.

    Args:
        model: the dense network.
        moments: from :func:`common.calibration.calibrate`: errors are then those of the layers' outputs on data.
        sweeps: of the higher-order orthogonal iteration for Tucker-2 and HTD, at the ranks that are used.

    Raises:
        ValueError: moments of a layer that the network does not have.
    """

    def __init__(self, model: nn.Module, moments: Mapping[str, LayerMoments] | None = None, sweeps: int = 0) -> None:
        self._layers = factorable_layers(model)
        for name in moments or ():
            check_choice("layer of the moments", name, self._layers)
        self.moments, self.sweeps = dict(moments or {}), sweeps
        self._made: dict[tuple[str, str], Decomposition] = {}
        self._kept: dict[Hashable, Any] = {}

    def get(self, name: str, method: str) -> Decomposition:
        """The decomposition of layer ``name`` by ``method``.

        Raises:
            ValueError: the layer's weights are not finite.
        """
        if (name, method) not in self._made:
            layer = self._layers[name]
            groups = 1 if isinstance(layer, nn.Linear) else layer.groups
            weight = convolution_weight(layer)
            if not weight.isfinite().all():
                raise ValueError(f"layer {name!r} has weights that are not finite; nothing can be decomposed there")
            metric = next((made.metric for (layer_name, _), made in self._made.items() if layer_name == name), None)
            moments = self.moments.get(name)
            moments = moments and moments.to(weight.device)
            self._made[name, method] = DECOMPOSITIONS[method](weight, groups, moments, self.sweeps, metric)
        return self._made[name, method]

    def keep(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What ``make`` returned when ``key`` was first asked for: tables that every plan reads anew."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def plan(self, name: str, method: str, ranks: Ranks) -> LayerPlan:
        """The plan for layer ``name`` at these ranks, with a shift of the mean where its moments are known."""
        return LayerPlan(method, ranks, shift=name in self.moments)

    def spectra(self) -> dict[str, list[float]]:
        """Layer -> singular values along its output channels, descending."""
        return {name: self.get(name, "svd").spectrum.tolist() for name in self._layers}


def plan_cost(shapes: Mapping[str, LayerShape], dense: tuple[int, int], plan: RankPlan) -> tuple[int, int]:
    """Parameters and MACs of a network, from the shapes of its layers and the dense network's costs."""
    params, macs = dense
    for name, layer in plan.layers.items():
        (before_params, before_macs), (after_params, after_macs) = shapes[name].dense_cost, shapes[name].cost(layer)
        params, macs = params - before_params + after_params, macs - before_macs + after_macs
    return params, macs
