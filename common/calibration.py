"""What is learnt of the data without any training: the moments of each layer, and BatchNorm's statistics."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from common.batches import inputs_of
from common.decomposition import LayerMoments
from common.inputs import to_network
from common.modes import evaluating, hooked
from common.network.layers import FactorableLayer, effective_layers, layer_input
from common.network.passes import example_batch, explained

Batches = Iterable[Tensor | tuple[Tensor, Tensor]]


@torch.no_grad()
def calibrate(model: nn.Module, batches: Batches, *, positions: int = 4096, seed: int = 0) -> dict[str, LayerMoments]:
    """Gather the moments of every layer's input and output in one pass over ``batches``.

    Outputs are summed over all positions, input patches over a random sample of them where they are many.

    Memory, beside the network's own activations: for each layer O^2 + I^2 numbers in float64, for a Linear O^2 alone
    (134 MB for VGG16's first, the largest of the suite); and for one layer at a time a copy of its input and of its
    output and ``positions`` patches in float32 (75 MB for a 3x3 layer with 512 channels at the default). Smaller
    batches make the copies smaller. No Gram matrix of whole patches is ever formed.

    Args:
        model: the dense network, run in evaluation mode; its training mode is left as it was.
        batches: input tensors, or pairs of (input, target); no target is read. Take the calibration split.
        positions: patches that are sampled from each batch, at most.
        seed: of the sample.

    Returns:
        Layer -> its moments, for the layers that the inputs passed.

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
    handles = [
        modules[name].register_forward_hook(
            lambda _, i, k, o, name=name, effective=effective: sums[name].add(
                effective.input(layer_input(i, k)), o, generator
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
            with explained(inputs):
                model(inputs)
            seen += 1
    if not seen:
        raise ValueError("there is no batch to calibrate on")
    found = {name: sums.pop(name).moments() for name in list(sums) if sums[name].outputs}
    for name, moments in found.items():
        if not (moments.output_covariance.isfinite().all() and moments.patch_mean.isfinite().all()):
            raise ValueError(f"layer {name!r}: its inputs or outputs on the calibration data are not finite")
    return found


class _Sums:
    """Running sums over one layer's outputs and input patches."""

    def __init__(self, layer: FactorableLayer, positions: int) -> None:
        self.layer, self.positions = layer, positions
        self.groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        self.kernel = (1, 1) if isinstance(layer, nn.Linear) else layer.kernel_size
        self.outputs = self.patches = 0
        self._sums: dict[str, Tensor | float] = {}

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value.double()

    def add(self, inputs: Tensor, output: Tensor, generator: torch.Generator) -> None:
        """Take one call of the layer in."""
        channels = output if isinstance(self.layer, nn.Linear) else output.movedim(1, -1)
        if self.layer.bias is not None:  # which no covariance depends on, and which takes digits from its sums
            channels = channels - self.layer.bias
        rows = (
            channels.reshape(-1, self.groups, channels.shape[-1] // self.groups).float().transpose(0, 1)
        )  # (G, N, O)
        self.outputs += rows.shape[1]
        self._add("output", rows.sum(1))
        self._add("outputs", rows.mT @ rows)
        patches = self._sample(inputs, output, generator).float()  # (N, I, kh, kw)
        self.patches += len(patches)
        self._add("patch", patches.sum(0))
        if isinstance(self.layer, nn.ConvTranspose2d):
            met = (_targets_inside(self.layer, axis, inputs, output).double() for axis in (0, 1))
            self._add("met", torch.einsum("nihw,kh,lw->ikl", inputs.double(), *met))
        if self.kernel != (1, 1):
            grouped = patches.unflatten(1, (self.groups, -1))
            self._add("channels", torch.einsum("ngihw,ngjhw->gij", grouped, grouped))
            self._add("rows", torch.einsum("nihw,nikw->hk", patches, patches))
            self._add("columns", torch.einsum("nihw,nihl->wl", patches, patches))

    def _sample(self, inputs: Tensor, output: Tensor, generator: torch.Generator) -> Tensor:
        """Patches ``(N, I, kh, kw)`` of the input at random positions of the output.

        What meets the kernel of a transposed convolution is a single position, so its patch has that at every element.
        """
        layer = self.layer
        if isinstance(layer, nn.Linear):
            rows = inputs.flatten(0, -2)
            return rows[_places(len(rows), self.positions, generator).to(rows.device)][:, :, None, None]
        if isinstance(layer, nn.ConvTranspose2d):
            rows = inputs.movedim(1, -1).flatten(0, 2)
            rows = rows[_places(len(rows), self.positions, generator).to(rows.device)]
            return rows[:, :, None, None].expand(-1, -1, *self.kernel)
        padded = _pad(layer, inputs)
        places = _places(output[:, 0].numel(), self.positions, generator).to(inputs.device)
        image, y, x = torch.unravel_index(places, output[:, 0].shape)
        offsets = [torch.arange(k, device=inputs.device) * d for k, d in zip(self.kernel, layer.dilation, strict=True)]
        y = (y * layer.stride[0])[:, None, None] + offsets[0][None, :, None]
        x = (x * layer.stride[1])[:, None, None] + offsets[1][None, None, :]
        return padded.movedim(1, -1)[image[:, None, None], y, x].movedim(-1, 1)

    def moments(self) -> LayerMoments:
        """The centred moments of what was summed."""
        sums = {name: torch.as_tensor(value) for name, value in self._sums.items()}
        output_mean = sums["output"] / self.outputs
        outputs = sums["outputs"] / self.outputs - output_mean.unsqueeze(2) * output_mean.unsqueeze(1)
        mean = sums["patch"] / self.patches  # (I, kh, kw)
        grouped = mean.unflatten(0, (self.groups, -1))
        if isinstance(self.layer, nn.ConvTranspose2d):  # an output position meets only some elements of the kernel
            grouped = (sums["met"] / self.outputs).unflatten(0, (self.groups, -1))
        if self.kernel == (1, 1):
            return LayerMoments(outputs, grouped)
        split = mean.unflatten(0, (self.groups, -1))
        channels = sums["channels"] / self.patches - torch.einsum("gihw,gjhw->gij", split, split)
        if isinstance(self.layer, nn.ConvTranspose2d):
            return LayerMoments(outputs, grouped, channels)
        return LayerMoments(
            outputs,
            grouped,
            channels,
            sums["rows"] / self.patches - torch.einsum("ihw,ikw->hk", mean, mean),
            sums["columns"] / self.patches - torch.einsum("ihw,ihl->wl", mean, mean),
        )


def _targets_inside(layer: nn.ConvTranspose2d, axis: int, inputs: Tensor, output: Tensor) -> Tensor:
    """``(k, size of the input)``: whether what an element of the kernel makes of a position lies inside the output."""
    places = torch.arange(inputs.shape[2 + axis], device=inputs.device) * layer.stride[axis]
    offsets = torch.arange(layer.kernel_size[axis], device=inputs.device) * layer.dilation[axis]
    targets = places + offsets[:, None] - int(layer.padding[axis])
    return (targets >= 0) & (targets < output.shape[2 + axis])


def _places(total: int, most: int, generator: torch.Generator) -> Tensor:
    """All of 0..total-1, or ``most`` of them at random where there are more."""
    return torch.arange(total) if total <= most else torch.randint(total, (most,), generator=generator)


def _pad(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
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


@torch.no_grad()
def recalibrate_bn(model: nn.Module, batches: Batches, *, max_batches: int | None = None) -> int:
    """Measure the running mean and variance of every BatchNorm anew, on the activations the network has now.

    Compression shifts the activations, and the stored statistics belong to the dense network. The new ones are the
    plain average over the batches; no weight is changed and no target is read.

    Args:
        model: changed in place; its training mode is left as it was.
        batches: input tensors, or pairs of (input, target), at least two inputs a batch.
        max_batches: use no more than these.

    Returns:
        How many BatchNorm layers were recalibrated. One that no batch passed (an auxiliary head's) is left alone; when
        it ends in an error, all are.

    Raises:
        ValueError: there is no batch, or one holds no inputs.
        FloatingPointError: what reaches a BatchNorm is not finite.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    seen, done = 0, False
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average instead of a moving one
                norm.train()
            for batch in itertools.islice(batches, max_batches):
                model(to_network(inputs_of(batch), model))
                seen += 1
        broken = [n for n in norms if not all(buffer.isfinite().all() for buffer in n.buffers())]
        if broken:
            name = next(name for name, module in model.named_modules() if module is broken[0])
            raise FloatingPointError(f"BatchNorm {name!r}: its inputs on the calibration data are not finite")
        done = True
    finally:
        passed = [done and bool(norm.num_batches_tracked) for norm in norms]
        for norm, momentum, buffers, keeps in zip(norms, momenta, before, passed, strict=True):
            norm.momentum = momentum
            if not keeps:
                for name, buffer in buffers.items():
                    norm.get_buffer(name).copy_(buffer)
    if not seen:
        raise ValueError("there is no batch to recalibrate on")
    return sum(passed)
