"""``compress``: apply a ``RankPlan`` to a copy of a network."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.decomposition import DECOMPOSITIONS, Decomposition, LayerMoments, balance, own_axes
from common.decomposition.als import IMPROVING_SWEEPS
from common.network.copies import independent_copy
from common.network.effective import EffectiveLayer
from common.network.given import check_has_values
from common.network.held import replace_module
from common.network.kinds import (
    CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
    AnyConvolution,
    Convolution,
    FactorableLayer,
    TransposedConvolution,
    kernel_size,
    setting,
)
from common.network.layers import effective_layers
from common.network.lowrank import LowRank, stand_in
from common.network.modes import ordinary_precision, random_state_kept
from common.network.provenance import Provenance, get_provenance, set_provenance
from common.network.weights import set_convolution_weight
from common.planning.decompositions import Decompositions
from common.planning.plan import LayerPlan, RankPlan
from common.validation import check_choice

MODES = ("factorized", "reconstruct")


@ordinary_precision()
def compress(
    model: nn.Module,
    plan: RankPlan,
    *,
    moments: Mapping[str, LayerMoments] | None = None,
    mode: str = "factorized",
    sweeps: int = IMPROVING_SWEEPS,
    decompositions: Decompositions | None = None,
) -> nn.Module:
    """Return a smaller copy of ``model`` in which the layers of ``plan`` are low-rank.

    Args:
        model: the dense network. It stays unchanged and shares no weights with the copy.
        plan: plan for this network from :func:`common.planning.plan_ranks`.
        moments: moments from :func:`common.calibration.calibrate`. With them, the factors approximate a layer's
            outputs on data instead of its weight, unless held-out patches show that this does not help.
        mode: ``factorized`` replaces each layer by a :class:`common.network.lowrank.LowRank`. Its factors are balanced
            (:func:`common.decomposition.balance`) for fine-tuning. ``reconstruct`` keeps the architecture and
            overwrites the weight by its low-rank approximation. The size stays the same; this mode serves to study
            the approximation alone. A layer without a bias then cannot keep the mean of its output; BatchNorm
            recalibration corrects this.
        sweeps: number of sweeps that improve the factors at the plan's ranks: with moments, of alternating least
            squares on whole patches, whose result is used only if it reduces the output's error on held-out patches;
            without, of higher-order orthogonal iteration for Tucker-2 and HTD. 0 keeps the slices from planning.
        decompositions: existing decompositions of ``model``. Their own moments and sweeps apply.

    Returns:
        The compressed network, in ``model``'s training mode, on its device.

    Raises:
        ValueError: ``mode`` is unknown, ``sweeps`` is negative, the network is compressed already or is a single
            layer, or the plan names a layer that the network does not have or ranks that a layer cannot have.
    """
    check_choice("mode", mode, MODES)
    if sweeps < 0:
        raise ValueError(f"sweeps={sweeps}: it must be at least 0")
    if not isinstance(plan, RankPlan):
        raise ValueError(
            f"plan={plan!r}: it must be a RankPlan; plan_ranks(model, x, method, rule) makes one of a rule"
        )
    provenance = check_uncompressed(model)
    decompositions = decompositions or Decompositions(model, moments, sweeps)
    layers = planned_layers(model, plan)  # from the dense network: a copy separates weights that share memory
    small = independent_copy(model)
    device = next(model.parameters(), torch.empty(0)).device
    with torch.no_grad(), random_state_kept(device):  # new layers draw weights that the factors replace
        without_mean = _replace_layers(small, plan, layers, decompositions, mode)
    if without_mean:
        shown = ", ".join(without_mean[:3]) + (", ..." if len(without_mean) > 3 else "")
        warnings.warn(
            f"the plan was made without moments and gives no bias to {shown}, which therefore lose the mean of their "
            "outputs; give the same moments to plan_ranks",
            stacklevel=3,
        )
    if mode == "factorized":
        set_provenance(small, dataclasses.replace(provenance, plan=plan))
    return small


class SingleLayers:
    """A copy of a dense network in which one layer at a time is factored, as :func:`compress` does it.

    Args:
        model: the dense network. It stays unchanged and shares no weights with the copy.
        decompositions: of its layers.

    Raises:
        ValueError: the network is compressed already.
    """

    def __init__(self, model: nn.Module, decompositions: Decompositions) -> None:
        check_uncompressed(model)
        self._model, self._decompositions = model, decompositions
        self._copy = independent_copy(model)
        self._device = next(model.parameters(), torch.empty(0)).device

    @contextmanager
    def factored(self, name: str, plan: LayerPlan) -> Iterator[nn.Module]:
        """Factor one layer of the copy. Afterwards the copy is dense again.

        Args:
            name: of the layer.
            plan: of this layer.

        Raises:
            ValueError: the network has no such layer, or it cannot have these ranks.
        """
        single = RankPlan({name: plan}, "", "")
        layers = planned_layers(self._model, single)
        layer = self._copy.get_submodule(name)
        try:
            with torch.no_grad(), ordinary_precision(), random_state_kept(self._device):
                _replace_layers(self._copy, single, layers, self._decompositions, "factorized")
            yield self._copy
        finally:
            replace_module(self._copy, self._copy.get_submodule(name), layer)


def check_uncompressed(model: nn.Module) -> Provenance:
    """Return where a dense network comes from.

    Raises:
        TypeError: it is no network.
        ValueError: the network is compressed already, or has weights without values.
    """
    check_has_values(model)
    provenance = get_provenance(model) or Provenance()
    if provenance.plan is not None:
        raise ValueError("the network is compressed already; compress the dense network instead")
    return provenance


def _replace_layers(
    small: nn.Module,
    plan: RankPlan,
    layers: Mapping[str, tuple[FactorableLayer, EffectiveLayer]],
    decompositions: Decompositions,
    mode: str,
) -> list[str]:
    """Replace the planned layers in ``small``; return the names of layers whose outputs lose their mean."""
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
    """Replace ``layer`` by its factors; return the last factor."""
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
    """Write the low-rank weight into ``layer``, or into its plain equivalent; return the layer with the weight."""
    if type(layer) is type(effective.layer):
        assert isinstance(layer, FactorableLayer)
        set_convolution_weight(layer, weight)
        return layer
    plain = copy.deepcopy(effective.layer)
    set_convolution_weight(plain, weight)
    replace_module(model, layer, stand_in(layer, effective, [plain]))
    return plain


def planned_layers(model: nn.Module, plan: RankPlan) -> dict[str, tuple[FactorableLayer, EffectiveLayer]]:
    """Return the layers of ``model`` that ``plan`` factors, by name, each with its plain equivalent.

    Raises:
        ValueError: the network has no such layer, the layer cannot be replaced, or the plan's method does not apply
            to it.
    """
    modules, (served, reasons) = dict(model.named_modules()), effective_layers(model)
    layers: dict[str, tuple[FactorableLayer, EffectiveLayer]] = {}
    for name in plan.factored:
        check_choice("layer of the plan", name, modules)
        layer = modules[name]
        if layer is model:
            raise ValueError(
                "the network is a single layer, which cannot be replaced within itself; put it in a Sequential"
            )
        if isinstance(layer, LowRank):
            raise ValueError(f"layer {name!r} is factored already; give the dense network instead")
        if not isinstance(layer, FactorableLayer):
            raise ValueError(f"layer {name!r} of the plan is a {type(layer).__name__}, which cannot be factored")
        if name in reasons:
            raise ValueError(f"layer {name!r} of the plan must stay dense: {reasons[name]}")
        check_choice(f"method of layer {name!r}", plan.layers[name].method, methods_for(layer))
        layers[name] = (layer, served[name])
    return layers


def methods_for(layer: FactorableLayer) -> tuple[str, ...]:
    """Return the names of the decompositions that apply to a layer."""
    linear, transposed = isinstance(layer, nn.Linear), isinstance(layer, TransposedConvolution)
    return tuple(
        name
        for name, kind in DECOMPOSITIONS.items()
        if not (linear and kind.needs_kernel) and kind.serves(len(kernel_size(layer)), transposed)
    )


def factored_layer(layer: nn.Module, effective: EffectiveLayer, plan: LayerPlan) -> LowRank:
    """Create the replacement of ``layer`` at the plan's ranks, with uninitialised weights.

    Args:
        layer: the layer to replace.
        effective: its plain equivalent.
        plan: method and ranks of the layer.

    Raises:
        ValueError: the number of ranks differs from the method's, or a rank is out of range.
    """
    plain = effective.layer
    kind = DECOMPOSITIONS[str(plan.method)]
    if len(plan.ranks) != len(kind.rank_names) or not all(1 <= rank <= plain.weight.numel() for rank in plan.ranks):
        raise ValueError(f"ranks={plan.ranks}: {plan.method} takes {len(kind.rank_names)}, each at least 1")
    device_and_dtype: dict[str, Any] = {"device": plain.weight.device, "dtype": plain.weight.dtype}
    bias = plain.bias is not None or plan.shift
    factors: list[FactorableLayer]
    if isinstance(plain, nn.Linear):
        rank = plan.ranks[0]
        factors = [
            nn.Linear(plain.in_features, rank, bias=False, **device_and_dtype),
            nn.Linear(rank, plain.out_features, bias=bias, **device_and_dtype),
        ]
    else:
        channels = kind.factor_channels(plain.in_channels, plain.out_channels, plan.ranks, plain.groups)
        factors = [
            _convolution_factor(plain, own, kernel_axes, bias and index == len(channels) - 1, device_and_dtype)
            for index, (own, kernel_axes) in enumerate(zip(channels, kind.axes, strict=True))
        ]
    for factor in factors:
        factor.requires_grad_(plain.weight.requires_grad).train(layer.training)
    if plain.bias is not None and factors[-1].bias is not None:
        factors[-1].bias.requires_grad_(plain.bias.requires_grad)
    return stand_in(layer, effective, factors, plan)


def _convolution_factor(
    layer: AnyConvolution,
    channels: tuple[int, int, int],
    kernel_axes: tuple[bool, bool],
    bias: bool,
    device_and_dtype: dict[str, Any],
) -> AnyConvolution:
    """Create one factor, with the layer's kernel, stride, padding and dilation on the axes in ``kernel_axes``."""
    inputs, outputs, groups = channels
    dimensions = len(layer.kernel_size)
    own = own_axes(kernel_axes, dimensions)

    def on_axes(name: str, otherwise: int) -> tuple[int, ...]:
        return tuple(value if taken else otherwise for value, taken in zip(setting(layer, name), own, strict=True))

    shared: dict[str, Any] = {"groups": groups, "bias": bias, **device_and_dtype}
    if not any(own):
        return CONVOLUTIONS[dimensions - 1](inputs, outputs, 1, **shared)
    shared["padding"] = layer.padding if isinstance(layer.padding, str) else on_axes("padding", 0)
    shared["padding_mode"] = layer.padding_mode
    shared["dilation"] = on_axes("dilation", 1)
    kernel, stride = on_axes("kernel_size", 1), on_axes("stride", 1)
    if isinstance(layer, Convolution):
        return CONVOLUTIONS[dimensions - 1](inputs, outputs, kernel, stride, **shared)
    shared["output_padding"] = on_axes("output_padding", 0)
    return TRANSPOSED_CONVOLUTIONS[dimensions - 1](inputs, outputs, kernel, stride, **shared)
