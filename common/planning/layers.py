"""The layers of a network that a decomposition can replace: their shapes, their costs, their decompositions."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from common.choices import check_choice
from common.decomposition import DECOMPOSITIONS, Decomposition, Floats, LayerMoments, Ranks, decompose
from common.modes import hooked
from common.network.effective import EffectiveLayer
from common.network.layers import FactorableLayer, effective_layers, factorable_layers, layer_input
from common.network.passes import example_batch, run
from common.network.weights import convolution_weight
from common.planning.plan import LayerPlan, RankPlan

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
        unused: parameters of the layer as it is that its factors do not have, such as the gains of a standardized
            weight.
    """

    channels: tuple[int, int]
    kernel: Size
    groups: int
    bias: bool
    transposed: bool
    calls: tuple[tuple[Size, Size], ...]
    linear: bool = False
    reason: str = ""
    unused: int = 0

    @property
    def dense_cost(self) -> tuple[int, int]:
        """Parameters and MACs of the layer as it is."""
        params, macs = self._cost((), ((True, True),), self.bias)
        return params + self.unused, macs

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
    """Shapes of every layer that could be factored and that ``x`` passes, in the order of ``model.named_modules()``.

    Args:
        model: left as it was, its training mode included.
        x: example input ``(N, C, H, W)``.

    Raises:
        ValueError: the network does not take ``x``.
    """
    x = example_batch(x, model)
    if any(isinstance(m, LazyModuleMixin) and m.has_uninitialized_params() for m in model.modules()):
        run(model, x)
    layers = factorable_layers(model)
    served, reasons = effective_layers(model)
    calls: dict[str, list[tuple[Size, Size]]] = {}

    def record(name: str, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        found = calls.setdefault(name, [])
        if name not in served and not isinstance(layer_input(given, named), Tensor):
            return  # a class of others may take and put out what it likes
        if len(given) + len(named) > 1:
            reasons.setdefault(name, "it is called with an output size, which its factors would not take")
        inputs = layer_input(given, named)
        effective = served.get(name)
        if effective is not None and effective.layer is not layers[name]:
            if not effective.computes(inputs, output):
                reasons.setdefault(name, f"a {type(layers[name]).__name__} computes something of its own")
            inputs = effective.input(inputs)
        if isinstance(output, Tensor):
            found.append(_call_sizes(layers[name], inputs, output, len(x)))

    handles = [
        module.register_forward_hook(
            lambda _, i, k, o, name=name: record(name, i, k, o), with_kwargs=True, prepend=True
        )
        for name, module in layers.items()
    ]
    with hooked(handles):
        run(model, x)
    return {
        name: _shape(layer, served.get(name), tuple(calls[name]), reasons.get(name, ""))
        for name, layer in layers.items()
        if name in calls
    }


def _call_sizes(layer: FactorableLayer, inputs: Tensor, output: Tensor, batch: int) -> tuple[Size, Size]:
    """Sizes before and after one call, for one input of the batch."""
    linear = isinstance(layer, nn.Linear)
    if not linear and inputs.dim() == 3:
        inputs, output = inputs[None], output[None]
    rows = max(1, inputs[..., 0].numel() if linear else inputs.shape[0])
    share: Any = rows / batch if rows % batch else rows // batch
    if linear:
        return ((share, 1), (share, 1))
    return ((share * inputs.shape[-2], inputs.shape[-1]), (share * output.shape[-2], output.shape[-1]))


def _shape(
    layer: FactorableLayer, effective: EffectiveLayer | None, calls: tuple[tuple[Size, Size], ...], reason: str
) -> LayerShape:
    """The layer's shape, read off its weight: its attributes may say something else."""
    plain = layer if effective is None else effective.layer
    weight, transposed = plain.weight, isinstance(plain, nn.ConvTranspose2d)
    groups = 1 if isinstance(plain, nn.Linear) else plain.groups
    first, second = weight.shape[:2]
    unused = sum(parameter.numel() for parameter in layer.parameters()) - weight.numel()
    unused -= 0 if plain.bias is None else plain.bias.numel()
    return LayerShape(
        channels=(first, second * groups) if transposed else (second * groups, first),
        kernel=(int(weight.shape[2]), int(weight.shape[3])) if weight.dim() == 4 else (1, 1),
        groups=groups,
        bias=plain.bias is not None,
        transposed=transposed,
        calls=calls,
        linear=isinstance(plain, nn.Linear),
        reason=reason,
        unused=unused,
    )


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


class Decompositions:
    """The decompositions of a network's layers, each made when it is first asked for and then kept.

    Hand one to :func:`common.planning.plan_ranks` and :func:`common.compression.compress` to decompose once and
    plan and compress many times. The weights must not change in between.

    Args:
        model: the dense network.
        moments: from :func:`common.calibration.calibrate`: errors are then those of the layers' outputs on data. A
            layer of which too few patches were seen is decomposed by its weight alone.
        sweeps: of the higher-order orthogonal iteration for Tucker-2 and HTD, at the ranks that are used.

    Raises:
        ValueError: moments of a layer that the network does not have.
    """

    def __init__(self, model: nn.Module, moments: Mapping[str, LayerMoments] | None = None, sweeps: int = 0) -> None:
        self._model = model
        for name in moments or ():
            check_choice("layer of the moments", name, factorable_layers(model))
        self.moments = {name: found for name, found in (moments or {}).items() if not found.too_few}
        self.sweeps = sweeps
        self._made: dict[tuple[str, str], Decomposition] = {}
        self._kept: dict[Hashable, Any] = {}

    @cached_property
    def _layers(self) -> dict[str, FactorableLayer]:
        return {name: effective.layer for name, effective in effective_layers(self._model)[0].items()}

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
            like = next((made for (layer_name, _), made in self._made.items() if layer_name == name), None)
            moments = self.moments.get(name) if like is None else like.moments
            moments = moments and moments.to(weight.device)
            self._made[name, method] = decompose(DECOMPOSITIONS[method], weight, groups, moments, self.sweeps, like)
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
