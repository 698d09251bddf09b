"""Rows for every layer from one pass of the compressed network, which waits at each layer until that is fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from common.calibration.paired import (
    DenseOutputs,
    OtherRouteError,
    PairedLayer,
    Rows,
    layer_images,
    paired_rows,
    patches_at,
)
from common.calibration.pausing import PausedPass, Waiting

MOST_HELD = 2**30
"""Limit on the activations of the pass, in bytes. Without waiting, one batch at a time is in memory."""
TOLERANCE = 1e-3
"""Largest difference of the last layer's patches from those of new passes, relative to their norm. Rounding gives
1e-5 or less."""


class DiffersError(Exception):
    """The network does not compute in one waiting pass what it computes in a pass for each batch."""


def can_wait(recorded: DenseOutputs, layers: Mapping[str, PairedLayer], inputs: Sequence[Tensor]) -> bool:
    """Whether all batches can be taken together in one pass that waits.

    Every layer must run once in each pass. On a GPU, or under autocast, each layer takes passes of its own, since
    streams and autocast are settings of a thread.

    Args:
        recorded: the dense network's outputs.
        layers: the layers to fit, by name.
        inputs: the batches.
    """
    alike = {(x.shape[1:], x.dtype, x.device) for x in inputs}
    usual = torch.get_default_device().type == "cpu" and not torch.is_autocast_enabled("cpu")
    small = recorded.held * sum(map(len, inputs)) <= MOST_HELD
    once = all(len(recorded.calls[name].get(batch, ())) == 1 for name in layers for batch in range(len(inputs)))
    return len(alike) == 1 and inputs[0].device.type == "cpu" and usual and small and once


class WaitingRows:
    """One pass over all batches together, which waits before each layer until that is fitted.

    A network may keep something of a layer that is fitted later, or may mix images. So the patches of the last layer
    are compared with those of new passes.

    Args:
        model: the compressed network, in evaluation mode.
        layers: its layers to fit, by name, in the order in which they run.
        recorded: the dense network's outputs.
        inputs: the batches, for which :func:`can_wait` holds.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, PairedLayer], recorded: DenseOutputs, inputs: Sequence[Tensor]
    ) -> None:
        self._model, self._layers, self._recorded, self._inputs = model, layers, recorded, inputs
        modules = {name: layer.module for name, layer in layers.items()}
        self._pass = PausedPass(model, torch.cat(list(inputs)), modules)
        self._last = list(layers)[-1]

    def __enter__(self) -> WaitingRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pass.give_up()

    def rows(self, name: str) -> Iterator[Rows]:
        """Yield the rows of a layer, batch by batch. The layers before it must have been fitted, in order.

        Raises:
            DiffersError: the network does not compute what it computes in a pass for each batch.
        """
        layer, calls = self._layers[name], self._recorded.calls[name]
        waiting = self._advance(name)
        images = layer_images(layer, waiting.given, waiting.named)
        repeats, rest = divmod(len(images), sum(map(len, self._inputs)))
        if rest:
            raise DiffersError
        parts = images.split([len(x) * repeats for x in self._inputs])
        if any(len(part) != calls[batch][0].images for batch, part in enumerate(parts)):
            raise DiffersError
        rows = [
            Rows(patches_at(layer, part, call), call.outputs, call.held_out)
            for part, (call,) in zip(parts, (calls[batch] for batch in range(len(parts))), strict=True)
        ]
        if name == self._last:
            self._pass.give_up()
            self._compare(rows)
        yield from rows

    def _advance(self, name: str) -> Waiting:
        """Let the pass run on to a layer, past those that needed no rows."""
        order = list(self._layers)
        try:
            waiting = self._pass.advance()
            while waiting and waiting.name in order[: order.index(name)]:
                waiting = self._pass.advance()
        except Exception as error:  # e.g. of a network for batches of one size
            raise DiffersError from error
        if waiting is None or waiting.name != name:
            raise DiffersError
        return waiting

    def _compare(self, rows: Sequence[Rows]) -> None:
        """Raise a DiffersError unless new passes give the last layer the same patches."""
        name = self._last
        try:
            new = list(paired_rows(self._model, self._layers[name], self._recorded.calls[name], self._inputs))
        except OtherRouteError as error:
            raise DiffersError from error
        for ours, theirs in zip(rows, new, strict=True):
            if not (ours.patches - theirs.patches).norm() <= TOLERANCE * theirs.patches.norm():
                raise DiffersError
