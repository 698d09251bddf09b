"""Adjacent linear layers merged where one is cheaper than both; ranks widened to what the runtime likes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from common.deploy.links import deployed_copy, is_plain, links
from common.network.held import replace_module
from common.network.layers import FactorableLayer
from common.network.weights import convolution_weight, set_convolution_weight
from common.planning.layers import Size, trace_layers

Convolution = nn.Conv2d | nn.ConvTranspose2d
Calls = Sequence[tuple[Size, Size]]
"""Sizes before and after, of every time that one input passes a layer."""


def merge_factors(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in evaluation mode in which linear layers with nothing between them are one where that costs less.

    The factors of one layer are such a chain, longer where another linear layer follows directly. A chain is cut into
    the pieces that together need the fewest MACs, none with more parameters than it replaces; so a layer whose ranks
    do not pay is dense again. Layers are merged only where the result is the same at the borders too: on each axis of
    the image one of the two has a kernel of 1, and no bias meets zero padding.

    Args:
        model: left as it was; fold its BatchNorm first, which otherwise stands between.
        x: example input ``(N, C, H, W)``; it tells the layers' spatial sizes.
    """
    merged = deployed_copy(model)
    names = {module: name for name, module in merged.named_modules()}
    shapes = trace_layers(merged, x)
    with torch.no_grad():
        for chain in _chains(merged, x):
            if all(names[layer] in shapes for layer in chain):
                for piece in _cheapest_pieces(chain, [shapes[names[layer]].calls for layer in chain]):
                    if len(piece) > 1:
                        replace_module(merged, piece[0], reduce(_merge, piece))
                        for layer in piece[1:]:
                            replace_module(merged, layer, nn.Identity())
    return merged


def align_ranks(model: nn.Module, multiple: int, x: Tensor | None = None) -> nn.Module:
    """A copy in evaluation mode whose factors have widths that are multiples of ``multiple``, filled up with zeros.

    The outputs stay the same. ONNX Runtime keeps its blocked layout only between convolutions whose channels fill its
    blocks (16 with AVX-512, 8 with AVX2); one that does not costs a reordering before and after it.

    Args:
        model: left as it was.
        multiple: at least 1.
        x: example input, which tells the parts that are used piece by piece (:func:`common.deploy.links.links`).

    Raises:
        ValueError: ``multiple`` is below 1.
    """
    check_multiple(multiple)
    aligned = deployed_copy(model)
    with torch.no_grad():
        for first, second in links(aligned, x).items():
            if _is_convolution(first) and _is_convolution(second) and first.groups == second.groups == 1:
                missing = -first.out_channels % multiple
                _widen(first, missing, outputs=True)
                _widen(second, missing, outputs=False)
    return aligned


def check_multiple(align: int) -> None:
    """Refuse what cannot be a multiple of ranks.

    Raises:
        ValueError: it is below 1.
    """
    if align < 1:
        raise ValueError(f"align={align!r}: it must be at least 1")


def _is_convolution(module: nn.Module) -> TypeGuard[Convolution]:
    return is_plain(module) and not isinstance(module, nn.Linear)


def _widen(layer: Convolution, channels: int, outputs: bool) -> None:
    """Add channels whose weights are zero."""
    weight = convolution_weight(layer)
    shape = list(weight.shape)
    shape[0 if outputs else 1] = channels
    wider = torch.cat([weight, weight.new_zeros(shape)], 0 if outputs else 1)
    if outputs:
        layer.out_channels += channels
        if layer.bias is not None:
            layer.bias = nn.Parameter(torch.cat([layer.bias, layer.bias.new_zeros(channels)]))
    else:
        layer.in_channels += channels
    layer.weight = nn.Parameter(wider.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else wider)


def _chains(model: nn.Module, x: Tensor) -> list[list[FactorableLayer]]:
    """The runs of two linear layers or more that follow each other directly."""
    after = {first: second for first, second in links(model, x).items() if is_plain(first) and is_plain(second)}
    chains: list[list[FactorableLayer]] = []
    followers = set(after.values())
    for start in [layer for layer in after if layer not in followers]:
        chain = [start]
        while (following := after.get(chain[-1])) is not None:
            chain.append(following)
        chains.append(chain)
    return chains


def _cheapest_pieces(chain: Sequence[FactorableLayer], calls: Sequence[Calls]) -> list[Sequence[FactorableLayer]]:
    """The chain cut so that its pieces, each merged, need the fewest MACs; of equal cuts the one of fewest pieces."""
    best: list[tuple[int, list[Sequence[FactorableLayer]]]] = [(0, [])]
    for end in range(1, len(chain) + 1):
        options = [
            (before + macs, [*pieces, chain[start:end]])
            for start, (before, pieces) in enumerate(best)
            if (macs := _piece_macs(chain[start:end], calls[start:end])) is not None
        ]
        best.append(min(options, key=lambda option: (option[0], len(option[1]))))
    return best[-1][1]


