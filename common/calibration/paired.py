"""Pair a layer's input in the compressed network with its output in the dense network, at the same positions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.calibration.moments import held_out_images
from common.calibration.patches import Positions, as_images, output_patches, sample_positions
from common.calibration.pausing import PausedPass, Waiting
from common.network.effective import EffectiveLayer
from common.network.kinds import FactorableLayer, group_count
from common.network.layers import effective_layers, layer_input
from common.network.lowrank import LowRank
from common.network.modes import hooked
from common.network.passes import explained
from common.network.weights import convolution_weight

ROWS = 16384
"""Rows to sample for each layer, if the images have so many."""
MOST_OUTPUTS = 2**28
"""Limit on the dense outputs held in memory, in numbers of 4 bytes."""
MOST_WAITING = 2**30
"""Limit on the activations that waiting passes of the compressed network hold, in bytes."""
HELD_INPUTS = 3
"""What a waiting pass is expected to hold, in the largest inputs of a layer: with shortcuts it is more than one."""


@dataclass(frozen=True)
class PairedLayer:
    """A layer of the compressed network, and what it computes in the dense network.

    Attributes:
        module: the module in the compressed network.
        dense: what the layer computes in the dense network.
        factors: the layers that run in the compressed network, in order; the dense layer itself if it stayed.
    """

    module: nn.Module
    dense: EffectiveLayer
    factors: tuple[FactorableLayer, ...]

    @property
    def groups(self) -> int:
        """The number of groups of every factor."""
        return group_count(self.dense.layer)

    @property
    def weights(self) -> list[Tensor]:
        """The factors' weights in a convolution's layout."""
        return [convolution_weight(factor).detach() for factor in self.factors]

    @property
    def patch_size(self) -> int:
        """The number of elements of one group's patch."""
        return convolution_weight(self.dense.layer)[0].numel()


def paired_layers(model: nn.Module, dense: nn.Module) -> dict[str, PairedLayer]:
    """The factored layers of ``model``, and the plain ones that stayed dense, by name."""
    originals, plain = effective_layers(dense)[0], effective_layers(model)[0]
    found = {}
    for name, module in model.named_modules():
        if name in originals and isinstance(module, LowRank):
            found[name] = PairedLayer(module, originals[name], module.factors)
        elif name in originals and name in plain and plain[name].layer is module:
            found[name] = PairedLayer(module, originals[name], (plain[name].layer,))
    return found


class Call(NamedTuple):
    """The dense network's outputs in one call of a layer, at N sampled positions.

    Attributes:
        positions: the image and the place on each of its axes, for each position.
        outputs: ``(N, O)``, float32.
        held_out: ``(N,)``, whether the row's image is held out.
    """

    positions: Positions
    outputs: Tensor
    held_out: Tensor


