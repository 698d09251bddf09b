"""What the kernel of a layer meets, cut out of the layer's input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Places = tuple[Tensor, Tensor, Tensor]
"""Indices of an image, a row and a column, ``(N,)`` each, on the CPU."""


def as_images(layer: nn.Module, tensor: Tensor) -> Tensor:
    """What a layer takes or puts out as ``(N, C, H, W)``; the positions of a Linear stand as ``(positions, 1)``."""
    if not isinstance(layer, nn.Linear):
        return tensor
    rows = tensor if tensor.dim() > 1 else tensor.unsqueeze(0)
    return rows.reshape(len(rows), math.prod(rows.shape[1:-1]), rows.shape[-1]).movedim(2, 1).unsqueeze(3)


def draw_places(images: Tensor, size: tuple[int, int], most: int, generator: torch.Generator) -> Places:
    """All positions of these images, or ``most`` of them at random where there are more.

    Args:
        images: their indices, 1-D.
        size: height and width of an image.
        most: at least 1.
        generator: of random numbers.
    """
    sizes = (len(images), *size)
    total = math.prod(sizes)
    places = torch.arange(total) if total <= most else torch.randint(total, (most,), generator=generator)
    image, y, x = torch.unravel_index(places, sizes)
    return images[image], y, x


def single_positions(inputs: Tensor, places: Places, kernel: tuple[int, ...]) -> Tensor:
    """The input ``(N, I, H, W)`` at places of its own, the same at every element of the kernel: ``(n, I, kh, kw)``.

    This is what an input position of a transposed convolution gives to its kernel.
    """
    image, y, x = (index.to(inputs.device) for index in places)
    return inputs.movedim(1, -1)[image, y, x][:, :, None, None].expand(-1, -1, *kernel)


def met_patches(layer: nn.Module, inputs: Tensor, places: Places) -> Tensor:
    """What the elements of a layer's kernel meet at places of its output, ``(n, I, kh, kw)``.

    The layer's output there is the product of its weight, laid out as that of a convolution, with these patches and
    its bias. At an output position of a transposed convolution some elements meet nothing, and have 0.

    Args:
        layer: a Linear, a Conv2d or a ConvTranspose2d.
        inputs: as :func:`as_images` gives them.
        places: of the output.
    """
    if isinstance(layer, nn.Linear):
        return single_positions(inputs, places, (1, 1))
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    image, y, x = (index.to(inputs.device)[:, None, None] for index in places)
    offsets = [
        torch.arange(k, device=inputs.device) * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
    ]
    down, right = offsets[0][None, :, None], offsets[1][None, None, :]
    if isinstance(layer, nn.Conv2d):
        padded = pad(layer, inputs)
        return padded.movedim(1, -1)[image, y * layer.stride[0] + down, x * layer.stride[1] + right].movedim(-1, 1)
    rows, in_rows = _sources(y - down, layer, 0, inputs.shape[2])
    columns, in_columns = _sources(x - right, layer, 1, inputs.shape[3])
    found = inputs.movedim(1, -1)[image, rows, columns].movedim(-1, 1)
    return torch.where((in_rows & in_columns)[:, None], found, 0.0)


def _sources(targets: Tensor, layer: nn.ConvTranspose2d, axis: int, size: int) -> tuple[Tensor, Tensor]:
    """The input positions that one element of a transposed kernel brings to ``targets``, and whether there are any."""
    stride = layer.stride[axis]
    places = (targets + int(layer.padding[axis])) // stride
    exact = places * stride == targets + int(layer.padding[axis])
    return places.clamp(0, size - 1), exact & (places >= 0) & (places < size)


def targets_inside(layer: nn.ConvTranspose2d, axis: int, inputs: Tensor, output: Tensor) -> Tensor:
    """``(k, size of the input)``: whether what an element of the kernel makes of a position lies inside the output."""
    places = torch.arange(inputs.shape[2 + axis], device=inputs.device) * layer.stride[axis]
    offsets = torch.arange(layer.kernel_size[axis], device=inputs.device) * layer.dilation[axis]
    targets = places + offsets[:, None] - int(layer.padding[axis])
    return (targets >= 0) & (targets < output.shape[2 + axis])


def pad(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """The input with the layer's own padding around it."""
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
