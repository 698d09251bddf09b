"""``compress``: a ``RankPlan`` applied to a network; the dense network is left as it was."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from common.choices import check_choice
from common.decomposition import DECOMPOSITIONS, LayerMoments, balance
from common.models.provenance import Provenance, get_provenance, set_provenance
from common.planning.layers import Decompositions, FactorableLayer, irreplaceable_layers, set_convolution_weight
from common.planning.plan import LayerPlan, RankPlan

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
            than their weights.
        mode: ``factorized`` replaces a layer by a ``Sequential`` of smaller ones, balanced
            (:func:`common.decomposition.balance`) so that they can be fine-tuned. ``reconstruct`` keeps the
            architecture and writes the low-rank weight back: the same size, for studying the approximation alone. A
            layer without a bias then cannot keep its output's mean, which BatchNorm recalibration makes up for.
        sweeps: of the higher-order orthogonal iteration that Tucker-2 and HTD make at the plan's ranks; 0 takes the
            slices of the HOSVD that the plan was made with, which is faster and a few percent less exact.
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
    planned_layers(model, plan)  # checked here too: two weights in one memory are apart in a copy
    small = copy.deepcopy(model)
    layers = planned_layers(small, plan)
    without_mean = []
    with torch.no_grad():
        for name, layer in layers.items():
            planned = plan.layers[name]
            assert planned.method is not None
            decomposition = decompositions.get(name, planned.method)
            try:
                decomposition.check(planned.ranks)
            except ValueError as error:
                raise ValueError(f"layer {name!r} of the plan: {error}") from None
            shift = decomposition.bias_shift(planned.ranks)
            if mode == "reconstruct":
                set_convolution_weight(layer, decomposition.reconstruct(planned.ranks))
                last: nn.Module = layer
            else:
                factors = factor_modules(layer, planned)
                weights = balance(decomposition.factors(planned.ranks), decomposition.groups)
                for factor, weight in zip(factors, weights, strict=True):
                    assert isinstance(factor, FactorableLayer)
                    set_convolution_weight(factor, weight)
                last = factors[-1]
                if last.bias is not None:
                    last.get_parameter("bias").copy_(torch.tensor(0.0) if layer.bias is None else layer.bias)
                replace_module(small, layer, factors)
            if shift is not None and getattr(last, "bias", None) is not None:
                last.get_parameter("bias").add_(shift)
            elif shift is not None and mode == "factorized":
                without_mean.append(name)
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


def planned_layers(model: nn.Module, plan: RankPlan) -> dict[str, FactorableLayer]:
    """The layers of ``model`` that ``plan`` factors, by name.

    Raises:
        ValueError: the network has no such layer, nothing can stand in for it, or the plan's method does not serve it.
    """
    modules, irreplaceable = dict(model.named_modules()), irreplaceable_layers(model)
    layers: dict[str, FactorableLayer] = {}
    for name in plan.factored:
        check_choice("layer of the plan", name, modules)
        layer = modules[name]
        if layer is model:
            raise ValueError(
                "the network is a single layer, which has no place to be replaced in; put it in a Sequential"
            )
        if not isinstance(layer, FactorableLayer):
            raise ValueError(f"layer {name!r} of the plan is a {type(layer).__name__}, which has no ranks")
        if name in irreplaceable:
            raise ValueError(f"layer {name!r} of the plan has to stay dense: {irreplaceable[name]}")
        check_choice(f"method of layer {name!r}", plan.layers[name].method, methods_for(layer))
        layers[name] = layer
    return layers


def methods_for(layer: FactorableLayer) -> tuple[str, ...]:
    """The decompositions that a layer can have: a Linear has no kernel, and no method splits a transposed one."""
    if isinstance(layer, nn.Linear):
        return ("svd",)
    return ("svd", "tucker2") if isinstance(layer, nn.ConvTranspose2d) else tuple(DECOMPOSITIONS)


def factor_modules(layer: FactorableLayer, plan: LayerPlan) -> nn.Sequential:
    """The layers that stand in for ``layer`` at the plan's ranks, with weights that are still to be filled in.

    Raises:
        ValueError: there are more or fewer ranks than the method has, or one that no such layer can have.
    """
    expected = len(DECOMPOSITIONS[str(plan.method)].axes) - 1
    if len(plan.ranks) != expected or not all(1 <= rank <= layer.weight.numel() for rank in plan.ranks):
        raise ValueError(f"ranks={plan.ranks}: {plan.method} takes {expected}, each at least 1")
    place: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    bias = layer.bias is not None or plan.shift
    if isinstance(layer, nn.Linear):
        rank = plan.ranks[0]
        factors: list[nn.Module] = [
            nn.Linear(layer.in_features, rank, bias=False, **place),
            nn.Linear(rank, layer.out_features, bias=bias, **place),
        ]
    else:
        axes = DECOMPOSITIONS[str(plan.method)].axes
        widths = (layer.in_channels, *(rank * layer.groups for rank in plan.ranks), layer.out_channels)
        factors = [
            _convolution(layer, widths[index], widths[index + 1], taken, bias and index == len(axes) - 1, place)
            for index, taken in enumerate(axes)
        ]
    return nn.Sequential(*factors).requires_grad_(layer.weight.requires_grad).train(layer.training)


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


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` stands in ``model``, in plain lists, tuples and dicts too.

    A module that is used twice stays one module.
    """
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would name a repeated child once
            if child is old:
                parent.set_submodule(name, new)
        for name, value in list(vars(parent).items()):
            if name not in _OF_EVERY_MODULE and isinstance(value, (nn.Module, list, tuple, dict)):
                vars(parent)[name] = _with_replaced(value, old, new)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _with_replaced(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """``value`` with ``new`` for ``old``, however deep in lists, tuples and dicts; lists and dicts are changed."""
    if value is old:
        return new
    if isinstance(value, list):
        value[:] = [_with_replaced(each, old, new) for each in value]
    elif isinstance(value, dict):
        value.update({key: _with_replaced(each, old, new) for key, each in value.items()})
    elif type(value) is tuple:
        return tuple(_with_replaced(each, old, new) for each in value)
    return value
