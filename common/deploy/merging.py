"""Merge adjacent linear layers if one layer is cheaper than several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.decomposition import Floats
from common.deploy.cutting import last_pieces
from common.deploy.links import chains, is_plain
from common.deploy.parity import changed_copy
from common.network.held import replace_module
from common.network.inputs import for_one_pass
from common.network.kinds import (
    CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
    AnyConvolution,
    FactorableLayer,
    TransposedConvolution,
    kernel_size,
    setting,
)
from common.network.modes import hooked
from common.network.weights import blocks, convolution_weight, set_convolution_weight

Calls = Sequence[tuple[int, int]]
"""Numbers of positions in a layer's input and output, for each call of the layer in a pass of the example."""


def merge_factors(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy in evaluation mode in which chains of linear layers are merged if that reduces the MACs.

    The layers of a chain follow each other directly: for example the factors of a layer, and another linear layer
    after them. A chain is cut into pieces so that the merged pieces together need the fewest MACs. No merged piece has
    more parameters than the layers that it replaces. So a layer becomes dense again if its ranks do not pay.

    Layers are merged only if the result is the same at the borders of the image too: on each axis, one of the two has
    a kernel of 1, and no bias meets zero padding. A pass of ``x`` must confirm which layer follows which (see
    :func:`common.deploy.links.links`). On ``x``, the copy's outputs equal the network's up to rounding.

    Args:
        model: stays unchanged. Fold its BatchNorms first, since otherwise they stand between the layers.
        x: example input ``(N, C, H, W)``. It determines the layers' spatial sizes.

    Raises:
        ValueError: the network does not take ``x``, or cannot be copied.
    """

    def find(network: nn.Module, shown: Tensor) -> list[Sequence[str]]:
        names = {module: name for name, module in network.named_modules()}
        if not (found := _chains(network, shown)):
            return []
        calls = _calls([layer for chain in found for layer in chain], network, shown)
        pieces = [p for chain in found for p in _cheapest_pieces(chain, [calls[layer] for layer in chain])]
        return [[names[layer] for layer in piece] for piece in pieces if len(piece) > 1]

    return changed_copy(model, x, find, _merge_piece)


def _merge_piece(model: nn.Module, names: Sequence[str]) -> None:
    """Replace the first of these layers by the merged layer, and each of the others by an ``Identity``."""
    layers = [layer for layer in map(model.get_submodule, names) if is_plain(layer)]
    replace_module(model, layers[0], reduce(_merge, layers))
    for layer in layers[1:]:
        replace_module(model, layer, nn.Identity().eval())


def _chains(model: nn.Module, x: Tensor) -> list[list[FactorableLayer]]:
    """Return every chain of two or more linear layers that follow each other directly."""
    modules = dict(model.named_modules())
    found = chains(model, x, lambda first, second: is_plain(first) and is_plain(second))
    return [[layer for layer in map(modules.__getitem__, names) if is_plain(layer)] for names in found]


def _calls(layers: Sequence[FactorableLayer], model: nn.Module, x: Tensor) -> Mapping[FactorableLayer, Calls]:
    """Count the positions in the input and output of each layer, for each of its calls in a pass of ``x``."""
    calls: dict[FactorableLayer, list[tuple[int, int]]] = {layer: [] for layer in layers}

    def note(layer: FactorableLayer, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        inputs: Tensor = given[0] if given else named["input"]
        before, after = _channels(layer)
        calls[layer].append((inputs.numel() // before, output.numel() // after))

    with hooked(layer.register_forward_hook(note, with_kwargs=True) for layer in layers), torch.no_grad():
        model(for_one_pass(x))
    return calls


def _channels(layer: FactorableLayer) -> tuple[int, int]:
    """Return the input and output channels, or features."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _cheapest_pieces(chain: Sequence[FactorableLayer], calls: Sequence[Calls]) -> list[Sequence[FactorableLayer]]:
    """Cut the chain so that its pieces, each merged into one layer, need the fewest MACs."""

    def macs(start: int, end: int) -> Floats:
        found = _piece_macs(chain[start:end], calls[start:end])
        return np.array([np.inf if found is None else float(found)])

    starts = last_pieces(len(chain), macs)
    pieces: list[Sequence[FactorableLayer]] = []
    end = len(chain)
    while end:
        start = int(starts[end - 1][0])
        pieces.insert(0, chain[start:end])
        end = start
    return pieces


def _piece_macs(piece: Sequence[FactorableLayer], calls: Sequence[Calls]) -> int | None:
    """MACs of the piece merged into one layer; None if it cannot be merged or would then have more parameters."""
    layer: FactorableLayer | None = piece[0]
    for following in piece[1:]:
        layer = None if layer is None else _outline(layer, following)
    if layer is None or _params(layer) > sum(map(_params, piece)):
        return None
    place = 0 if isinstance(layer, TransposedConvolution) else -1
    return layer.weight.numel() * sum(call[place] for call in calls[place])


def _params(layer: FactorableLayer) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def _outline(first: FactorableLayer, second: FactorableLayer) -> FactorableLayer | None:
    """Return a layer equivalent to both, on the device ``meta``; None if there is none."""
    place: dict[str, Any] = {"device": "meta", "dtype": first.weight.dtype}
    bias = first.bias is not None or second.bias is not None
    if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
        return nn.Linear(first.in_features, second.out_features, bias, **place)
    if isinstance(first, nn.Linear) or isinstance(second, nn.Linear) or first.groups != second.groups:
        return None
    both = (first, second)
    if len(set(map(len, map(kernel_size, both)))) > 1:
        return None
    axes = range(len(first.kernel_size))
    idle = [[_is_idle(layer, axis) for axis in axes] for layer in both]
    padded = [layer for layer in both if any(_padding(layer, axis) for axis in axes)]
    transposed = [layer for layer in both if isinstance(layer, TransposedConvolution)]
    if (
        not all(map(any, zip(*idle, strict=True)))
        or any(not all(idle[1 - both.index(layer)]) for layer in transposed)
        or len({layer.padding_mode for layer in padded}) > 1
        or any(_padding(layer, axis) is None for layer in both for axis in axes)
    ):
        return None
    pads_with_zeros = second in padded and second.padding_mode == "zeros"
    if first.bias is not None and (pads_with_zeros or (second in transposed and not all(idle[1]))):
        return None  # at the borders the second layer would see zeros where the merged one sees the bias
    taken = [second if idle[0][axis] else first for axis in axes]
    settings: dict[str, Any] = {
        name: tuple(setting(layer, name)[axis] for axis, layer in enumerate(taken))
        for name in ("kernel_size", "stride", "dilation")
    }
    settings["padding"] = tuple(_padding(layer, axis) for axis, layer in enumerate(taken))
    settings |= {"groups": first.groups, "bias": bias, **place}
    if transposed:
        settings["output_padding"] = setting(transposed[0], "output_padding")
        return TRANSPOSED_CONVOLUTIONS[len(axes) - 1](first.in_channels, second.out_channels, **settings)
    if padded:
        settings["padding_mode"] = padded[0].padding_mode
    return CONVOLUTIONS[len(axes) - 1](first.in_channels, second.out_channels, **settings)


def _is_idle(layer: AnyConvolution, axis: int) -> bool:
    """Whether the layer maps each position on an axis to itself."""
    unmoved = layer.kernel_size[axis] == setting(layer, "stride")[axis] == 1
    return unmoved and _padding(layer, axis) == setting(layer, "output_padding")[axis] == 0


def _padding(layer: AnyConvolution, axis: int) -> int | None:
    """Padding on each side of an axis; None if the sides differ (``padding="same"`` with an even kernel)."""
    if layer.padding == "valid":
        return 0
    if layer.padding == "same":
        whole = setting(layer, "dilation")[axis] * (layer.kernel_size[axis] - 1)
        return None if whole % 2 else whole // 2
    return setting(layer, "padding")[axis]


def _merge(first: FactorableLayer, second: FactorableLayer) -> FactorableLayer:
    """Return one layer with the product of both weights, computed in float64."""
    merged = _outline(first, second)
    assert merged is not None
    merged = merged.to_empty(device=first.weight.device).eval()
    before, after = (
        blocks(layer).double() for layer in (first, second)
    )  # (groups, O, M, kh, kw) and (groups, M, I, kh, kw)
    weight = torch.einsum("gomab,gmicd->goiacbd", after, before).flatten(5).flatten(3, 4).flatten(0, 1)
    set_convolution_weight(merged, weight.reshape(convolution_weight(merged).shape))
    if merged.bias is not None:
        bias = torch.zeros_like(merged.bias, dtype=torch.double) if second.bias is None else second.bias.double()
        if first.bias is not None:
            carried = first.bias.double().reshape(len(before), -1)
            bias = bias + torch.einsum("gomab,gm->go", after, carried).flatten()
        merged.bias.copy_(bias)
    return merged.requires_grad_(first.weight.requires_grad)
