"""``compress``: a ``RankPlan`` applied to a network; the dense network is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.choices import check_choice
from common.models.provenance import Provenance, get_provenance, set_provenance
from common.planning.layers import Decompositions, FactorableLayer
from common.planning.plan import LayerPlan, RankPlan

MODES = ("factorized", "reconstruct")

_AXES = {
    "svd": ((True, True), (False, False)),
    "tucker2": ((False, False), (True, True), (False, False)),
    "htd": ((False, False), (True, False), (False, True), (False, False)),
}
"""For each factor of a method: whether it takes over the (height, width) of the layer's kernel, stride, padding and
dilation; a factor that takes over neither is a 1x1 convolution."""


def compress(
    model: nn.Module, plan: RankPlan, *, mode: str = "factorized", decompositions: Decompositions | None = None
) -> nn.Module:
    """A smaller copy of ``model`` in which the layers that ``plan`` factors are low-rank.

    Args:
        model: the dense network; neither it nor its weights are changed or shared.
        plan: from :func:`common.planning.plan_ranks` for this network.
        mode: ``factorized`` replaces a layer by a ``Sequential`` of smaller ones. ``reconstruct`` keeps the
            architecture and writes the low-rank weight back: the same size, for studying the approximation alone.
        decompositions: those of ``model``, when they are there already.

    Returns:
        The compressed network, in ``model``'s training mode, on its device.

    Raises:
        ValueError: ``mode`` is unknown, or the plan names a layer that the network does not have or ranks that the
            layer cannot have.
    """
    check_choice("mode", mode, MODES)
    decompositions = decompositions or Decompositions(model)
    small = copy.deepcopy(model)
    layers = planned_layers(small, plan)
    with torch.no_grad():
        for name, layer in layers.items():
            planned = plan.layers[name]
            assert planned.method is not None
            decomposition = decompositions.get(name, planned.method)
            if mode == "reconstruct":
                layer.weight.copy_(decomposition.reconstruct(planned.ranks))
            else:
                factors = low_rank_layers(layer, planned, decomposition.factors(planned.ranks))
                replace_module(small, layer, factors)
    if mode == "factorized":
        provenance = get_provenance(model) or Provenance()
        set_provenance(small, Provenance(provenance.builder, provenance.arguments, plan))
    return small


def planned_layers(model: nn.Module, plan: RankPlan) -> dict[str, FactorableLayer]:
    """The layers of ``model`` that ``plan`` factors, by name.

    Raises:
        ValueError: the network has no such layer, or it is of a kind that has no ranks.
    """
    modules = dict(model.named_modules())
    layers: dict[str, FactorableLayer] = {}
    for name in plan.factored:
        check_choice("layer of the plan", name, modules)
        layer = modules[name]
        if not isinstance(layer, FactorableLayer):
            raise ValueError(
                f"layer {name!r} of the plan is a {type(layer).__name__}; only Conv2d and Linear have ranks"
            )
        layers[name] = layer
    return layers


def low_rank_layers(layer: FactorableLayer, plan: LayerPlan, weights: Sequence[Tensor]) -> nn.Sequential:
    """The layers that stand in for ``layer``, with ``weights`` as theirs and its bias on the last one."""
    factors = factor_modules(layer, plan)
    with torch.no_grad():
        for factor, weight in zip(factors, weights, strict=True):
            assert isinstance(factor, FactorableLayer)
            factor.weight.copy_(weight)
        if layer.bias is not None:
            assert isinstance(factors[-1].bias, Tensor)
            factors[-1].bias.copy_(layer.bias)
    for factor in factors:
        factor.requires_grad_(layer.weight.requires_grad)
    return factors.train(layer.training)


def factor_modules(layer: FactorableLayer, plan: LayerPlan) -> nn.Sequential:
    """The layers that stand in for ``layer`` at the plan's ranks, with weights that are still to be filled in."""
    place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    has_bias = layer.bias is not None
    ranks = plan.ranks
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, ranks[0], bias=False, **place),
            nn.Linear(ranks[0], layer.out_features, bias=has_bias, **place),
        )

    axes = _AXES[str(plan.method)]
    widths = (layer.in_channels, *(rank * layer.groups for rank in ranks), layer.out_channels)
    padding = layer.padding
    return nn.Sequential(
        *(
            nn.Conv2d(
                widths[index],
                widths[index + 1],
                _taken(layer.kernel_size, taken, 1),
                stride=_taken(layer.stride, taken, 1),
                padding=padding if isinstance(padding, str) else _taken(padding, taken, 0),
                dilation=_taken(layer.dilation, taken, 1),
                groups=layer.groups,
                bias=has_bias and index == len(axes) - 1,
                padding_mode=layer.padding_mode,
                **place,
            )
            for index, taken in enumerate(axes)
        )
    )


def _taken(values: Sequence[int], taken: tuple[bool, bool], otherwise: int) -> tuple[int, int]:
    """The layer's values on the axes that a factor takes over, ``otherwise`` on the others."""
    return (values[0] if taken[0] else otherwise, values[1] if taken[1] else otherwise)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` stands in ``model``; a module that is used twice stays one module."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would name a repeated child once
            if child is old:
                parent.set_submodule(name, new)