def _piece_macs(piece: Sequence[FactorableLayer], calls: Sequence[Calls]) -> int | None:
    """MACs of one input when the piece is one layer; None where it cannot be, or would have more parameters."""
    layer: FactorableLayer | None = piece[0]
    for following in piece[1:]:
        layer = None if layer is None else _outline(layer, following)
    if layer is None or _params(layer) > sum(map(_params, piece)):
        return None
    sides = [(first[0], last[1]) for first, last in zip(calls[0], calls[-1], strict=True)]
    transposed = isinstance(layer, nn.ConvTranspose2d)
    return layer.weight.numel() * sum(math.prod(before if transposed else after) for before, after in sides)


def _params(layer: FactorableLayer) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def _outline(first: FactorableLayer, second: FactorableLayer) -> FactorableLayer | None:
    """The layer that does what both do, on the device ``meta``; None where there is no such layer."""
    place: dict[str, Any] = {"device": "meta", "dtype": first.weight.dtype}
    bias = first.bias is not None or second.bias is not None
    if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
        return nn.Linear(first.in_features, second.out_features, bias, **place)
    if isinstance(first, nn.Linear) or isinstance(second, nn.Linear) or first.groups != second.groups:
        return None
    both = (first, second)
    idle = [[_is_idle(layer, axis) for axis in (0, 1)] for layer in both]
    padded = [layer for layer in both if any(_padding(layer, axis) for axis in (0, 1))]
    transposed = [layer for layer in both if isinstance(layer, nn.ConvTranspose2d)]
    if (
        not all(map(any, zip(*idle, strict=True)))
        or any(not all(idle[1 - both.index(layer)]) for layer in transposed)
        or len({layer.padding_mode for layer in padded}) > 1
        or any(_padding(layer, axis) is None for layer in both for axis in (0, 1))
    ):
        return None
    pads_with_zeros = second in padded and second.padding_mode == "zeros"
    if first.bias is not None and (pads_with_zeros or (second in transposed and not all(idle[1]))):
        return None  # at the borders the second layer would see zeros where the merged one sees the bias
    taken = [second if idle[0][axis] else first for axis in (0, 1)]
    settings: dict[str, Any] = {
        name: tuple(getattr(layer, name)[axis] for axis, layer in enumerate(taken))
        for name in ("kernel_size", "stride", "dilation")
    }
    settings["padding"] = tuple(_padding(layer, axis) for axis, layer in enumerate(taken))
    settings |= {"groups": first.groups, "bias": bias, **place}
    if transposed:
        settings["output_padding"] = transposed[0].output_padding
        return nn.ConvTranspose2d(first.in_channels, second.out_channels, **settings)
    if padded:
        settings["padding_mode"] = padded[0].padding_mode
    return nn.Conv2d(first.in_channels, second.out_channels, **settings)


def _is_idle(layer: Convolution, axis: int) -> bool:
    """Whether the layer leaves an axis of the image as it is."""
    return (
        layer.kernel_size[axis] == layer.stride[axis] == 1 and _padding(layer, axis) == layer.output_padding[axis] == 0
    )


def _padding(layer: Convolution, axis: int) -> int | None:
    """Of both sides of an axis; None where they differ (``padding="same"`` of an even kernel)."""
    if layer.padding == "valid":
        return 0
    if layer.padding == "same":
        whole = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        return None if whole % 2 else whole // 2
    return int(layer.padding[axis])


def _merge(first: FactorableLayer, second: FactorableLayer) -> FactorableLayer:
    """One layer with the weights of both, multiplied in float64."""
    merged = _outline(first, second)
    assert merged is not None
    merged = merged.to_empty(device=first.weight.device).eval()
    before, after = _blocks(first), _blocks(second)  # (groups, O, M, kh, kw) and (groups, M, I, kh, kw)
    weight = torch.einsum("gomab,gmicd->goiacbd", after, before).flatten(5).flatten(3, 4).flatten(0, 1)
    set_convolution_weight(merged, weight.reshape(convolution_weight(merged).shape))
    if merged.bias is not None:
        bias = torch.zeros_like(merged.bias, dtype=torch.double) if second.bias is None else second.bias.double()
        if first.bias is not None:
            carried = first.bias.double().reshape(len(before), -1)
            bias = bias + torch.einsum("gomab,gm->go", after, carried).flatten()
        merged.bias.copy_(bias)
    return merged.requires_grad_(first.weight.requires_grad)


def _blocks(layer: FactorableLayer) -> Tensor:
    """The weight of each group by itself, ``(groups, O/groups, I/groups, kh, kw)``, in float64."""
    weight = convolution_weight(layer).double()
    if isinstance(layer, nn.Linear):
        return weight[None, :, :, None, None]
    return weight.unflatten(0, (layer.groups, -1))
