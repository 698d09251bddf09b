"""Rank rule ``budget``: the least predicted loss within given fractions of the dense network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from common.planning.accounting import budget_obstacles, nothing_to_factor, used_parameters
from common.planning.allocation import UnreachableBudget, allocate
from common.planning.limits import Limits
from common.planning.options import aligned_step, dense_layer_seconds, layer_options
from common.planning.plan import RankPlan
from common.planning.rules.base import RULES, Network, Rule, check_round_to

READ_ELSEWHERE = "its weight is also used without calling it, which takes the product of its factors in each pass"
"""Why a layer stays dense although it could be factored."""


@RULES.add
@dataclass(frozen=True)
class Budget(Limits, Rule):
    """Fractions of the dense network to keep, each in (0, 1]. At least one is given; a plan exceeds none.

    Args:
        params: fraction of the parameters.
        macs: fraction of the multiply-accumulates.
        latency: fraction of the time in ``runtime`` on this machine, as predicted from measured times.
        runtime: name of the runtime, see ``common.latency``; only used with ``latency``.
        round_to: ranks are multiples of it, or a mode's maximum. None takes 16 for wide layers and 1 for the others,
            see :func:`common.planning.options.aligned_step`.

    Raises:
        ValueError: no fraction is given, or one is out of range.
    """

    name = "budget"
    round_to: int | None = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.round_to is not None:
            check_round_to(self.round_to)

    __str__ = Limits.__str__

    def plan(self, network: Network) -> RankPlan:
        """Choose the ranks with the least predicted loss within the budget, which counts the whole network.

        Raises:
            ValueError: the budget cannot be met, or it limits the latency and no times were measured in its runtime.
        """
        network = self._without_read(network)
        if not network.shapes:
            raise ValueError(f"{self} cannot be met: {nothing_to_factor(network.model, network.untouched)}")
        self._check_latencies(network)
        latencies = network.latencies
        options = {
            name: layer_options(
                name,
                shape,
                network.decompositions,
                network.methods,
                divergences=network.divergences,
                round_to=aligned_step(shape) if self.round_to is None else self.round_to,
                latencies=latencies,
            )
            for name, shape in network.shapes.items()
        }
        operations = network.operations
        if self.macs is not None and operations.uncounted:
            named = ", ".join(operations.uncounted)
            warnings.warn(f"the budget of MACs leaves out operators whose MACs are not known: {named}", stacklevel=3)
        dense: list[float] = [used_parameters(network.model, operations), operations.macs]
        layers_cost = np.sum([(0, 0), *(shape.dense_cost for shape in network.shapes.values())], axis=0).tolist()
        if latencies is not None:
            layers_cost.append(sum(dense_layer_seconds(shape, latencies) for shape in network.shapes.values()))
            dense.append(latencies.dense_seconds)
        rest = [whole - part for whole, part in zip(dense, layers_cost, strict=True)]
        try:
            layers = allocate(options, self, dense, rest)
        except UnreachableBudget as error:
            obstacles = budget_obstacles(network.model, network.shapes, network.untouched)
            raise UnreachableBudget(f"{error}; {obstacles}" if obstacles else str(error)) from None
        settings = self._settings(network)
        if latencies is not None:
            settings |= {"latency": self.latency, **latencies.conditions, "dense_s": latencies.dense_seconds}
            settings["predicted_s"] = latencies.network_seconds(layers)
        return RankPlan(layers, network.method, self.name, settings, network.untouched)

    def _without_read(self, network: Network) -> Network:
        """Under a budget of MACs or latency, keep layers dense whose weight the network also reads."""
        if self.macs is None and self.latency is None:
            return network
        shapes = {
            name: replace(shape, reason=shape.reason or READ_ELSEWHERE) if shape.read_elsewhere else shape
            for name, shape in network.shapes.items()
        }
        return replace(network, shapes=shapes)

    def _check_latencies(self, network: Network) -> None:
        """Raise a ValueError unless the network has the latencies that the budget needs."""
        latencies = network.latencies
        if self.latency is None:
            if latencies is not None:
                raise ValueError(f"latencies with {self}: only a Budget(latency=...) takes them")
            return
        if latencies is None:
            raise ValueError(
                f"{self}: the latency has to be measured first; give "
                f"latencies=common.latency.measured_latencies(model, x, {self.runtime!r}, {network.method!r})"
            )
        if latencies.runtime != self.runtime:
            raise ValueError(
                f"{self} with latencies of the runtime {latencies.runtime!r}: the runtimes must be the same"
            )
        latencies.check(network.model, network.x)

    def _settings(self, network: Network) -> dict[str, Any]:
        """The rule's settings, and whether the predicted loss is a measured divergence (``measured``)."""
        return {
            "params": self.params,
            "macs": self.macs,
            "round_to": self.round_to,
            "measured": network.divergences is not None,
        }
