"""``compress``: a ``RankPlan`` applied to a network; the dense network is left as it was."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.decomposition import DECOMPOSITIONS, Decomposition, LayerMoments, balance
from common.network.copies import independent_copy
from common.network.effective import EffectiveLayer
from common.network.held import replace_module
from common.network.layers import FactorableLayer, effective_layers
from common.network.lowrank import LowRank, stand_in
from common.network.provenance import Provenance, get_provenance, set_provenance
from common.network.weights import set_convolution_weight
from common.planning.decompositions import Decompositions
from common.planning.plan import LayerPlan, RankPlan
from common.validation import check_choice

MODES = ("factorized", "reconstruct")


def compress(
    model: nn.Module,
    plan: RankPlan,
    *,
    moments: Mapping[str, LayerMoments] | None = None,
    mode: str = "factorized",
    sweeps: int = 2,
    decompositions: Decompositions | None = None,
) -> nn.Module:
    """A smaller copy of ``model`` in which the layers that ``plan`` factors are low-rank.

    Args:
        model: the dense network; neither it nor its weights are changed or shared.
        plan: from :func:`common.planning.plan_ranks` for this network.
        moments: from :func:`common.calibration.calibrate`: the factors then keep the layers' outputs on data rather
            than their weights, as far as its held-out patches bear that out.
        mode: ``factorized`` puts a module of smaller layers in a layer's place, which answers like the layer
            (:class:`common.network.lowrank.LowRank`), balanced
            (:func:`common.decomposition.balance`) so that they can be fine-tuned. ``reconstruct`` keeps the
            architecture and writes the low-rank weight back: the same size, for studying the approximation alone. A
            layer without a bias then cannot keep its output's mean, which BatchNorm recalibration makes up for.
        sweeps: of the higher-order orthogonal iteration that Tucker-2 and HTD make at the plan's ranks, by which the
            weight's error falls a few percent; with moments they are kept where the output's error falls on held-out
            patches. 0 takes the slices of the HOSVD that the plan was made with, which is faster.
        decompositions: those of ``model``, when they are there already; they bring their own moments and sweeps.

    Returns:
        The compressed network, in ``model``'s training mode, on its device.

    Raises:
        ValueError: ``mode`` is unknown, the network is compressed already or a single layer, or the plan names a layer
            that the network does not have or ranks that the layer cannot have.
    """
    check_choice("mode", mode, MODES)
    if sweeps < 0:
        raise ValueError(f"sweeps={sweeps}: it must be at least 0")
    provenance = get_provenance(model) or Provenance()
    if provenance.plan is not None:
        raise ValueError("the network is compressed already; compress the dense one, which can be saved and rebuilt")
    decompositions = decompositions or Decompositions(model, moments, sweeps)
    layers = planned_layers(model, plan)  # of the dense network: two weights in one memory are apart in a copy
    small = independent_copy(model)
    with torch.no_grad():
        without_mean = _replace_layers(small, plan, layers, decompositions, mode)
    if without_mean:
        shown = ", ".join(without_mean[:3]) + (", ..." if len(without_mean) > 3 else "")
        warnings.warn(
            f"the plan was made without moments and gives no bias to {shown}, which lose their outputs' mean; "
            "hand the same moments to plan_ranks",
            stacklevel=2,
        )
    if mode == "factorized":
        set_provenance(small, dataclasses.replace(provenance, plan=plan))
    return small


def _replace_layers(
    small: nn.Module,
    plan: RankPlan,
    layers: Mapping[str, tuple[FactorableLayer, EffectiveLayer]],
    decompositions: Decompositions,
    mode: str,
) -> list[str]:
    """Replace the planned layers in ``small``; returns those whose outputs lose their mean."""
    copies = dict(small.named_modules())
    without_mean = []
    for name, (_, effective) in layers.items():
        planned = plan.layers[name]
        decomposition = decompositions.get(name, str(planned.method))
        try:
            decomposition.check(planned.ranks)
        except ValueError as error:
            raise ValueError(f"layer {name!r} of the plan: {error}") from None
        if mode == "reconstruct":
            last = _reconstruct(small, copies[name], effective, decomposition.reconstruct(planned.ranks))
        else:
            last = _factorize(small, copies[name], effective, planned, decomposition)
        shift = decomposition.bias_shift(planned.ranks)
        if shift is not None and last.bias is not None:
            last.bias.add_(shift)
        elif shift is not None and mode == "factorized":
            without_mean.append(name)
    return without_mean


def _factorize(
    model: nn.Module, layer: nn.Module, effective: EffectiveLayer, plan: LayerPlan, decomposition: Decomposition
) -> FactorableLayer:
    """Put the factors in the place of ``layer``; returns the last of them."""
    factored = factored_layer(layer, effective, plan)
    weights = balance(decomposition.factors(plan.ranks), decomposition.groups)
    for factor, weight in zip(factored.factors, weights, strict=True):
        set_convolution_weight(factor, weight)
    last, bias = factored.factors[-1], effective.layer.bias
    if last.bias is not None:
        last.bias.copy_(torch.tensor(0.0) if bias is None else bias)
    replace_module(model, layer, factored)
    return last


def _reconstruct(model: nn.Module, layer: nn.Module, effective: EffectiveLayer, weight: Tensor) -> FactorableLayer:
    """Write the low-rank weight into ``layer``, or into one that computes the same; returns it."""
    if type(layer) is type(effective.layer):
        assert isinstance(layer, FactorableLayer)
        set_convolution_weight(layer, weight)
        return layer
    plain = copy.deepcopy(effective.layer)
    set_convolution_weight(plain, weight)
    replace_module(model, layer, stand_in(layer, effective, [plain]))
    return plain


def planned_layers(model: nn.Module, plan: RankPlan) -> dict[str, tuple[FactorableLayer, EffectiveLayer]]:
    """The layers of ``model`` that ``plan`` factors, each with what it computes, by name.

    Raises:
        ValueError: the network has no such layer, nothing can stand in for it, or the plan's method does not serve it.
    """
    modules, (served, reasons) = dict(model.named_modules()), effective_layers(model)
    layers: dict[str, tuple[FactorableLayer, EffectiveLayer]] = {}
    for name in plan.factored:
        check_choice("layer of the plan", name, modules)
        layer = modules[name]
        if layer is model:
            raise ValueError(
                "the network is a single layer, which has no place to be replaced in; put it in a Sequential"
            )
        if not isinstance(layer, FactorableLayer):
            raise ValueError(f"layer {name!r} of the plan is a {type(layer).__name__}, which has no ranks")
        if name in reasons:
            raise ValueError(f"layer {name!r} of the plan has to stay dense: {reasons[name]}")
        check_choice(f"method of layer {name!r}", plan.layers[name].method, methods_for(layer))
        layers[name] = (layer, served[name])
    return layers


def methods_for(layer: FactorableLayer) -> tuple[str, ...]:
    """The decompositions that a layer can have."""
    linear, transposed = isinstance(layer, nn.Linear), isinstance(layer, nn.ConvTranspose2d)
    return tuple(
        name
        for name, kind in DECOMPOSITIONS.items()
        if not (linear and kind.needs_kernel) and not (transposed and not kind.serves_transposed)
    )


def factored_layer(layer: nn.Module, effective: EffectiveLayer, plan: LayerPlan) -> LowRank:
    """What takes the place of ``layer`` at the plan's ranks, with weights that are still to be filled in.

    Args:
        layer: it answers like this one.
        effective: what the layer computes.
        plan: method and ranks.

    Raises:
        ValueError: there are more or fewer ranks than the method has, or one that no such layer can have.
    """
    plain = effective.layer
    axes = DECOMPOSITIONS[str(plan.method)].axes
    if len(plan.ranks) != len(axes) - 1 or not all(1 <= rank <= plain.weight.numel() for rank in plan.ranks):
        raise ValueError(f"ranks={plan.ranks}: {plan.method} takes {len(axes) - 1}, each at least 1")
    place: dict[str, Any] = {"device": plain.weight.device, "dtype": plain.weight.dtype}
    bias = plain.bias is not None or plan.shift
    factors: list[FactorableLayer]
    if isinstance(plain, nn.Linear):
        rank = plan.ranks[0]
        factors = [
            nn.Linear(plain.in_features, rank, bias=False, **place),
            nn.Linear(rank, plain.out_features, bias=bias, **place),
        ]
    else:
        widths = (plain.in_channels, *(rank * plain.groups for rank in plan.ranks), plain.out_channels)
        factors = [
            _convolution(plain, widths[index], widths[index + 1], taken, bias and index == len(axes) - 1, place)
            for index, taken in enumerate(axes)
        ]
    for factor in factors:
        factor.requires_grad_(plain.weight.requires_grad).train(layer.training)
    return stand_in(layer, effective, factors, plan)


def _convolution(
    layer: nn.Conv2d | nn.ConvTranspose2d,
    inputs: int,
    outputs: int,
    taken: tuple[bool, bool],
    bias: bool,
    place: dict[str, Any],
) -> nn.Conv2d | nn.ConvTranspose2d:
    """One factor: it takes over the layer's kernel, stride, padding and dilation on the axes that are ``taken``."""

    def take(values: Sequence[int], otherwise: int) -> tuple[int, int]:
        return (values[0] if taken[0] else otherwise, values[1] if taken[1] else otherwise)

    shared: dict[str, Any] = {"groups": layer.groups, "bias": bias, **place}
    if not any(taken):
        return nn.Conv2d(inputs, outputs, 1, **shared)
    shared["padding"] = layer.padding if isinstance(layer.padding, str) else take(layer.padding, 0)
    shared["padding_mode"] = layer.padding_mode
    shared["dilation"] = take(layer.dilation, 1)
    kernel, stride = take(layer.kernel_size, 1), take(layer.stride, 1)
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(inputs, outputs, kernel, stride, **shared)
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride, output_padding=take(layer.output_padding, 0), **shared)
