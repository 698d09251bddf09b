"""Cut the patches that a layer's kernel covers out of the layer's input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Positions = tuple[Tensor, Tensor, Tensor]
"""Indices of N positions: image, row and column, ``(N,)`` each, on the CPU."""


def as_images(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Return a layer's input or output as ``(N, C, H, W)``; a Linear gets ``(N, C, positions, 1)``."""
    if not isinstance(layer, nn.Linear):
        return tensor
    rows = tensor if tensor.dim() > 1 else tensor.unsqueeze(0)
    return rows.reshape(len(rows), math.prod(rows.shape[1:-1]), rows.shape[-1]).movedim(2, 1).unsqueeze(3)


def sample_positions(images: Tensor, size: tuple[int, int], limit: int, generator: torch.Generator) -> Positions:
    """Return all positions of the given images, or a random sample of ``limit`` if there are more.

    Args:
        images: indices of the images, 1-D.
        size: height and width of an image.
        limit: size of the sample, at least 1.
        generator: random number generator of the sample.
    """
    sizes = (len(images), *size)
    total = math.prod(sizes)
    flat = torch.arange(total) if total <= limit else torch.randint(total, (limit,), generator=generator)
    image, y, x = torch.unravel_index(flat, sizes)
    return images[image], y, x


def repeated_inputs(inputs: Tensor, positions: Positions, kernel: tuple[int, ...]) -> Tensor:
    """Return the input at n of its positions, repeated for every element of the kernel.

    A transposed convolution multiplies each input position by the whole kernel in this way.

    Args:
        inputs: ``(N, I, H, W)``.
        positions: n positions of the input.
        kernel: ``(kh, kw)``.

    Returns:
        ``(n, I, kh, kw)``.
    """
    image, y, x = (index.to(inputs.device) for index in positions)
    return inputs.movedim(1, -1)[image, y, x][:, :, None, None].expand(-1, -1, *kernel)


def output_patches(layer: nn.Module, inputs: Tensor, positions: Positions) -> Tensor:
    """Return the input patches that a layer's kernel covers at n positions of its output.

    The layer's output at a position is the product of its weight (in a convolution's layout) and the patch, plus the
    bias. In a transposed convolution some elements of the kernel cover no input; the patch is 0 there.

    Args:
        layer: a Linear, a Conv2d or a ConvTranspose2d.
        inputs: input of the layer from :func:`as_images`, ``(N, I, H, W)``.
        positions: n positions of the output.

    Returns:
        ``(n, I, kh, kw)``.
    """
    if isinstance(layer, nn.Linear):
        return repeated_inputs(inputs, positions, (1, 1))
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    image, y, x = (index.to(inputs.device)[:, None, None] for index in positions)
    offsets = [
        torch.arange(k, device=inputs.device) * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
    ]
    down, right = offsets[0][None, :, None], offsets[1][None, None, :]
    if isinstance(layer, nn.Conv2d):
        padded = padded_input(layer, inputs)
        return padded.movedim(1, -1)[image, y * layer.stride[0] + down, x * layer.stride[1] + right].movedim(-1, 1)
    rows, in_rows = _sources(y - down, layer, 0, inputs.shape[2])
    columns, in_columns = _sources(x - right, layer, 1, inputs.shape[3])
    found = inputs.movedim(1, -1)[image, rows, columns].movedim(-1, 1)
    return torch.where((in_rows & in_columns)[:, None], found, 0.0)


def _sources(targets: Tensor, layer: nn.ConvTranspose2d, axis: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the input index that one element of a transposed kernel maps to each target, and whether there is one."""
    stride = layer.stride[axis]
    sources = (targets + int(layer.padding[axis])) // stride
    exact = sources * stride == targets + int(layer.padding[axis])
    return sources.clamp(0, size - 1), exact & (sources >= 0) & (sources < size)


def reaches_output(layer: nn.ConvTranspose2d, axis: int, inputs: Tensor, output: Tensor) -> Tensor:
    """Whether each element of a transposed kernel maps each input position inside the output, along one axis.

    Returns:
        ``(k, input size)``, boolean.
    """
    starts = torch.arange(inputs.shape[2 + axis], device=inputs.device) * layer.stride[axis]
    offsets = torch.arange(layer.kernel_size[axis], device=inputs.device) * layer.dilation[axis]
    targets = starts + offsets[:, None] - int(layer.padding[axis])
    return (targets >= 0) & (targets < output.shape[2 + axis])


def padded_input(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Pad the input as the layer does."""
    if isinstance(layer.padding, str):
        needed = [
            d * (k - 1) if layer.padding == "same" else 0
            for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
        ]
        height, width = ((total // 2, total - total // 2) for total in needed)
    else:
        height, width = ((padding, padding) for padding in layer.padding)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return nn.functional.pad(inputs, (*width, *height), mode=mode)
