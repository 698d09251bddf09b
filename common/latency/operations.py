"""The single operations of a layer, dense or factored. Each can be timed in isolation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from common.decomposition import DECOMPOSITIONS
from common.network.shapes import LayerShape, Size

DENSE = ((True, True),)
"""Kernel axes of a dense layer, as if it were its only factor."""


@dataclass(frozen=True)
class Operation:
    """A convolution or matrix product, as far as its time depends on it; hashable.

    Attributes:
        channels: ``(in, out)``.
        kernel: ``(kh, kw)``.
        before, after: ``(h, w)`` of the input and of the output; ``(positions, 1)`` for a Linear.
        groups: as in ``Conv2d``.
        transposed: whether it is a transposed convolution.
        linear: whether it is a Linear.
    """

    channels: tuple[int, int]
    kernel: Size
    before: Size
    after: Size
    groups: int = 1
    transposed: bool = False
    linear: bool = False

    @property
    def stride(self) -> Size:
        """Stride that leads from the input's size to the output's, on each axis at least 1."""
        return self._axes(lambda k, small, large: max(1, round(large / small)))

    @property
    def padding(self) -> Size:
        """Padding of both sides of each axis with which the sizes fit."""
        strides = iter(self.stride)
        return self._axes(lambda k, small, large: max(0, math.ceil(((small - 1) * next(strides) + k - large) / 2)))

    @property
    def output_padding(self) -> Size:
        """What a transposed convolution lacks to reach its output's size, at most the stride less 1."""
        strides, padding = iter(self.stride), iter(self.padding)

        def lacking(k: int, small: int, large: int) -> int:
            step = next(strides)
            return min(max(0, large - ((small - 1) * step - 2 * next(padding) + k)), step - 1)

        return self._axes(lacking)

    @property
    def positions(self) -> int:
        """Positions at which every weight multiplies: of the output, or of a transposed convolution's input."""
        rows, columns = self.before if self.transposed else self.after
        return rows * columns

    def _axes(self, value: Callable[[int, int, int], int]) -> Size:
        """``value`` of the kernel, the smaller and the larger size, on both axes."""
        sizes = (self.after, self.before) if not self.transposed else (self.before, self.after)
        first, second = (value(k, small, large) for k, small, large in zip(self.kernel, *sizes, strict=True))
        return first, second

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the input of a batch: ``(N, C, H, W)``, or ``(N * positions, C)`` for a Linear."""
        inputs, (height, width) = self.channels[0], self.before
        return (batch * height, inputs) if self.linear else (batch, inputs, height, width)

    def to_json(self) -> list[Any]:
        """The operation as plain values."""
        flags = [self.groups, self.transposed, self.linear]
        return [*self.channels, *self.kernel, *self.before, *self.after, *flags]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> Operation:
        """The operation that :meth:`to_json` wrote.

        Raises:
            ValueError: these are not the values of an operation.
        """
        *sizes, transposed, linear = values
        i, o, kh, kw, h, w, new_h, new_w, groups = (int(size) for size in sizes)
        return cls((i, o), (kh, kw), (h, w), (new_h, new_w), groups, bool(transposed), bool(linear))


def layer_operations(shape: LayerShape, method: str | None) -> list[list[Operation]]:
    """The operations that a layer becomes by ``method`` (None: stays dense): for each factor, one for each call.

    The ranks are still open: the channels between two factors stand as 0, see :func:`with_widths`.
    """
    axes = DENSE if method is None else DECOMPOSITIONS[method].axes
    widths = (shape.channels[0], *[0] * (len(axes) - 1), shape.channels[1])
    factors: list[list[Operation]] = [[] for _ in axes]
    for size, after in (tuple(map(_whole, sizes)) for sizes in shape.calls):
        for place, (channels, (height, width)) in enumerate(zip(pairwise(widths), axes, strict=True)):
            kernel = (shape.kernel[0] if height else 1, shape.kernel[1] if width else 1)
            new = (after[0] if height else size[0], after[1] if width else size[1])
            moves = shape.transposed and (height or width)
            factors[place].append(Operation(channels, kernel, size, new, shape.groups, moves, shape.linear))
            size = new
    return factors


def _whole(size: Size) -> Size:
    """A row that several inputs share takes the time of a whole row."""
    return math.ceil(size[0]), math.ceil(size[1])


def with_widths(operation: Operation, inputs: int, outputs: int) -> Operation:
    """The operation with these channels where its own are open; ranks count for one group."""
    own, groups = operation.channels, operation.groups
    return replace(operation, channels=(own[0] or inputs * groups, own[1] or outputs * groups))


def merged(*operations: Operation) -> Operation:
    """One operation in place of several that follow each other; on each axis only one of them has a kernel."""
    first, last = operations[0], operations[-1]
    heights, widths = zip(*(operation.kernel for operation in operations), strict=True)
    return replace(
        first,
        channels=(first.channels[0], last.channels[1]),
        kernel=(max(heights), max(widths)),
        after=last.after,
        transposed=any(operation.transposed for operation in operations),
    )
