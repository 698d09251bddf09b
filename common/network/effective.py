"""Find what a layer with a custom ``forward`` computes: a convolution of its padded input, or something else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from common.network.kinds import (
    CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
    Convolution,
    FactorableLayer,
    per_axis,
    setting,
)

_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_SIGNATURES: dict[type[nn.Module], tuple[Callable[..., Any], tuple[str, ...]]] = {
    nn.Conv1d: (torch.conv1d, _CONVOLUTION_ARGUMENTS),
    nn.Conv2d: (torch.conv2d, _CONVOLUTION_ARGUMENTS),
    nn.Conv3d: (torch.conv3d, _CONVOLUTION_ARGUMENTS),
    nn.ConvTranspose1d: (torch.conv_transpose1d, _TRANSPOSED_ARGUMENTS),
    nn.ConvTranspose2d: (torch.conv_transpose2d, _TRANSPOSED_ARGUMENTS),
    nn.ConvTranspose3d: (torch.conv_transpose3d, _TRANSPOSED_ARGUMENTS),
    nn.Linear: (functional.linear, ("input", "weight", "bias")),
}
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
_PAD_MODES = ("constant", "circular", "reflect", "replicate")
_EXTRA_PIXELS = ((0, 0, 0), (1, 2, 0), (2, 1, 3), (3, 3, 1), (5, 4, 2))
"""Added to each axis of a layer's smallest input. Size-dependent padding differs between them."""


@dataclass(frozen=True)
class EffectiveLayer:
    """What a layer computes, expressed as a plain PyTorch layer.

    Attributes:
        layer: the layer itself if it acts like a plain one; otherwise a new plain layer with the weight that the
            original applies.
        front: module that pads the input first; None if there is no such padding.
    """

    layer: FactorableLayer
    front: nn.Module | None = None

    def input(self, given: Tensor) -> Tensor:
        """Return the input of ``layer`` when the original layer receives ``given``."""
        return given if self.front is None else self.front(given)

    def computes(self, given: Tensor, output: object) -> bool:
        """Whether this layer maps ``given`` to ``output``, up to rounding."""
        return isinstance(output, Tensor) and _close(self.layer(self.input(given)), output)


class FixedPadding(nn.Module):
    """Pad by a fixed number of pixels.

    Args:
        amounts: left, right, top, bottom.
        mode: padding mode, as in ``torch.nn.functional.pad``.
    """

    def __init__(self, amounts: tuple[int, int, int, int], mode: str = "constant") -> None:
        super().__init__()
        self.amounts, self.mode = amounts, mode

    def forward(self, input: Tensor) -> Tensor:
        """Return the padded input."""
        return functional.pad(input, self.amounts, mode=self.mode)

    def extra_repr(self) -> str:
        """Return the settings that ``print`` shows."""
        return f"{self.amounts}, mode={self.mode!r}"