@dataclass
class DenseOutputs:
    """The dense network's outputs at random positions, from one pass over the batches.

    Args:
        layers: the layers to record, by name.
        seed: random seed of the positions.

    Attributes:
        calls: layer -> batch -> calls of the layer. The layers are in the order in which they run.
        widest: batch -> size of the largest input of a layer, in bytes.
    """

    layers: Mapping[str, PairedLayer]
    seed: int = 0
    calls: dict[str, dict[int, list[Call]]] = field(default_factory=dict)
    widest: dict[int, int] = field(default_factory=dict)

    def record(self, dense: nn.Module, inputs: Sequence[Tensor]) -> None:
        """Run the dense network on every batch and record its outputs."""
        modules, total, seen = dict(dense.named_modules()), sum(map(len, inputs)), 0
        generator = torch.Generator().manual_seed(self.seed)
        for batch, x in enumerate(inputs):
            flags = held_out_images(seen, len(x))
            handles = [
                modules[name].register_forward_hook(
                    partial(self._add, name, batch, flags, len(x) / total, generator), with_kwargs=True
                )
                for name in self.layers
            ]
            with hooked(handles), explained(x):
                dense(x)
            seen += len(x)

    def _add(
        self,
        name: str,
        batch: int,
        flags: Tensor,
        share: float,
        generator: torch.Generator,
        *called: Any,
    ) -> None:
        """Record one call, as a forward hook; ``called`` holds the module, its arguments and its output."""
        _, given, named, output = called
        layer = self.layers[name].dense.layer
        self.widest[batch] = max(self.widest.get(batch, 0), layer_input(given, named).nbytes)
        output = as_images(layer, output)
        limit = max(1, int(share * self._rows))
        positions = sample_positions(torch.arange(len(output)), output.shape[2:], limit, generator)
        places = tuple(index.to(output.device) for index in positions)
        repeats, rest = divmod(len(output), len(flags))
        of_rows = flags.repeat_interleave(repeats) if not rest else held_out_images(0, len(output))
        call = Call(positions, output.movedim(1, -1)[places].float(), of_rows[positions[0]])
        self.calls.setdefault(name, {}).setdefault(batch, []).append(call)

    @cached_property
    def _rows(self) -> int:
        """The number of rows to sample for each layer over all batches."""
        outputs = sum(len(convolution_weight(paired.dense.layer)) for paired in self.layers.values())
        return min(ROWS, MOST_OUTPUTS // max(1, outputs))


class CompressedInputs:
    """The inputs that layers get in the compressed network, while the layers before them are being fitted.

    A batch's pass waits before each layer until that is fitted, so that one pass serves all layers. Passes that wait
    hold activations. Batches beyond ``MOST_WAITING`` bytes, and layers that run more than once in a pass, take a new
    pass up to each layer instead. The result is the same.

    Args:
        model: the compressed network, in evaluation mode.
        layers: its layers to fit, by name, in the order in which they run.
        recorded: the dense network's outputs.
        inputs: the batches.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, PairedLayer], recorded: DenseOutputs, inputs: Sequence[Tensor]
    ) -> None:
        self.model, self.layers, self.recorded, self.inputs = model, layers, recorded, inputs
        held = np.cumsum([HELD_INPUTS * recorded.widest.get(batch, 0) for batch in range(len(inputs))])
        modules = {name: layer.module for name, layer in layers.items()}
        self._passes = {
            batch: PausedPass(model, x, modules) for batch, x in enumerate(inputs) if held[batch] <= MOST_WAITING
        }
        self._order = list(layers)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> CompressedInputs:
        for each in self._passes.values():
            self._stack.enter_context(each)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def rows(self, name: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the rows of a layer, batch by batch. All layers before it must have been fitted.

        Yields:
            Patches of the layer's input in the compressed network ``(N, I, kh, kw)``, outputs of the dense network
            ``(N, O)``, and flags ``(N,)`` for rows of held-out images.
        """
        layer, calls = self.layers[name], self.recorded.calls.pop(name)
        for batch, x in enumerate(self.inputs):
            expected = calls.get(batch, [])
            waiting = self._waiting(batch, name)
            if waiting and len(expected) == 1:
                found = [_patches(layer, expected[0], waiting.given, waiting.named)]
            else:
                found = self._new_pass(layer, expected, x)
            for patches, call in zip(found, expected, strict=False):
                yield patches, call.outputs, call.held_out.to(patches.device)

    def _waiting(self, batch: int, name: str) -> Waiting | None:
        """Let a batch's pass run on to the next layer that is not fitted; return the call if it is that layer's."""
        if batch not in self._passes:
            return None
        this, fitted = self._passes[batch], self._order[: self._order.index(name)]
        waiting = this.waiting or this.advance()
        while waiting and waiting.name in fitted:
            waiting = this.advance()
        return waiting if waiting and waiting.name == name else None

    def _new_pass(self, layer: PairedLayer, expected: Sequence[Call], x: Tensor) -> list[Tensor]:
        """Run the network on a batch up to the last call of a layer; return the patches of each call."""
        found: list[Tensor] = []
        handle = layer.module.register_forward_pre_hook(
            partial(_take_patches, layer, expected, found), with_kwargs=True
        )
        with hooked([handle]), contextlib.suppress(_ReachedError):
            self.model(x)
        return found


class _ReachedError(Exception):
    """The layer has run; the rest of the pass is not needed."""


def _take_patches(
    layer: PairedLayer,
    expected: Sequence[Call],
    found: list[Tensor],
    _: nn.Module,
    given: tuple[Tensor, ...],
    named: Mapping[str, Tensor],
) -> None:
    """Cut the patches out of the layer's input, as a forward pre-hook; end the pass after the last expected call."""
    if len(found) < len(expected):
        found.append(_patches(layer, expected[len(found)], given, named))
    if len(found) == len(expected):
        raise _ReachedError


def _patches(layer: PairedLayer, call: Call, given: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> Tensor:
    """Cut the patches at the recorded positions out of the layer's input."""
    images = as_images(layer.dense.layer, layer.dense.input(layer_input(given, named)))
    return output_patches(layer.dense.layer, images, call.positions).float()
