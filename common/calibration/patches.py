"""Cut the patches that a layer's kernel covers out of the layer's input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from common.network.kinds import Convolution, FactorableLayer, TransposedConvolution, kernel_size, setting
from common.network.weights import planar

Positions = tuple[Tensor, ...]
"""Indices of N positions: the image and the place on each of its axes, ``(N,)`` each, on the CPU."""


def as_images(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Return a layer's input or output as ``(N, C, ...)``; a Linear gets ``(N, C, positions, 1)``."""
    if not isinstance(layer, nn.Linear):
        single = isinstance(layer, FactorableLayer) and tensor.dim() == len(kernel_size(layer)) + 1
        return tensor[None] if single else tensor
    rows = tensor if tensor.dim() > 1 else tensor.unsqueeze(0)
    return rows.reshape(len(rows), math.prod(rows.shape[1:-1]), rows.shape[-1]).movedim(2, 1).unsqueeze(3)


def sample_positions(images: Tensor, size: Sequence[int], limit: int, generator: torch.Generator) -> Positions:
    """Return all positions of the given images, or a random sample of ``limit`` if there are more.

    Args:
        images: indices of the images, 1-D.
        size: of an image, a number for each axis.
        limit: size of the sample, at least 1.
        generator: random number generator of the sample.
    """
    sizes = (len(images), *size)
    total = math.prod(sizes)
    flat = torch.arange(total) if total <= limit else torch.randint(total, (limit,), generator=generator)
    image, *places = torch.unravel_index(flat, sizes)
    return images[image], *places


def repeated_inputs(inputs: Tensor, positions: Positions, kernel: Sequence[int]) -> Tensor:
    """Return the input at n of its positions, repeated for every element of the kernel.

    A transposed convolution multiplies each input position by the whole kernel in this way.

    Args:
        inputs: ``(N, I, ...)``.
        positions: n positions of the input.
        kernel: its size on each axis.

    Returns:
        ``(n, I, kh, kw)``, with the axes of :func:`common.network.weights.convolution_weight`.
    """
    found = inputs.movedim(1, -1)[tuple(index.to(inputs.device) for index in positions)]
    return planar(found.reshape(*found.shape, *[1] * len(kernel)).expand(-1, -1, *kernel))


def output_patches(layer: FactorableLayer, inputs: Tensor, positions: Positions) -> Tensor:
    """Return the input patches that a layer's kernel covers at n positions of its output.

    The layer's output at a position is the product of its weight (in a convolution's layout) and the patch, plus the
    bias. In a transposed convolution some elements of the kernel cover no input; the patch is 0 there.

    Args:
        layer: a layer that can be factored.
        inputs: input of the layer from :func:`as_images`, ``(N, I, ...)``.
        positions: n positions of the output.

    Returns:
        ``(n, I, kh, kw)``, with the axes of :func:`common.network.weights.convolution_weight`.
    """
    if isinstance(layer, nn.Linear):
        return repeated_inputs(inputs, positions, (1, 1))
    dimensions = len(layer.kernel_size)
    image, *places = (index.to(inputs.device).reshape(-1, *[1] * dimensions) for index in positions)
    offsets = [
        _along(torch.arange(k, device=inputs.device) * d, axis, dimensions)
        for axis, (k, d) in enumerate(zip(layer.kernel_size, setting(layer, "dilation"), strict=True))
    ]
    if isinstance(layer, Convolution):
        padded = padded_input(layer, inputs).movedim(1, -1)
        covered = (
            place * s + offset for place, s, offset in zip(places, setting(layer, "stride"), offsets, strict=True)
        )
        return planar(padded[image, *covered].movedim(-1, 1))
    sources = [
        _sources(place - offset, layer, axis, inputs.shape[2 + axis])
        for axis, (place, offset) in enumerate(zip(places, offsets, strict=True))
    ]
    found = inputs.movedim(1, -1)[image, *(source for source, _ in sources)].movedim(-1, 1)
    inside = reduce(torch.logical_and, (inside for _, inside in sources))
    return planar(torch.where(inside[:, None], found, 0.0))


def _along(values: Tensor, axis: int, dimensions: int) -> Tensor:
    """Return 1-D ``values`` along one axis of the kernel, ``(1, ..., k, ..., 1)`` with ``1 + dimensions`` axes."""
    return values.reshape(*[1] * (1 + axis), -1, *[1] * (dimensions - axis - 1))


def _sources(targets: Tensor, layer: TransposedConvolution, axis: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the input index that one element of a transposed kernel maps to each target, and whether there is one."""
    stride = setting(layer, "stride")[axis]
    sources = (targets + setting(layer, "padding")[axis]) // stride
    exact = sources * stride == targets + setting(layer, "padding")[axis]
    return sources.clamp(0, size - 1), exact & (sources >= 0) & (sources < size)


def inputs_by_kernel(layer: TransposedConvolution, inputs: Tensor, output: Tensor) -> Tensor:
    """Sum the inputs that each element of a transposed kernel maps inside the output.

    Args:
        layer: the transposed convolution.
        inputs: ``(N, I, ...)``.
        output: ``(N, O, ...)``.

    Returns:
        ``(I, kh, kw)``, with the axes of :func:`common.network.weights.convolution_weight`, in float64.
    """
    total = inputs.double().sum(0)
    for axis in range(len(layer.kernel_size)):  # the first axis of the image goes, one of the kernel comes last
        total = torch.tensordot(total, _reaches_output(layer, axis, inputs, output).double(), ([1], [1]))
    return planar(total[None])[0]


def _reaches_output(layer: TransposedConvolution, axis: int, inputs: Tensor, output: Tensor) -> Tensor:
    """Whether each element of a transposed kernel maps each input position inside the output, along one axis.

    Returns:
        ``(k, input size)``, boolean.
    """
    starts = torch.arange(inputs.shape[2 + axis], device=inputs.device) * setting(layer, "stride")[axis]
    offsets = torch.arange(layer.kernel_size[axis], device=inputs.device) * setting(layer, "dilation")[axis]
    targets = starts + offsets[:, None] - setting(layer, "padding")[axis]
    return (targets >= 0) & (targets < output.shape[2 + axis])


def padded_input(layer: Convolution, inputs: Tensor) -> Tensor:
    """Pad the input as the layer does."""
    if isinstance(layer.padding, str):
        needed = [
            d * (k - 1) if layer.padding == "same" else 0
            for k, d in zip(layer.kernel_size, setting(layer, "dilation"), strict=True)
        ]
        sides = [(total // 2, total - total // 2) for total in needed]
    else:
        sides = [(padding, padding) for padding in setting(layer, "padding")]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return nn.functional.pad(inputs, [amount for side in reversed(sides) for amount in side], mode=mode)
