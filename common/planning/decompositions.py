"""The decompositions of a network's layers: each is computed once, then sliced for every plan."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from common.decomposition import DECOMPOSITIONS, Decomposition, Floats, LayerMoments, Ranks, decompose, serving_method
from common.decomposition.choice import rescaled
from common.network.kinds import FactorableLayer, group_count
from common.network.layers import effective_layers, factorable_layers
from common.network.shapes import LayerShape
from common.network.weights import convolution_weight
from common.planning.plan import LayerPlan
from common.validation import check_choice

Value = TypeVar("Value")


def layer_method(method: str, shape: LayerShape) -> str:
    """Find the method that serves a layer, see :func:`common.decomposition.serving_method`."""
    return serving_method(method, shape.kernel, shape.transposed)


def layer_methods(methods: Sequence[str], shape: LayerShape) -> tuple[str, ...]:
    """Find the methods that serve a layer in place of ``methods``, each once.

    Of several methods, those that would take minutes on so large a weight are left out.
    """
    elements = math.prod(shape.channels) * math.prod(shape.kernel) // shape.groups**2
    tried = [
        method
        for method in methods
        if len(methods) == 1 or elements <= (DECOMPOSITIONS[method].most_elements or elements)
    ]
    return tuple(dict.fromkeys(layer_method(method, shape) for method in tried))


class Decompositions:
    """The decompositions of a network's layers, computed on first use and then cached.

    Pass the same object to :func:`common.planning.plan_ranks` and :func:`common.compression.compress` to decompose
    once, then plan and compress many times. The weights must not change in between.

    Args:
        model: the dense network.
        moments: layer -> moments, from :func:`common.calibration.calibrate`. Errors are then those of the layers'
            outputs on data. A layer with too few patches is decomposed by its weight only.
        sweeps: number of improving sweeps at the ranks used, see :class:`common.decomposition.base.Decomposition`.

    Raises:
        ValueError: ``moments`` names a layer that the network does not have, or that has other channels.
    """

    def __init__(self, model: nn.Module, moments: Mapping[str, LayerMoments] | None = None, sweeps: int = 0) -> None:
        self._model = model
        for name in moments or ():
            check_choice("layer of the moments", name, factorable_layers(model))
        for name, found in (moments or {}).items():
            if name in self._layers:
                _check_widths(name, convolution_weight(self._layers[name]), found)
        self.moments = {name: found for name, found in (moments or {}).items() if not found.too_few}
        self.sweeps = sweeps
        self._decompositions: dict[tuple[str, str], Decomposition] = {}
        self._cache: dict[Hashable, Any] = {}
        self._points: Mapping[tuple[str, str], Sequence[tuple[float, float]]] = {}

    @cached_property
    def _layers(self) -> dict[str, FactorableLayer]:
        """Name -> layer with its effective weight."""
        return {name: effective.layer for name, effective in effective_layers(self._model)[0].items()}

    def get(self, name: str, method: str) -> Decomposition:
        """Decompose layer ``name`` by ``method``, or return the cached decomposition.

        Raises:
            ValueError: the layer's weights are not finite.
        """
        if (name, method) not in self._decompositions:
            layer = self._layers[name]
            weight = convolution_weight(layer)
            if not weight.isfinite().all():
                raise ValueError(f"layer {name!r} has weights that are not finite; it cannot be decomposed")
            same_layer = (made for (other, _), made in self._decompositions.items() if other == name)
            like = next(same_layer, None)
            moments = self.moments.get(name) if like is None else like.moments
            moments = moments and moments.to(weight.device)
            found = decompose(DECOMPOSITIONS[method], weight, group_count(layer), moments, self.sweeps, like)
            self._decompositions[name, method] = found
        return self._decompositions[name, method]

    def with_sweeps(self, sweeps: int) -> Decompositions:
        """Return decompositions of the same network with another number of sweeps; both share what is computed."""
        found = Decompositions(self._model, self.moments, sweeps)
        found._decompositions = {key: made.with_sweeps(sweeps) for key, made in self._decompositions.items()}
        found._points = self._points
        return found

    def corrected(self, points: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> Decompositions:
        """Return the same decompositions for plans that correct the predicted errors of layers.

        Args:
            points: (layer, method) -> pairs (predicted error, measured error), both positive, see
                :func:`common.planning.correction.measured_errors`. Other errors stay as predicted.
        """
        found = copy.copy(self)
        found._points = {key: sorted(pairs) for key, pairs in points.items() if pairs}
        return found

    def correct(self, name: str, method: str, errors: Floats) -> Floats:
        """Rescale predicted errors of a layer to measured ones, see :func:`common.decomposition.choice.rescaled`."""
        if (name, method) not in self._points:
            return errors
        predicted, measured = np.array(self._points[name, method]).T
        return rescaled(errors, predicted, measured)

    def cached(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value cached under ``key``; on first use, ``make`` computes it. For tables that plans share."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def plan(self, name: str, method: str, ranks: Ranks) -> LayerPlan:
        """The plan for layer ``name`` at these ranks; it shifts the mean if the layer has moments."""
        return LayerPlan(method, ranks, shift=name in self.moments)

    def spectra(self) -> dict[str, list[float]]:
        """Layer -> singular values along the output channels, descending."""
        return {name: self.get(name, "svd").spectrum.tolist() for name in self._layers}


def _check_widths(name: str, weight: Tensor, moments: LayerMoments) -> None:
    """Raise a ValueError unless the moments are of a layer with a weight of this shape, ``(O, I/G, ...)``."""
    groups, inputs, *kernel = moments.patch_mean.shape
    held = (groups * moments.output_covariance.shape[1], inputs, *kernel)
    if (*held[:2], math.prod(kernel)) != (*weight.shape[:2], math.prod(weight.shape[2:])):
        raise ValueError(
            f"moments of layer {name!r} are those of a weight of shape {held}, but its weight has shape "
            f"{tuple(weight.shape)}; they were measured on another network"
        )
