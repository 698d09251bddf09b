"""The single operations of a layer, dense or factored. Each can be timed in isolation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from common.decomposition import DECOMPOSITIONS, own_axes
from common.network.shapes import LayerShape, Size, size_after

DENSE = ((True, True),)
"""Kernel axes of a dense layer, as if it were its only factor."""


@dataclass(frozen=True)
class Operation:
    """A convolution or matrix product, as far as its time depends on it; hashable.

    Attributes:
        channels: ``(in, out)``.
        kernel: a number for each axis, ``(kh, kw)`` in two dimensions.
        before, after: sizes of the input and of the output; ``(positions, 1)`` for a Linear.
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
        return math.prod(self.before if self.transposed else self.after)

    def _axes(self, value: Callable[[int, int, int], int]) -> Size:
        """``value`` of the kernel, the smaller and the larger size, on each axis."""
        sizes = (self.after, self.before) if not self.transposed else (self.before, self.after)
        return tuple(value(k, small, large) for k, small, large in zip(self.kernel, *sizes, strict=True))

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the input of a batch: ``(N, C, ...)``, or ``(N * positions, C)`` for a Linear."""
        inputs = self.channels[0]
        return (batch * self.before[0], inputs) if self.linear else (batch, inputs, *self.before)

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
        inputs, outputs, *lengths, groups = (int(size) for size in sizes)
        axes, rest = divmod(len(lengths), 3)
        if rest or not 1 <= axes <= 3:
            raise ValueError(f"{list(values)} has {len(values)} values; an operation of 1 to 3 axes has 8, 11 or 14")
        kernel, before, after = (tuple(lengths[axes * part : axes * (part + 1)]) for part in range(3))
        return cls((inputs, outputs), kernel, before, after, groups, bool(transposed), bool(linear))


def layer_operations(shape: LayerShape, method: str | None) -> list[list[Operation]]:
    """The operations that a layer becomes by ``method`` (None: stays dense): for each factor, one for each call.

    The ranks are still open: the channels between two factors stand as 0, see :func:`with_widths`.
    """
    axes = DENSE if method is None else DECOMPOSITIONS[method].axes
    widths = (shape.channels[0], *[0] * (len(axes) - 1), shape.channels[1])
    factors: list[list[Operation]] = [[] for _ in axes]
    for size, after in (tuple(map(_whole, sizes)) for sizes in shape.calls):
        for place, (channels, flags) in enumerate(zip(pairwise(widths), axes, strict=True)):
            own = own_axes(flags, len(shape.kernel))
            kernel = tuple(k if taken else 1 for k, taken in zip(shape.kernel, own, strict=True))
            new = size_after(size, after, own)
            moves = shape.transposed and any(own)
            factors[place].append(Operation(channels, kernel, size, new, shape.groups, moves, shape.linear))
            size = new
    return factors


def _whole(size: Size) -> Size:
    """A row that several inputs share takes the time of a whole row."""
    return tuple(map(math.ceil, size))


def with_widths(operation: Operation, inputs: int, outputs: int) -> Operation:
    """The operation with these channels where its own are open; ranks count for one group."""
    own, groups = operation.channels, operation.groups
    return replace(operation, channels=(own[0] or inputs * groups, own[1] or outputs * groups))


def merged(*operations: Operation) -> Operation:
    """One operation in place of several that follow each other; on each axis only one of them has a kernel."""
    first, last = operations[0], operations[-1]
    return replace(
        first,
        channels=(first.channels[0], last.channels[1]),
        kernel=tuple(map(max, zip(*(operation.kernel for operation in operations), strict=True))),
        after=last.after,
        transposed=any(operation.transposed for operation in operations),
    )
