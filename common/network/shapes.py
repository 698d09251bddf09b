"""Trace the factorable layers of a network: their shapes, and their costs when dense and when factored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from common.decomposition import DECOMPOSITIONS, Floats, Ranks, own_axes
from common.network.effective import EffectiveLayer
from common.network.given import has_lazy_layers
from common.network.held import held_parameters
from common.network.kinds import FactorableLayer, TransposedConvolution, group_count, kernel_size
from common.network.layers import effective_layers, factorable_layers, layer_input
from common.network.modes import evaluating, hooked
from common.network.passes import example_batch, run

Size = tuple[int, ...]
"""A number for each axis of a layer's images: ``(h, w)`` for a Conv2d."""


class Planned(Protocol):
    """The parts of a layer's plan that determine its cost. ``LayerPlan`` of ``common.planning`` has them."""

    @property
    def method(self) -> str | None:
        """Name of the decomposition; None if the layer stays dense."""

    @property
    def ranks(self) -> Ranks:
        """Ranks of the decomposition."""

    @property
    def shift(self) -> bool:
        """Whether the last factor has a bias even if the layer has none."""


@dataclass(frozen=True)
class LayerShape:
    """Properties of a layer that determine its cost.

    Attributes:
        channels: ``(in, out)``.
        kernel: a number for each axis, ``(kh, kw)`` for a Conv2d; ``(1, 1)`` for a Linear.
        groups: number of groups, as in ``Conv2d``.
        bias: whether the layer has a bias.
        transposed: whether the layer is a transposed convolution.
        calls: ``(input size, output size)`` of each call of the layer for one input of the batch, sizes as
            ``(h, w)`` for a Conv2d. For a Linear the size is ``(positions, 1)``, with one position for a plain Linear.
            If frames or patches are folded into the batch, their number multiplies the first axis. If the inputs of a
            batch share a row (a mean over the batch), each input has a fraction of it.
        linear: whether the layer is a Linear.
        reason: why the layer must stay dense at any rank; empty if it need not.
        unused: number of parameters of the layer that its factors do not have, such as the gains of a standardized
            weight.
        read_elsewhere: whether the network also reads the weight without calling the layer. A factored layer then
            forms the product of its factors in each pass, whose MACs no cost counts.
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
    read_elsewhere: bool = False

    @property
    def dense_cost(self) -> tuple[int, int]:
        """Parameters and MACs of the dense layer."""
        channels = [(*self.channels, self.groups)]
        params, macs = self._cost(channels, ((True, True),), self.bias)
        return params + self.unused, macs

    def cost(self, plan: Planned) -> tuple[int, int]:
        """Return parameters and MACs of the layer under ``plan``. A bias adds parameters but no MACs."""
        if plan.method is None:
            return self.dense_cost
        return self._factored_cost(plan.method, plan.ranks, self.bias or plan.shift)

    def costs(self, method: str, ranks: Floats, shift: bool) -> tuple[Floats, Floats]:
        """Return parameters and MACs, ``(K,)`` each, for K sets of ranks, ``(K, modes)``."""
        columns = tuple(ranks[:, mode] for mode in range(ranks.shape[1]))
        return self._factored_cost(method, columns, self.bias or shift)

    def _factored_cost(self, method: str, ranks: tuple[Any, ...], bias: bool) -> tuple[Any, Any]:
        """Return the cost of the method's factors; ``ranks`` holds numbers, or arrays of one shape."""
        kind = DECOMPOSITIONS[method]
        return self._cost(kind.factor_channels(*self.channels, ranks, self.groups), kind.axes, bias)

    def _cost(
        self, channels: Sequence[tuple[Any, Any, Any]], axes: tuple[tuple[bool, bool], ...], bias: bool
    ) -> tuple[Any, Any]:
        """Return parameters and MACs of a chain of factors.

        Args:
            channels: input channels, output channels and groups of each factor: numbers, or arrays of one shape.
            axes: for each factor, whether it has the kernel's height and width.
            bias: whether the last factor has a bias.
        """
        taken = [own_axes(flags, len(self.kernel)) for flags in axes]
        weights = [
            outputs * (inputs // groups) * math.prod(k for k, own in zip(self.kernel, flags, strict=True) if own)
            for (inputs, outputs, groups), flags in zip(channels, taken, strict=True)
        ]
        macs: Any = 0
        for size, after in self.calls:
            for weight, flags in zip(weights, taken, strict=True):
                old = math.prod(size)
                size = size_after(size, after, flags)
                # A transposed convolution multiplies once per input position, other layers once per output position.
                macs += weight * (old if self.transposed and any(flags) else math.prod(size))
        return sum(weights) + bias * self.channels[1], macs


def size_after(size: Size, after: Size, flags: Sequence[bool]) -> Size:
    """The size of an image behind a factor that takes over the axes with a flag; ``after`` is the layer's output."""
    return tuple(new if own else old for old, new, own in zip(size, after, flags, strict=True))


def trace_layers(model: nn.Module, x: Tensor) -> dict[str, LayerShape]:
    """Run ``x`` once and return the shape of each factorable layer that it reaches.

    Args:
        model: the network to trace. It stays unchanged, including its training mode.
        x: example input ``(N, C, ...)``.

    Returns:
        Layer name -> shape, in the order of ``model.named_modules()``.

    Raises:
        ValueError: the network does not accept ``x``.
    """
    x = example_batch(x, model)
    if has_lazy_layers(model):
        run(model, x)
    layers = factorable_layers(model)
    served, reasons = effective_layers(model)
    calls: dict[str, list[tuple[Size, Size]]] = {}
    settings = {name: _settings(layer) for name, layer in layers.items()}

    def record(name: str, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        found = calls.setdefault(name, [])
        if _settings(layers[name]) != settings[name]:
            reasons.setdefault(name, "the network changes its stride, padding or dilation from call to call")
        if name not in served and not isinstance(layer_input(given, named), Tensor):
            return  # a custom class may have any input and output
        if len(given) + len(named) > 1:
            what = "an output size" if isinstance(layers[name], TransposedConvolution) else "more than its input"
            reasons.setdefault(name, f"it is called with {what}, which its factors do not accept")
        inputs = layer_input(given, named)
        effective = served.get(name)
        if effective is not None and effective.layer is not layers[name]:
            if not effective.computes(inputs, output):
                reasons.setdefault(name, f"its class {type(layers[name]).__name__} does more than a plain layer")
            inputs = effective.input(inputs)
        if isinstance(output, Tensor):
            found.append(_call_sizes(layers[name], inputs, output, len(x)))

    handles = [
        module.register_forward_hook(
            lambda _, i, k, o, name=name: record(name, i, k, o), with_kwargs=True, prepend=True
        )
        for name, module in layers.items()
    ]
    reads = _ReadsElsewhere(layers)
    with hooked([*handles, *reads.handles()]), reads:
        run(model, x)
    held = held_parameters(model) if reads.found else set()
    for name in reads.found:
        if id(vars(layers[name])["_parameters"]["weight"]) in held:
            reasons.setdefault(name, "the network reads its weight, which something else than the layer holds")
    with evaluating(model):  # a parametrized weight may change whenever it is read in training
        return {
            name: _layer_shape(layer, served.get(name), tuple(calls[name]), reasons.get(name, ""), name in reads.found)
            for name, layer in layers.items()
            if name in calls
        }


def example_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the first input of a batch ``(N, C, ...)``, or the whole batch where one input does not do.

    A mixture of experts may run more layers for a batch than for its first input. A network that squeezes the axis of
    inputs, or that normalises over it, may take no single input. Costs are means over the inputs of the example.

    Raises:
        ValueError: the network accepts neither.
    """
    one = batch[:1]
    try:
        reached = _reached(model, one)
    except ValueError:
        if len(batch) == 1:
            raise
        with suppress(ValueError):
            run(model, batch)
            return batch
        raise
    return one if len(batch) == 1 or reached >= _reached(model, batch) else batch


def _reached(model: nn.Module, x: Tensor) -> set[str]:
    """The names of the factorable layers that a pass runs."""
    found: set[str] = set()
    layers = factorable_layers(model)
    with hooked([m.register_forward_hook(lambda *_, name=name: found.add(name)) for name, m in layers.items()]):
        run(model, x)
    return found


class _ReadsElsewhere(TorchDispatchMode):
    """Find layers whose weight an operator reads while the layer itself does not run.

    Args:
        layers: the layers, by name.
    """

    def __init__(self, layers: Mapping[str, FactorableLayer]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._layers = layers
        weights = {name: vars(layer)["_parameters"].get("weight") for name, layer in layers.items()}
        self._names = {id(weight): name for name, weight in weights.items() if weight is not None}
        self._running: list[str] = []

    def handles(self) -> list[RemovableHandle]:
        """Hooks on all layers that note which of them run."""
        found: list[RemovableHandle] = []
        for name, layer in self._layers.items():
            found.append(layer.register_forward_pre_hook(lambda *_, name=name: self._running.append(name)))
            found.append(layer.register_forward_hook(lambda *_, name=name: self._running.remove(name)))
        return found

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            name = self._names.get(id(leaf))
            if name is not None and name not in self._running:
                self.found.add(name)
        return func(*args, **(kwargs or {}))


def _settings(layer: nn.Module) -> tuple[Any, ...]:
    """What a convolution computes besides its weight and bias."""
    return tuple(getattr(layer, name, None) for name in ("stride", "padding", "dilation", "groups", "output_padding"))


def _call_sizes(layer: FactorableLayer, inputs: Tensor, output: Tensor, batch: int) -> tuple[Size, Size]:
    """Return the input and output size of one call, for one input of the batch."""
    linear = isinstance(layer, nn.Linear)
    if not linear and inputs.dim() == len(kernel_size(layer)) + 1:  # one image without a batch
        inputs, output = inputs[None], output[None]
    rows = max(1, inputs[..., 0].numel() if linear else inputs.shape[0])
    share: Any = rows / batch if rows % batch else rows // batch
    if linear:
        return ((share, 1), (share, 1))
    before, after = inputs.shape[2:], output.shape[2:]
    return ((share * before[0], *before[1:]), (share * after[0], *after[1:]))


def _layer_shape(
    layer: FactorableLayer,
    effective: EffectiveLayer | None,
    calls: tuple[tuple[Size, Size], ...],
    reason: str,
    read: bool,
) -> LayerShape:
    """Return the layer's shape according to its weight; its attributes may differ."""
    plain = layer if effective is None else effective.layer
    weight, transposed = plain.weight, isinstance(plain, TransposedConvolution)
    groups = group_count(plain)
    first, second = weight.shape[:2]
    unused = sum(parameter.numel() for parameter in layer.parameters()) - weight.numel()
    unused -= 0 if plain.bias is None else plain.bias.numel()
    return LayerShape(
        channels=(first, second * groups) if transposed else (second * groups, first),
        kernel=tuple(map(int, weight.shape[2:])) or (1, 1),
        groups=groups,
        bias=plain.bias is not None,
        transposed=transposed,
        calls=calls,
        linear=isinstance(plain, nn.Linear),
        reason=reason,
        unused=unused,
        read_elsewhere=read,
    )


def dense_reason(shape: LayerShape) -> str:
    """Return why a layer must stay dense at any rank; empty if it need not."""
    if shape.reason:
        return shape.reason
    depthwise = shape.groups > 1 and shape.groups == shape.channels[0]
    return "a depthwise convolution has no channels to factor" if depthwise else ""