class SamePadding(nn.Module):
    """Pad with zeros so that a convolution's output has ceil(size / stride) pixels.

    This is TensorFlow's "same" padding: an odd pixel goes to the end.

    Args:
        kernel: kernel size of the convolution that follows, a number for each axis.
        stride: its stride.
        dilation: its dilation.
    """

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation = kernel, stride, dilation

    def forward(self, input: Tensor) -> Tensor:
        """Return the padded input."""
        amounts: list[int] = []
        for axis in reversed(range(len(self.kernel))):
            size, stride = input.shape[axis - len(self.kernel)], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            amounts += [total // 2, total - total // 2]
        return functional.pad(input, amounts)

    def extra_repr(self) -> str:
        """Return the settings that ``print`` shows."""
        return f"kernel={self.kernel}, stride={self.stride}, dilation={self.dilation}"


class _CallRecorder(TorchFunctionMode):
    """Record the arguments of every call of one function."""

    def __init__(self, base: type[nn.Module]) -> None:
        super().__init__()
        self._function, self._names = _SIGNATURES[base]
        self.found: list[dict[str, Any]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is self._function:
            call = {**_DEFAULTS, **dict(zip(self._names, args, strict=False)), **(kwargs or {})}
            self.found.append(call)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def effective_layer(layer: FactorableLayer, base: type[nn.Module]) -> EffectiveLayer | None:
    """Find what ``layer`` computes, whose class overrides parts of ``base``.

    This runs a copy of the layer on random inputs of several sizes, in training and in evaluation mode. In every run
    the copy must call ``base``'s function once, with the same weight and bias, on its input or padded input, and must
    return the result. The check accepts, for example, standardized weights and TensorFlow's "same" padding. A layer
    that keeps anything of a run in its attributes or buffers is refused, since the network may read it there.

    Returns:
        The equivalent plain layer; None if the layer is not one convolution or matrix product.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return _probed(layer, base)
        except Exception:  # a custom class can raise anything on these inputs
            return None


def _probed(layer: FactorableLayer, base: type[nn.Module]) -> EffectiveLayer | None:
    """Run a copy of ``layer`` on random inputs and describe it as a plain layer, if it acts like one."""
    probe = copy.deepcopy(layer).requires_grad_(False)
    for hooks in (probe._forward_hooks, probe._forward_pre_hooks):
        hooks.clear()
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randn(shape, generator=generator).to(layer.weight) for shape in _input_shapes(layer)]
    large = 1000 if torch.finfo(layer.weight.dtype).max > 1e30 else 10  # half precision would overflow
    examples += [large * example for example in examples]  # a layer may clamp what is large
    state = _state(probe)
    seen: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
    for training in (False, True):
        probe.train(training)
        for example in examples:
            with _CallRecorder(base) as calls:
                output = probe(example.clone())
            if len(calls.found) != 1 or not isinstance(output, Tensor):
                return None
            seen.append((example, output.clone(), calls.found[0]))
    if not _is_same_state(_state(probe), state):
        return None
    first = seen[0][2]
    for _, _, call in seen[1:]:
        if any(not _equal(call[name], value) for name, value in first.items() if name != "input"):
            return None
    found = EffectiveLayer(
        _plain_layer(base, first, layer),
        None if base is nn.Linear else _padding(layer, first, [(example, call["input"]) for example, _, call in seen]),
    )
    return found if all(found.computes(example, output) for example, output, _ in seen) else None


def _state(layer: nn.Module) -> dict[str, tuple[Any, int]]:
    """What a layer and its children hold, each with a count of its changes: attributes, their items, and tensors."""
    held: dict[str, Any] = {}
    for module_name, module in layer.named_modules():
        for name, value in vars(module).items():
            if name != "training":
                held[f"{module_name}.{name}"] = value
                items = value.items() if isinstance(value, dict) else enumerate(value) if _is_sized(value) else ()
                held.update({f"{module_name}.{name}.{key}": item for key, item in items})
    return {name: (value, value._version if isinstance(value, Tensor) else 0) for name, value in held.items()}


def _is_sized(value: Any) -> bool:
    """Whether a value is a container whose items can be listed."""
    return isinstance(value, Collection) and not isinstance(value, Tensor | str | bytes)


def _is_same_state(one: dict[str, tuple[Any, int]], other: dict[str, tuple[Any, int]]) -> bool:
    """Whether two states of a layer hold the same objects, none of them changed."""
    return one.keys() == other.keys() and all(
        value is other[name][0] and changes == other[name][1] for name, (value, changes) in one.items()
    )


def _input_shapes(layer: FactorableLayer) -> list[tuple[int, ...]]:
    """Return the shapes of the random inputs: ``(N, C, ...)``, or ``(..., C)`` for a Linear."""
    if isinstance(layer, nn.Linear):
        return [(2, layer.in_features), (1, 3, layer.in_features)]
    smallest = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, setting(layer, "dilation"), strict=True)]
    start = [max(size, 2) + stride for size, stride in zip(smallest, setting(layer, "stride"), strict=True)]
    return [(2, layer.in_channels, *map(sum, zip(start, extra, strict=False))) for extra in _EXTRA_PIXELS]


def _equal(one: Any, other: Any) -> bool:
    """Whether two arguments of a call are equal, in type too."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to 100 rounding errors of the largest value."""
    scale = max(float(other.abs().max()), 1e-30)
    return one.shape == other.shape and float((one - other).abs().max()) <= 100 * torch.finfo(one.dtype).eps * scale


def _plain_layer(base: type[nn.Module], call: dict[str, Any], layer: FactorableLayer) -> FactorableLayer:
    """Build a layer of class ``base`` with the arguments of one recorded call."""
    weight, bias = call["weight"], call["bias"]
    settings: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    plain: FactorableLayer
    if base is nn.Linear:
        plain = nn.Linear(weight.shape[1], weight.shape[0], **settings)
    else:
        groups = int(call["groups"])
        first, second = weight.shape[:2]
        padding = call["padding"]
        kernel = tuple(weight.shape[2:])
        each = partial(per_axis, dimensions=len(kernel))
        shared: dict[str, Any] = {
            "stride": each(call["stride"]),
            "padding": padding if isinstance(padding, str) else each(padding),
            "dilation": each(call["dilation"]),
            "groups": groups,
            **settings,
        }
        if issubclass(base, Convolution):
            plain = CONVOLUTIONS[len(kernel) - 1](second * groups, first, kernel, **shared)
        else:
            shared["output_padding"] = each(call["output_padding"])
            plain = TRANSPOSED_CONVOLUTIONS[len(kernel) - 1](first, second * groups, kernel, **shared)
    plain.weight.copy_(weight)
    if bias is not None:
        assert plain.bias is not None
        plain.bias.copy_(bias)
    return plain.requires_grad_(layer.weight.requires_grad).train(layer.training)


def _padding(layer: FactorableLayer, call: dict[str, Any], pairs: Sequence[tuple[Tensor, Tensor]]) -> nn.Module | None:
    """Find the padding that turns the first tensor of each pair into the second.

    The candidates are TensorFlow's "same" padding and, if the layer holds one of PyTorch's padding modules, every
    fixed padding with the observed total. The caller compares outputs, and so rejects a layer that no candidate fits.

    Args:
        layer: the custom layer.
        call: the recorded arguments of one call.
        pairs: (input of the layer, input of its convolution), one pair a run.

    Returns:
        The padding module; None if the layer pads nothing or no candidate fits.
    """
    if all(torch.equal(given, padded) for given, padded in pairs):
        return None
    kernel = tuple(call["weight"].shape[2:])
    stride, dilation = (per_axis(call[name], len(kernel)) for name in ("stride", "dilation"))
    candidates: list[nn.Module] = [SamePadding(kernel, stride, dilation)]
    if len(kernel) == 2 and any(type(child).__module__ == nn.ZeroPad2d.__module__ for child in layer.children()):
        height, width = (pairs[0][1].shape[axis] - pairs[0][0].shape[axis] for axis in (2, 3))
        candidates += [
            FixedPadding((left, width - left, top, height - top), mode)
            for left, top in _border_splits(width, height)
            for mode in _PAD_MODES
        ]
    return next((front for front in candidates if _reproduces(front, pairs)), None)


def _border_splits(width: int, height: int) -> list[tuple[int, int]]:
    """Return all (left, top) parts of a border of ``width`` and ``height`` in total, the most even splits first."""
    sides = [(left, top) for left in range(width + 1) for top in range(height + 1)]
    return sorted(sides, key=lambda side: math.dist(side, (width / 2, height / 2)))


def _reproduces(front: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether ``front`` turns the first tensor of every pair into the second."""
    for given, padded in pairs:
        try:
            if not torch.equal(front(given), padded):
                return False
        except RuntimeError:  # reflection cannot add as many pixels as the input has
            return False
    return True
