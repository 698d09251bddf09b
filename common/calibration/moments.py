"""``calibrate``: the moments of each layer's input and output on data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.calibration.patches import as_images, draw_places, met_patches, single_positions, targets_inside
from common.decomposition.moments import FEWEST_HELD_OUT, LayerMoments
from common.network.batches import Batches, inputs_of
from common.network.inputs import to_network
from common.network.layers import FactorableLayer, effective_layers, layer_input
from common.network.modes import evaluating, hooked
from common.network.passes import example_batch, explained

HELD_OUT = 512
"""Patches that are kept of each layer, at most, to measure errors on."""


@torch.no_grad()
def calibrate(model: nn.Module, batches: Batches, *, positions: int = 4096, seed: int = 0) -> dict[str, LayerMoments]:
    """Gather the moments of every layer's input and output in one pass over ``batches``.

    Outputs are summed over all positions, input patches over a random sample where there are many. Every eighth
    image, and every second of the first sixteen, is held out: :mod:`common.decomposition.choice` measures on
    ``HELD_OUT`` random patches of these whether the moments help.

    Memory, beside the network's own activations: each layer takes O^2 + I^2 numbers in float64, a Linear O^2 alone
    (134 MB for VGG16's first), and its held-out patches in float32 (9 MB for a 3x3 layer with 512 channels, 51 MB for
    VGG16's first Linear). One layer at a time takes a copy of its input and output and ``positions`` patches in
    float32 (75 MB for a 3x3 layer with 512 channels). No Gram matrix of whole patches is ever formed.

    Args:
        model: the dense network, run in evaluation mode; its training mode is left as it was.
        batches: input tensors, or pairs of (input, target); no target is read. Take the calibration split.
        positions: patches that are sampled from each batch, at most.
        seed: of the sample.

    Returns:
        Layer -> its moments, for the layers that the inputs passed.

    Warns:
        UserWarning: a layer saw too few patches; it will be decomposed by its weight alone.

    Raises:
        ValueError: there is no batch, one holds no inputs, ``positions`` is below 1, or a layer sees or puts out what
            is not finite.
    """
    if positions < 1:
        raise ValueError(f"positions={positions}: it must be at least 1")
    layers = effective_layers(model)[0]
    modules = dict(model.named_modules())
    sums = {name: _Sums(effective.layer, positions) for name, effective in layers.items()}
    generator = torch.Generator().manual_seed(seed)
    apart = torch.zeros(0, dtype=torch.bool)
    handles = [
        modules[name].register_forward_hook(
            lambda _, i, k, o, name=name, effective=effective: sums[name].add(
                effective.input(layer_input(i, k)), o, apart, generator
            ),
            with_kwargs=True,
            prepend=True,
        )
        for name, effective in layers.items()
    ]
    seen = 0
    with hooked(handles), evaluating(model):
        for batch in batches:
            inputs = to_network(example_batch(inputs_of(batch), model), model)
            apart = held_out_images(seen, len(inputs))
            with explained(inputs):
                model(inputs)
            seen += len(inputs)
    if not seen:
        raise ValueError("there is no batch to calibrate on")
    for name, total in sums.items():
        if not total.finite:
            raise ValueError(f"layer {name!r}: its inputs or outputs on the calibration data are not finite")
    found = {name: sums.pop(name).moments() for name in list(sums) if sums[name].outputs}
    _warn_of_too_few(found, seen)
    return found


def held_out_images(seen: int, count: int) -> Tensor:
    """``(count,)``: which of the images behind those ``seen`` are kept apart, every second of the first sixteen."""
    index = torch.arange(seen, seen + count)
    return torch.where(index < 16, index % 2 == 1, index % 8 == 7)


def _warn_of_too_few(found: Mapping[str, LayerMoments], images: int) -> None:
    few = {name: moments for name, moments in found.items() if moments.too_few}
    if not few:
        return
    shown = ", ".join(
        f"{name!r} ({moments.patches} of {moments.needed} different patches, {_count(moments.held_out)} of "
        f"{FEWEST_HELD_OUT} held out)"
        for name, moments in list(few.items())[:3]
    )
    more = f" and {len(few) - 3} more" if len(few) > 3 else ""
    warnings.warn(
        f"too few calibration patches for the layers {shown}{more}: they are decomposed by their weights alone. "
        f"Calibrate on more images than {images}",
        stacklevel=4,
    )


def _count(held_out: Tensor | None) -> int:
    return 0 if held_out is None else len(held_out)


class _Sums:
    """Running sums over one layer's outputs and input patches, and patches of the images that are kept apart."""

    def __init__(self, layer: FactorableLayer, positions: int) -> None:
        self.layer, self.positions = layer, positions
        self.groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        self.kernel = (1, 1) if isinstance(layer, nn.Linear) else layer.kernel_size
        self.outputs = self.patches = self.rows = 0
        self._sums: dict[str, Tensor | float] = {}
        self._held_out: Tensor | None = None
        self._draws = torch.zeros(0)

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value.double()

    def add(self, inputs: Tensor, output: Tensor, held_out: Tensor, generator: torch.Generator) -> None:
        """Take one call of the layer in.

        Args:
            inputs: as the layer gets them.
            output: as it leaves the layer.
            held_out: for each image of the batch whether it is kept apart.
            generator: of the sample.
        """
        inputs, output = as_images(self.layer, inputs), as_images(self.layer, output)
        if len(held_out) and len(inputs) % len(held_out) == 0:
            apart = held_out.repeat_interleave(len(inputs) // len(held_out))
        else:  # the rows that this layer gets are no images
            apart = held_out_images(self.rows, len(inputs))
        self.rows += len(inputs)
        if not apart.all():
            self._learn(inputs, output, (~apart).nonzero()[:, 0], generator)
        if apart.any():
            self._hold_out(inputs, output, apart.nonzero()[:, 0], generator)

    def _learn(self, inputs: Tensor, output: Tensor, images: Tensor, generator: torch.Generator) -> None:
        """Add all outputs of these images, and a sample of their patches, to the sums."""
        channels = output.movedim(1, -1)
        channels = channels if len(images) == len(inputs) else channels[images.to(output.device)]
        if self.layer.bias is not None:  # which no covariance depends on, and which takes digits from its sums
            channels = channels - self.layer.bias
        rows = (
            channels.reshape(-1, self.groups, channels.shape[-1] // self.groups).float().transpose(0, 1)
        )  # (G, N, O)
        self.outputs += rows.shape[1]
        self._add("output", rows.sum(1))
        self._add("outputs", rows.mT @ rows)
        if isinstance(self.layer, nn.ConvTranspose2d):
            places = draw_places(images, _size(inputs), self.positions, generator)
            patches = single_positions(inputs, places, self.kernel).float()
            met = (targets_inside(self.layer, axis, inputs, output).double() for axis in (0, 1))
            seen = inputs[images.to(inputs.device)].double()
            self._add("met", torch.einsum("nihw,kh,lw->ikl", seen, *met))
        else:
            places = draw_places(images, _size(output), self.positions, generator)
            patches = met_patches(self.layer, inputs, places).float()  # (N, I, kh, kw)
        self.patches += len(patches)
        self._add("patch", patches.sum(0))
        if self.kernel != (1, 1):
            grouped = patches.unflatten(1, (self.groups, -1))
            self._add("channels", torch.einsum("ngihw,ngjhw->gij", grouped, grouped))
            self._add("rows", torch.einsum("nihw,nikw->hk", patches, patches))
            self._add("columns", torch.einsum("nihw,nihl->wl", patches, patches))

    def _hold_out(self, inputs: Tensor, output: Tensor, images: Tensor, generator: torch.Generator) -> None:
        """Keep ``HELD_OUT`` patches at random of those of these images and of the ones kept before."""
        inputs = inputs[images.to(inputs.device)]
        self._add("apart", output[images.to(output.device)].sum())  # to see whether all is finite
        places = draw_places(torch.arange(len(inputs)), _size(output), HELD_OUT, generator)
        draws = torch.rand(len(places[0]), generator=generator)  # the least of all draws are those that stay
        if len(self._draws) == HELD_OUT:
            better = draws < self._draws.max()
            places, draws = (places[0][better], places[1][better], places[2][better]), draws[better]
        patches = met_patches(self.layer, inputs, places).float()
        self._draws = torch.cat([self._draws, draws])
        self._held_out = patches if self._held_out is None else torch.cat([self._held_out, patches])
        if len(self._draws) > HELD_OUT:
            kept = self._draws.topk(HELD_OUT, largest=False).indices
            self._draws, self._held_out = self._draws[kept], self._held_out[kept.to(patches.device)]

    def _different(self) -> int:
        """How many different patches the sums are of, judged by those held out.

        Where these repeat each other, one blank background aside, four times on average, no others are to be expected.
        """
        if self._held_out is None:
            return self.patches
        counts = self._held_out.flatten(1).unique(dim=0, return_counts=True)[1]
        if 4 * (len(counts) - 1) < len(self._held_out) - int(counts.max()) or len(counts) == 1:
            return min(self.patches, len(counts))
        return round(self.patches * len(counts) / len(self._held_out))

    @property
    def finite(self) -> bool:
        """Whether all that was seen is."""
        return all(bool(torch.as_tensor(total).isfinite().all()) for total in self._sums.values())

    def moments(self) -> LayerMoments:
        """The centred moments of what was summed."""
        sums = {name: torch.as_tensor(value) for name, value in self._sums.items()}
        output_mean = sums["output"] / self.outputs
        outputs = sums["outputs"] / self.outputs - output_mean.unsqueeze(2) * output_mean.unsqueeze(1)
        mean = sums["patch"] / self.patches  # (I, kh, kw)
        grouped = mean.unflatten(0, (self.groups, -1))
        if isinstance(self.layer, nn.ConvTranspose2d):  # an output position meets only some elements of the kernel
            grouped = (sums["met"] / self.outputs).unflatten(0, (self.groups, -1))
        measured: dict[str, Any] = {"held_out": self._held_out, "patches": self._different()}
        if self.kernel == (1, 1):
            return LayerMoments(outputs, grouped, **measured)
        split = mean.unflatten(0, (self.groups, -1))
        channels = sums["channels"] / self.patches - torch.einsum("gihw,gjhw->gij", split, split)
        if isinstance(self.layer, nn.ConvTranspose2d):
            return LayerMoments(outputs, grouped, channels, **measured)
        return LayerMoments(
            outputs,
            grouped,
            channels,
            sums["rows"] / self.patches - torch.einsum("ihw,ikw->hk", mean, mean),
            sums["columns"] / self.patches - torch.einsum("ihw,ihl->wl", mean, mean),
            **measured,
        )


def _size(images: Tensor) -> tuple[int, int]:
    """Height and width of ``(N, C, H, W)``."""
    return images.shape[2], images.shape[3]
