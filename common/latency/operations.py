"""The single operations that a layer becomes, dense or factored: what a runtime's clock is read for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from common.decomposition import DECOMPOSITIONS
from common.network.shapes import LayerShape, Size

DENSE = ((True, True),)
RUNTIMES = ("eager", "channels_last", "onnxruntime")
"""Runtimes that run one operation after the other, so that the time of each can be told."""


@dataclass(frozen=True)
class Operation:
    """A convolution or matrix product, as far as its time depends on it; hashable.

    Attributes:
        channels: ``(in, out)``.
        kernel: ``(kh, kw)``.
        before, after: ``(h, w)`` of the input and of the output; a Linear's stand as ``(positions, 1)``.
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
        """What leads from the input's size to the output's, on each axis at least 1."""
        return self._axes(lambda k, small, large: max(1, round(large / small)))

    @property
    def padding(self) -> Size:
        """Of both sides of each axis, so that the sizes fit."""
        strides = iter(self.stride)
        return self._axes(lambda k, small, large: max(0, math.ceil(((small - 1) * next(strides) + k - large) / 2)))

    def _axes(self, value: Any) -> Size:
        sizes = (self.after, self.before) if not self.transposed else (self.before, self.after)
        first, second = (value(k, small, large) for k, small, large in zip(self.kernel, *sizes, strict=True))
        return first, second

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
    """What a layer becomes by ``method`` (None: stays dense): for each of its factors, one operation a call.

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
    """What inputs share of a row takes the time of a whole one."""
    return math.ceil(size[0]), math.ceil(size[1])


def with_widths(operation: Operation, inputs: int, outputs: int) -> Operation:
    """The operation with these channels where its own are open; ranks count for one group."""
    own, groups = operation.channels, operation.groups
    return replace(operation, channels=(own[0] or inputs * groups, own[1] or outputs * groups))


def merged(*operations: Operation) -> Operation:
    """What operations that follow each other are as one; on each axis only one of them has a kernel."""
    first, last = operations[0], operations[-1]
    heights, widths = zip(*(operation.kernel for operation in operations), strict=True)
    return replace(
        first,
        channels=(first.channels[0], last.channels[1]),
        kernel=(max(heights), max(widths)),
        after=last.after,
        transposed=any(operation.transposed for operation in operations),
    )
