"""``refit``: fit a compressed network's layers to the dense network's outputs, one by one, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.calibration.paired import DenseOutputs, OtherRouteError, PairedLayer, Rows, paired_layers, paired_rows
from common.calibration.waiting import DiffersError, WaitingRows, can_wait
from common.decomposition.als import fits_in_one_step, ridge_candidates, ridge_candidates_of_rows
from common.decomposition.balancing import balance
from common.decomposition.chain import kernel_of, outputs_of, patches_after
from common.network.batches import Batches, check_batches, inputs_of
from common.network.inputs import to_network
from common.network.layers import effective_layers
from common.network.lowrank import LowRank
from common.network.modes import evaluating, ordinary_precision
from common.network.passes import example_batch
from common.network.state import Snapshot
from common.network.weights import convolution_weight, set_convolution_weight
from common.progress import track

WIDEST_PATCH = 4608
"""Largest patch whose second moment is formed. For a wider one only the last factor is fitted."""
RIDGES = (1e-3, 1e-2, 1e-1)
"""Ridges toward the dense layer's weight, relative to the mean variance; held-out rows choose one. The formula:
:func:`common.decomposition.als.ridge_candidates`."""
SWEEPS = 2


@dataclass(frozen=True)
class Refitted:
    """What refitting did to one layer.

    Attributes:
        before: mean squared error of the layer's output in the compressed network against the dense network's output,
            on held-out images, relative to the variance of the latter.
        after: the same with the new factors; equal to ``before`` if the old ones stay because the new are not better.
            Both are NaN if the layer could not be fitted, for example because the compressed network does not pass
            it the same images.
    """

    before: float
    after: float


NOT_FITTED = Refitted(float("nan"), float("nan"))


@ordinary_precision()
@torch.no_grad()
def refit(model: nn.Module, dense: nn.Module, batches: Batches, *, seed: int = 0) -> dict[str, Refitted]:
    """Fit the layers of a compressed network to the outputs of the dense network, from the first layer to the last.

    A layer of the compressed network sees other inputs than in the dense network, because the layers before it err.
    For these inputs its factors and bias are fitted to the dense network's output by least squares: the asymmetric
    reconstruction of Zhang et al. (2015, section 3.3), here for all factors of a layer. Layers that stayed dense after
    the first factored one are fitted too. New factors are kept only if they lower the error on images that the fit did
    not see. Targets are not read, and no gradient is computed.

    The compressed network runs over all batches together, in one pass that waits at each layer until that is fitted.
    Where this would hold more than about 1 GiB of activations, where a layer runs several times in a pass, on a GPU,
    or where it gives other values, the network runs up to each layer again, batch by batch.

    The inputs of all batches stay in memory, and up to 1 GiB of the dense network's outputs. One layer at a time also
    needs the second moment of its patches in float64, at most 170 MB, and a few copies of it.

    Args:
        model: the compressed network. Its weights are changed in place; its training mode stays unchanged.
        dense: the network that it was made from. It stays unchanged.
        batches: input tensors, or pairs (inputs, targets), from the calibration split.
        seed: random seed of the sampled positions.

    Returns:
        Layer name -> errors before and after, in the order in which the layers run.

    Raises:
        ValueError: ``batches`` is empty or one tensor, a layer's inputs or their squares are not finite, ``dense`` is
            compressed itself, or ``model`` was not made from it.
    """
    _check_pair(model, dense)
    check_batches(batches)
    inputs = [to_network(example_batch(inputs_of(batch), dense), dense) for batch in batches]
    if not inputs:
        raise ValueError("batches is empty: there is no batch to fit to")
    with evaluating(model, dense):
        layers = paired_layers(model, dense)
        recorded = DenseOutputs(layers, seed)
        recorded.record(dense, inputs)
        names = list(recorded.calls)
        first = next((i for i, name in enumerate(names) if isinstance(layers[name].module, LowRank)), len(names))
        fitted = {name: layers[name] for name in names[first:]}
        if fitted and can_wait(recorded, fitted, inputs):
            before = Snapshot(model)
            with suppress(DiffersError), WaitingRows(model, fitted, recorded, inputs) as waiting:
                return _refit_layers(fitted, waiting.rows)
            before.restore()
        return _refit_layers(fitted, lambda name: paired_rows(model, fitted[name], recorded.calls[name], inputs))


def _check_pair(model: nn.Module, dense: nn.Module) -> None:
    """Raise a ValueError unless ``model`` can have been made from ``dense``."""
    factored, other = ([n for n, each in net.named_modules() if isinstance(each, LowRank)] for net in (model, dense))
    if other:
        raise ValueError(f"dense is compressed itself: its layer {other[0]!r} is factored")
    known = effective_layers(dense)[0]
    if factored and known.keys().isdisjoint(factored):
        raise ValueError(f"dense has no layer {factored[0]!r}, which model has factored; it was made from another")
    for name in factored:
        layer = model.get_submodule(name)
        if (
            isinstance(layer, LowRank)
            and name in known
            and layer.weight_shape != tuple(known[name].layer.weight.shape)
        ):
            shapes = f"{tuple(known[name].layer.weight.shape)} in dense and {layer.weight_shape} in model"
            raise ValueError(f"layer {name!r} has a weight of shape {shapes}; model was made from another network")


def _refit_layers(layers: Mapping[str, PairedLayer], rows: Callable[[str], Iterator[Rows]]) -> dict[str, Refitted]:
    """Fit each layer in turn to the rows that ``rows`` gives for its name."""
    found: dict[str, Refitted] = {}
    for name, layer in track(layers.items(), "refitting", unit="layer", total=len(layers)):
        try:
            found[name] = _refit_layer(name, layer, rows(name))
        except OtherRouteError:
            found[name] = NOT_FITTED
    return found


class _Moments:
    """Second moments of features and targets by group; the rows themselves while they are fewer than features.

    Args:
        groups: the number of groups.
        centred: whether the means are subtracted, as they are for a layer with a bias.
        keep_rows: whether rows are kept. It becomes false when there are as many as features.
    """

    def __init__(self, groups: int, centred: bool, keep_rows: bool) -> None:
        self.groups, self.centred, self.keep_rows, self.rows = groups, centred, keep_rows, 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._shifts: tuple[Tensor, Tensor] | None = None

    def add(self, features: Tensor, outputs: Tensor) -> None:
        """Add rows: features ``(N, c, ...)`` and targets ``(N, O)``."""
        x, y = (rows.reshape(len(rows), self.groups, -1).transpose(0, 1) for rows in (features, outputs))  # (G, N, m)
        if self._shifts is None:  # products of nearly centred rows are more precise
            means = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
            self._shifts = means if self.centred else (torch.zeros_like(means[0]), torch.zeros_like(means[1]))
        self.rows += x.shape[1]
        self._kept.append((x - self._shifts[0], y - self._shifts[1]))
        if not self.keep_rows or self.rows >= x.shape[2]:
            self._sum_kept()

    def _sum_kept(self) -> None:
        """Replace the rows by sums of their products."""
        self.keep_rows = False
        for x, y in self._kept:
            products = {
                "inputs": x.mT @ x,
                "cross": y.mT @ x,
                "x": x.sum(1, keepdim=True),
                "y": y.sum(1, keepdim=True),
            }
            for name, value in products.items():
                if name in self._sums:
                    self._sums[name] += value
                else:
                    self._sums[name] = value.double()
        self._kept.clear()

    @property
    def finite(self) -> bool:
        """Whether single precision holds all products so far. The squares bound the other products of inputs."""
        squares = [rows.square() for pair in self._kept for rows in pair]
        sums = [value.diagonal(dim1=1, dim2=2) if name == "inputs" else value for name, value in self._sums.items()]
        return all(map(_all_finite, [*sums, *squares]))

    def finish(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two matrices and the means ``(G, 1, m)`` and ``(G, 1, O)`` that are subtracted in them.

        The matrices are the rows ``(G, N, m)`` and ``(G, N, O)`` if ``keep_rows`` is still true, otherwise the moments
        ``(G, m, m)`` and ``(G, O, m)``.
        """
        assert self._shifts is not None
        if self.keep_rows:
            x, y = (torch.cat(rows, 1).double() for rows in zip(*self._kept, strict=True))
            x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        else:
            x, y, x_mean, y_mean = (self._sums.pop(name).div_(self.rows) for name in ("inputs", "cross", "x", "y"))
        if self.centred:
            x -= x_mean if self.keep_rows else x_mean.mT @ x_mean
            y -= y_mean if self.keep_rows else y_mean.mT @ x_mean
        return x, y, x_mean + self._shifts[0], y_mean + self._shifts[1]


