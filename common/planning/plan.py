"""``RankPlan``: which layer is factored how, at what ranks, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.decomposition import Ranks


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        method: name of the decomposition, or None when the layer stays dense.
        ranks: the method's ranks; empty when the layer stays dense.
        reason: why it stays dense; empty when it is factored.
        shift: whether the last factor has a bias of its own where the layer has none, to keep the output's mean.
    """

    method: str | None = None
    ranks: Ranks = ()
    reason: str = ""
    shift: bool = False


@dataclass(frozen=True)
class RankPlan:
    """A plan for every layer of a network that a decomposition could replace.

    Attributes:
        layers: name of the layer (as in ``model.named_modules()``) -> its plan.
        method: what was asked for, e.g. ``htd``; single layers may differ (a 1x1 convolution is always ``svd``).
        rule: the rank rule that chose the ranks, or the name of the search policy.
        settings: what the rule was told, e.g. ``{"tau": 0.9, "exponent": 1}``.
    """

    layers: Mapping[str, LayerPlan]
    method: str
    rule: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def factored(self) -> dict[str, LayerPlan]:
        """The layers that are replaced."""
        return {name: layer for name, layer in self.layers.items() if layer.method is not None}

    @property
    def skipped(self) -> dict[str, str]:
        """The layers that stay dense, with the reason for each."""
        return {name: layer.reason for name, layer in self.layers.items() if layer.method is None}

    def __str__(self) -> str:
        text = f"{self.method}/{self.rule}: {len(self.factored)} of {len(self.layers)} layers factored"
        return text + "".join(f"\n  {name} stays dense: {reason}" for name, reason in self.skipped.items())

    def layers_as_json(self) -> dict[str, dict[str, Any]]:
        """Layer -> ``{"method": ..., "ranks": [...]}`` or ``{"dense": why}``; what a trial record holds."""
        return {
            name: {"method": layer.method, "ranks": list(layer.ranks), **({"shift": True} if layer.shift else {})}
            if layer.method
            else {"dense": layer.reason}
            for name, layer in self.layers.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values that JSON can hold."""
        return {
            "method": self.method,
            "rule": self.rule,
            "settings": dict(self.settings),
            "layers": self.layers_as_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RankPlan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            ValueError: a part is missing or not of its type.
        """
        try:
            layers = {
                str(name): LayerPlan(reason=str(layer["dense"]))
                if "dense" in layer
                else LayerPlan(
                    str(layer["method"]), tuple(int(rank) for rank in layer["ranks"]), shift=layer.get("shift", False)
                )
                for name, layer in values["layers"].items()
            }
            return cls(layers, str(values["method"]), str(values["rule"]), dict(values.get("settings", {})))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is not a rank plan: {error!r}") from error
