"""``calibrate``: measure the moments of each layer's input and output on data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.calibration.patches import as_images, inputs_by_kernel, output_patches, repeated_inputs, sample_positions
from common.decomposition.moments import FEWEST_HELD_OUT, LayerMoments
from common.network.batches import Batches, inputs_of
from common.network.inputs import for_one_pass, to_network
from common.network.kinds import FactorableLayer, TransposedConvolution, group_count, kernel_size
from common.network.layers import effective_layers, layer_input
from common.network.modes import evaluating, hooked, ordinary_precision
from common.network.passes import example_batch, explained
from common.validation import is_whole

WIDEST_PATCH = 5792
"""The most elements of a patch whose covariance is measured: 134 MB in float32."""
SMALL_PATCH = 1152
"""Up to this many elements of a patch, all sampled patches of a batch are added to their covariance."""
FEWEST_ROWS, ROWS_PER_ELEMENT, ROWS_PER_IMAGE = 512, 0.25, 4
"""Of larger patches, each batch adds the greatest of: the fewest, a share of the elements, and a number an image."""
HELD_OUT = 512
"""Largest number of held-out patches of each layer, on which errors are measured."""


@ordinary_precision()
@torch.no_grad()
def calibrate(model: nn.Module, batches: Batches, *, positions: int = 4096, seed: int = 0) -> dict[str, LayerMoments]:
    """Measure the moments of every factorable layer's input and output in one pass over ``batches``.

    The moments of outputs cover all positions, those of input patches a random sample. On ``HELD_OUT`` patches of
    held-out images (:func:`held_out_images`), :mod:`common.decomposition.choice` measures whether the moments help.

    Memory, besides the network's own activations: each layer needs O^2 + I^2 numbers in float64, or O^2 for a Linear
    (134 MB for VGG16's first), its held-out patches in float32 (9 MB for a 3x3 layer with 512 channels, 51 MB for
    VGG16's first Linear), and the covariance of whole patches, (I * kh * kw)^2 numbers for each group, in float64
    while it is summed and in float32 after (170 and 85 MB for a 3x3 layer with 512 channels). Patches of more than
    ``WIDEST_PATCH`` elements have none. One layer at a time needs ``positions`` patches in float32.

    Args:
        model: the dense network. It runs in evaluation mode; its training mode stays unchanged.
        batches: input tensors, or pairs (inputs, targets), from the calibration split. Targets are not read.
        positions: largest number of patches to sample from each batch.
        seed: random seed of the sample.

    Returns:
        Layer name -> moments, for the layers that the inputs reach.

    Warns:
        UserWarning: a layer saw too few patches. It will be decomposed by its weight alone.

    Raises:
        ValueError: ``batches`` is empty, a batch or ``positions`` is invalid, or a layer's data are not finite.
    """
    if not (is_whole(positions) and positions >= 1):
        raise ValueError(f"positions={positions!r}: it must be a whole number of at least 1")
    layers = effective_layers(model)[0]
    modules = dict(model.named_modules())
    sums = {name: _RunningSums(effective.layer, positions) for name, effective in layers.items()}
    generator = torch.Generator().manual_seed(seed)
    is_held_out = torch.zeros(0, dtype=torch.bool)
    handles = [
        modules[name].register_forward_hook(
            lambda _, i, k, o, name=name, effective=effective: sums[name].add(
                effective.input(layer_input(i, k)), o, is_held_out, generator
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
            is_held_out = held_out_images(seen, len(inputs))
            with explained(inputs):
                model(for_one_pass(inputs))
            seen += len(inputs)
    if not seen:
        raise ValueError("batches is empty: there is no batch to calibrate on")
    for name, total in sums.items():
        if not total.finite:
            raise ValueError(f"layer {name!r}: its inputs or outputs on the calibration data are not finite")
    found = {name: sums.pop(name).moments() for name in list(sums) if sums[name].outputs}
    _warn_of_too_few(found, seen)
    return found


def held_out_images(seen: int, count: int) -> Tensor:
    """Mark the held-out images: every second of the first sixteen, then every eighth.

    Args:
        seen: number of images in earlier batches.
        count: number of images in this batch.

    Returns:
        ``(count,)``, boolean.
    """
    index = torch.arange(seen, seen + count)
    return torch.where(index < 16, index % 2 == 1, index % 8 == 7)


def _warn_of_too_few(found: Mapping[str, LayerMoments], images: int) -> None:
    """Warn of the layers that saw too few patches to be decomposed by their moments."""
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
        stacklevel=5,
    )


def _count(held_out: Tensor | None) -> int:
    """Return the number of held-out patches."""
    return 0 if held_out is None else len(held_out)


class _RunningSums:
    """Running sums over one layer's outputs and input patches, and a sample of its held-out patches.

    Args:
        layer: the plain equivalent of the layer.
        positions: largest number of patches to sample from each call.
    """

    def __init__(self, layer: FactorableLayer, positions: int) -> None:
        self.layer, self.positions = layer, positions
        self.groups, self.kernel = group_count(layer), kernel_size(layer)
        self.outputs = self.patches = self.rows = self.whole_patches = 0
        self._sums: dict[str, Tensor | float] = {}
        self._held_out: Tensor | None = None
        self._draws = torch.zeros(0)

    def _add(self, name: str, value: Tensor) -> None:
        """Add ``value`` to the sum ``name`` in float64."""
        self._sums[name] = self._sums.get(name, 0.0) + value.double()

    def add(self, inputs: Tensor, output: Tensor, held_out: Tensor, generator: torch.Generator) -> None:
        """Add one call of the layer.

        Args:
            inputs: input of the layer.
            output: output of the layer.
            held_out: for each image of the batch, whether it is held out.
            generator: random number generator of the sample.
        """
        inputs, output = as_images(self.layer, inputs), as_images(self.layer, output)
        if len(held_out) and len(inputs) % len(held_out) == 0:
            is_held_out = held_out.repeat_interleave(len(inputs) // len(held_out))
        else:  # the rows of this layer are not images
            is_held_out = held_out_images(self.rows, len(inputs))
        self.rows += len(inputs)
        if not is_held_out.all():
            self._accumulate(inputs, output, (~is_held_out).nonzero()[:, 0], generator)
        if is_held_out.any():
            self._hold_out(inputs, output, is_held_out.nonzero()[:, 0], generator)

    def _accumulate(self, inputs: Tensor, output: Tensor, images: Tensor, generator: torch.Generator) -> None:
        """Add all outputs and a sample of the patches of ``images`` to the sums."""
        channels = output.movedim(1, -1)
        channels = channels if len(images) == len(inputs) else channels[images.to(output.device)]
        if self.layer.bias is not None:  # covariances do not depend on it, and sums are more precise without it
            channels = channels - self.layer.bias
        rows = (
            channels.reshape(-1, self.groups, channels.shape[-1] // self.groups).float().transpose(0, 1)
        )  # (G, N, O)
        self.outputs += rows.shape[1]
        self._add("output sum", rows.sum(1))
        self._add("output products", rows.mT @ rows)
        if isinstance(self.layer, TransposedConvolution):
            sampled = sample_positions(images, inputs.shape[2:], self.positions, generator)
            patches = repeated_inputs(inputs, sampled, self.kernel).float()
            seen = inputs[images.to(inputs.device)]
            self._add("kernel inputs", inputs_by_kernel(self.layer, seen, output))
        else:
            sampled = sample_positions(images, output.shape[2:], self.positions, generator)
            patches = output_patches(self.layer, inputs, sampled).float()  # (N, I, kh, kw)
        self.patches += len(patches)
        self._add("patch sum", patches.sum(0))
        if math.prod(self.kernel) > 1:
            self._add_whole_patches(inputs, output, images, patches, generator)
            grouped = patches.unflatten(1, (self.groups, -1))
            self._add("channel products", torch.einsum("ngihw,ngjhw->gij", grouped, grouped))
            self._add("row products", torch.einsum("nihw,nikw->hk", patches, patches))
            self._add("column products", torch.einsum("nihw,nihl->wl", patches, patches))

    def _add_whole_patches(
        self, inputs: Tensor, output: Tensor, images: Tensor, patches: Tensor, generator: torch.Generator
    ) -> None:
        """Add an evenly spread part of the patches at output positions to the second moment of whole patches."""
        size = math.prod(patches.shape[1:]) // self.groups
        if size > WIDEST_PATCH:
            return
        count = max(FEWEST_ROWS, int(ROWS_PER_ELEMENT * size), ROWS_PER_IMAGE * len(images))
        if size <= SMALL_PATCH:
            count = self.positions
        if isinstance(self.layer, TransposedConvolution):
            patches = output_patches(
                self.layer, inputs, sample_positions(images, output.shape[2:], count, generator)
            ).float()
        rows = patches[:: max(1, len(patches) // count)].reshape(-1, self.groups, size).transpose(0, 1)  # (G, N, m)
        self.whole_patches += rows.shape[1]
        self._add("whole sum", rows.sum(1))
        self._add("whole products", rows.mT @ rows)

    def _hold_out(self, inputs: Tensor, output: Tensor, images: Tensor, generator: torch.Generator) -> None:
        """Update the random sample of at most ``HELD_OUT`` patches with the patches of ``images``."""
        inputs = inputs[images.to(inputs.device)]
        total = output[images.to(output.device)].sum(dtype=torch.float64)
        self._add("held out", total)  # only ``finite`` reads it
        sampled = sample_positions(torch.arange(len(inputs)), output.shape[2:], HELD_OUT, generator)
        draws = torch.rand(len(sampled[0]), generator=generator)  # the sample keeps the smallest draws
        if len(self._draws) == HELD_OUT:
            better = draws < self._draws.max()
            sampled, draws = tuple(places[better] for places in sampled), draws[better]
        patches = output_patches(self.layer, inputs, sampled).float()
        self._draws = torch.cat([self._draws, draws])
        self._held_out = patches if self._held_out is None else torch.cat([self._held_out, patches])
        if len(self._draws) > HELD_OUT:
            kept = self._draws.topk(HELD_OUT, largest=False).indices
            self._draws, self._held_out = self._draws[kept], self._held_out[kept.to(patches.device)]

    def _distinct_patches(self) -> int:
        """Estimate the number of different patches in the sums from those held out.

        If the held-out patches, apart from the most frequent one (a blank background), occur more than four times on
        average, the sums are expected to hold no others.
        """
        if self._held_out is None:
            return self.patches
        counts = self._held_out.flatten(1).unique(dim=0, return_counts=True)[1]
        if 4 * (len(counts) - 1) < len(self._held_out) - int(counts.max()) or len(counts) == 1:
            return min(self.patches, len(counts))
        return round(self.patches * len(counts) / len(self._held_out))

    @property
    def finite(self) -> bool:
        """Whether all inputs and outputs so far are finite."""
        return all(bool(torch.as_tensor(total).isfinite().all()) for total in self._sums.values())

    def moments(self) -> LayerMoments:
        """Return the centred moments."""
        sums = {name: torch.as_tensor(value) for name, value in self._sums.items()}
        output_mean = sums["output sum"] / self.outputs
        outputs = sums["output products"] / self.outputs - output_mean.unsqueeze(2) * output_mean.unsqueeze(1)
        mean = sums["patch sum"] / self.patches  # (I, kh, kw)
        grouped = mean.unflatten(0, (self.groups, -1))
        if isinstance(self.layer, TransposedConvolution):  # only some elements of the kernel reach an output position
            grouped = (sums["kernel inputs"] / self.outputs).unflatten(0, (self.groups, -1))
        measured: dict[str, Any] = {"held_out": self._held_out, "patches": self._distinct_patches()}
        if self.whole_patches:
            whole = sums.pop("whole products").div_(self.whole_patches)
            centre = sums["whole sum"] / self.whole_patches
            measured["patch_covariance"] = (whole - centre.unsqueeze(2) * centre.unsqueeze(1)).float()
        if math.prod(self.kernel) == 1:
            return LayerMoments(outputs, grouped, **measured)
        split = mean.unflatten(0, (self.groups, -1))
        channels = sums["channel products"] / self.patches - torch.einsum("gihw,gjhw->gij", split, split)
        if isinstance(self.layer, TransposedConvolution):
            return LayerMoments(outputs, grouped, channels, **measured)
        return LayerMoments(
            outputs,
            grouped,
            channels,
            sums["row products"] / self.patches - torch.einsum("ihw,ikw->hk", mean, mean),
            sums["column products"] / self.patches - torch.einsum("ihw,ihl->wl", mean, mean),
            **measured,
        )