def _all_finite(values: Tensor) -> bool:
    """Whether no element is infinite or NaN. A finite sum shows that at once."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _refit_layer(name: str, layer: PairedLayer, rows: Iterable[Rows]) -> Refitted:
    """Fit one layer; keep the new factors if the error on held-out rows falls."""
    weights, groups, bias = layer.weights, layer.groups, layer.factors[-1].bias
    frozen = weights[:-1] if layer.patch_size > WIDEST_PATCH else []
    fitted = weights[len(frozen) :]
    if len(fitted) == 1 and fitted[0][0].numel() > WIDEST_PATCH:
        return NOT_FITTED
    moments = _Moments(groups, bias is not None, fits_in_one_step(fitted, groups))
    held: list[tuple[Tensor, Tensor]] = []
    for patches, outputs, flags in rows:
        if not _all_finite(patches):
            raise ValueError(f"layer {name!r}: its inputs on the calibration data are not finite")
        features = patches_after(frozen, patches, groups)
        held.append((features[flags], outputs[flags]))
        if not flags.all():
            moments.add(features[~flags], outputs[~flags])
    if not moments.finite:
        raise ValueError(f"layer {name!r}: the squares of its inputs on the calibration data are not finite")
    if not any(len(features) for features, _ in held):
        return NOT_FITTED
    unseen, target = (torch.cat(rows) for rows in zip(*held, strict=True))

    def error(factors: Sequence[Tensor], offset: Tensor | None) -> float:
        lost = target - outputs_of(factors, unseen, groups)
        return float((lost if offset is None else lost - offset).square().sum(1).mean())

    before = best = error(fitted, None if bias is None else bias.detach().float())
    new = None
    if moments.rows:
        for candidate in _candidates(layer, fitted, moments):
            found = error(*candidate)
            if found < best:
                best, new = found, candidate
    if new is not None:
        _write(layer, [*frozen, *new[0]], new[1])
    variance = float((target - target.mean(0)).square().sum(1).mean()) or 1.0
    return Refitted(before / variance, best / variance)


def _candidates(
    layer: PairedLayer, fitted: Sequence[Tensor], moments: _Moments
) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
    """Yield fitted factors and their bias, for each ridge."""
    inputs, targets, input_mean, output_mean = moments.finish()
    whole = len(fitted) == len(layer.factors)
    prior = (convolution_weight(layer.dense.layer) if whole else fitted[0]).detach().double()
    prior = prior.reshape(layer.groups, -1, input_mean.shape[2])
    if moments.keep_rows:
        found = ridge_candidates_of_rows(fitted, inputs, targets, prior, RIDGES)
    else:
        found = ridge_candidates(fitted, inputs, targets, prior, RIDGES, SWEEPS)
    for factors in found:
        offset = None
        if moments.centred:
            patch = input_mean.reshape(1, -1, *kernel_of(fitted)).float()
            offset = output_mean.flatten().float() - outputs_of(factors, patch, layer.groups).flatten()
        yield factors, offset


def _write(layer: PairedLayer, factors: Sequence[Tensor], bias: Tensor | None) -> None:
    """Write factors, balanced, and the bias into the compressed network."""
    for factor, weight in zip(layer.factors, balance(factors, layer.groups), strict=True):
        set_convolution_weight(factor, weight.to(factor.weight.dtype))
    last = layer.factors[-1]
    if bias is not None and last.bias is not None:
        last.bias.copy_(bias)
