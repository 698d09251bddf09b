"""The decompositions of a network's layers: each made once, then sliced for every plan."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Any, TypeVar

from torch import nn

from common.decomposition import DECOMPOSITIONS, Decomposition, LayerMoments, Ranks, decompose, serving_method
from common.network.layers import FactorableLayer, effective_layers, factorable_layers
from common.network.shapes import LayerShape
from common.network.weights import convolution_weight
from common.planning.plan import LayerPlan
from common.validation import check_choice

Kept = TypeVar("Kept")


def layer_method(method: str, shape: LayerShape) -> str:
    """The method that serves a layer, see :func:`common.decomposition.serving_method`."""
    return serving_method(method, shape.kernel, shape.transposed)


class Decompositions:
    """The decompositions of a network's layers, each made when it is first asked for and then kept.

    Hand one to :func:`common.planning.plan_ranks` and :func:`common.compression.compress` to decompose once and
    plan and compress many times. The weights must not change in between.

    Args:
        model: the dense network.
        moments: from :func:`common.calibration.calibrate`: errors are then those of the layers' outputs on data. A
            layer of which too few patches were seen is decomposed by its weight alone.
        sweeps: of the higher-order orthogonal iteration for Tucker-2 and HTD, at the ranks that are used.

    Raises:
        ValueError: moments of a layer that the network does not have.
    """

    def __init__(self, model: nn.Module, moments: Mapping[str, LayerMoments] | None = None, sweeps: int = 0) -> None:
        self._model = model
        for name in moments or ():
            check_choice("layer of the moments", name, factorable_layers(model))
        self.moments = {name: found for name, found in (moments or {}).items() if not found.too_few}
        self.sweeps = sweeps
        self._made: dict[tuple[str, str], Decomposition] = {}
        self._kept: dict[Hashable, Any] = {}

    @cached_property
    def _layers(self) -> dict[str, FactorableLayer]:
        return {name: effective.layer for name, effective in effective_layers(self._model)[0].items()}

    def get(self, name: str, method: str) -> Decomposition:
        """The decomposition of layer ``name`` by ``method``.

        Raises:
            ValueError: the layer's weights are not finite.
        """
        if (name, method) not in self._made:
            layer = self._layers[name]
            groups = 1 if isinstance(layer, nn.Linear) else layer.groups
            weight = convolution_weight(layer)
            if not weight.isfinite().all():
                raise ValueError(f"layer {name!r} has weights that are not finite; nothing can be decomposed there")
            like = next((made for (layer_name, _), made in self._made.items() if layer_name == name), None)
            moments = self.moments.get(name) if like is None else like.moments
            moments = moments and moments.to(weight.device)
            self._made[name, method] = decompose(DECOMPOSITIONS[method], weight, groups, moments, self.sweeps, like)
        return self._made[name, method]

    def keep(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What ``make`` returned when ``key`` was first asked for: tables that every plan reads anew."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def plan(self, name: str, method: str, ranks: Ranks) -> LayerPlan:
        """The plan for layer ``name`` at these ranks, with a shift of the mean where its moments are known."""
        return LayerPlan(method, ranks, shift=name in self.moments)

    def spectra(self) -> dict[str, list[float]]:
        """Layer -> singular values along its output channels, descending."""
        return {name: self.get(name, "svd").spectrum.tolist() for name in self._layers}
