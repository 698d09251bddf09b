"""Pair a layer's input in the compressed network with its output in the dense network, at the same positions."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.calibration.moments import held_out_images
from common.calibration.patches import Positions, as_images, output_patches, sample_positions
from common.network.effective import EffectiveLayer
from common.network.inputs import for_one_pass
from common.network.kinds import FactorableLayer, group_count
from common.network.layers import effective_layers, layer_input
from common.network.lowrank import LowRank
from common.network.modes import hooked
from common.network.passes import explained
from common.network.state import Attributes
from common.network.weights import convolution_weight

ROWS = 16384
"""Rows to sample for each layer, if the images have so many."""
MOST_OUTPUTS = 2**28
"""Limit on the dense outputs held in memory, in numbers of 4 bytes."""


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
        images: the number of images in the call.
    """

    positions: Positions
    outputs: Tensor
    held_out: Tensor
    images: int


class Rows(NamedTuple):
    """A layer's inputs in the compressed network and its outputs in the dense one, at N positions.

    Attributes:
        patches: of the input in the compressed network, ``(N, I, kh, kw)``.
        outputs: of the dense network, ``(N, O)``.
        held_out: ``(N,)``, whether the row's image is held out.
    """

    patches: Tensor
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
        held: the most bytes that the first batch's pass held at a call of a layer, over its images.
    """

    layers: Mapping[str, PairedLayer]
    seed: int = 0
    calls: dict[str, dict[int, list[Call]]] = field(default_factory=dict)
    held: float = 0.0
    _alive: list[weakref.ref[Tensor]] = field(default_factory=list)

    def record(self, dense: nn.Module, inputs: Sequence[Tensor]) -> None:
        """Run the dense network on every batch and record its outputs."""
        modules, total, seen = dict(dense.named_modules()), sum(map(len, inputs)), 0
        generator = torch.Generator().manual_seed(self.seed)
        for batch, x in enumerate(inputs):
            flags = held_out_images(seen, len(x))
            handles = [
                modules[name].register_forward_hook(
                    partial(self._add, name, batch, flags, len(x) / total, generator),
                    with_kwargs=True,
                    prepend=True,  # before the network's own hooks, which run behind the factors as well
                )
                for name in self.layers
            ]
            if not batch:
                handles += [
                    module.register_forward_hook(self._remember)
                    for module in modules.values()
                    if not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
                ]
            with hooked(handles), explained(x):
                dense(for_one_pass(x))
            self._hold_out_single_images(batch, flags)
            seen += len(x)

    def _hold_out_single_images(self, batch: int, flags: Tensor) -> None:
        """Set which rows are held out where the network calls a layer image by image, as often for each."""
        for calls in (calls for by_batch in self.calls.values() if (calls := by_batch.get(batch))):
            if len(flags) > 1 and all(call.images == 1 for call in calls) and len(calls) % len(flags) == 0:
                of_calls = flags.repeat_interleave(len(calls) // len(flags))
                calls[:] = [
                    call._replace(held_out=flag.expand(len(call.outputs)))
                    for call, flag in zip(calls, of_calls, strict=True)
                ]

    def _remember(self, _: nn.Module, __: object, output: object) -> None:
        """Remember a module's output without keeping it, as a forward hook."""
        if isinstance(output, Tensor):
            self._alive = [each for each in self._alive if each() is not None]
            self._alive.append(weakref.ref(output))

    def _measure_held(self, now: Sequence[Tensor], images: int) -> None:
        """Count the bytes of the tensors ``now`` in use and of all outputs that are still needed."""
        tensors = [*now, *(tensor for each in self._alive if (tensor := each()) is not None)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        self.held = max(self.held, sum(storages.values()) / images)

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
        if not batch:
            self._measure_held([layer_input(given, named), output], len(flags))
        output = as_images(layer, output)
        limit = max(1, int(share * self._rows))
        positions = sample_positions(torch.arange(len(output)), output.shape[2:], limit, generator)
        places = tuple(index.to(output.device) for index in positions)
        repeats, rest = divmod(len(output), len(flags))
        of_rows = flags.repeat_interleave(repeats) if not rest else held_out_images(0, len(output))
        call = Call(positions, output.movedim(1, -1)[places].float(), of_rows[positions[0]], len(output))
        self.calls.setdefault(name, {}).setdefault(batch, []).append(call)

    @cached_property
    def _rows(self) -> int:
        """The number of rows to sample for each layer over all batches."""
        outputs = sum(len(convolution_weight(paired.dense.layer)) for paired in self.layers.values())
        return min(ROWS, MOST_OUTPUTS // max(1, outputs))


class _ReachedError(Exception):
    """The layer has run; the rest of the pass is not needed."""


class OtherRouteError(Exception):
    """The compressed network calls a layer less often than the dense one, or with another number of images."""


def paired_rows(
    model: nn.Module, layer: PairedLayer, calls: Mapping[int, Sequence[Call]], inputs: Sequence[Tensor]
) -> Iterator[Rows]:
    """Run the compressed network up to a layer, batch by batch.

    Args:
        model: the compressed network.
        layer: one of its layers.
        calls: batch -> the dense network's calls of this layer.
        inputs: the batches.

    Raises:
        OtherRouteError: the layer does not get the same images as in the dense network.
    """
    for batch, x in enumerate(inputs):
        expected = calls.get(batch, ())
        found: list[Tensor] = []
        handle = layer.module.register_forward_pre_hook(
            partial(_take_patches, layer, expected, found), with_kwargs=True
        )
        attributes = Attributes(model)
        try:
            with hooked([handle]):
                model(for_one_pass(x))
        except (_ReachedError, OtherRouteError) as ended:
            attributes.restore()
            if isinstance(ended, OtherRouteError):
                raise
        if len(found) < len(expected):
            raise OtherRouteError
        for patches, call in zip(found, expected, strict=True):
            yield Rows(patches, call.outputs, call.held_out.to(patches.device))


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
        images = layer_images(layer, given, named)
        if len(images) != expected[len(found)].images:
            raise OtherRouteError
        found.append(patches_at(layer, images, expected[len(found)]))
    if len(found) == len(expected):
        raise _ReachedError


def layer_images(layer: PairedLayer, given: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> Tensor:
    """The layer's input in a call with these arguments, with an axis for the images first."""
    return as_images(layer.dense.layer, layer.dense.input(layer_input(given, named)))


def patches_at(layer: PairedLayer, images: Tensor, call: Call) -> Tensor:
    """Cut the patches at a call's positions out of the layer's input: ``(N, I, kh, kw)``, float32."""
    return output_patches(layer.dense.layer, images, call.positions).float()
