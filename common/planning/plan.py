"""``RankPlan``: which layer is factored how, at what ranks, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from common.decomposition import Ranks
from common.network.provenance import get_provenance


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
class Untouched:
    """Modules with parameters that no decomposition here serves.

    Attributes:
        kind: their class.
        names: of the modules; of a part that never runs, the part's own.
        params: share of the network's parameters, 0 to 1.
        macs: share of its multiply-accumulates.
        reason: why they are left as they are.
    """

    kind: str
    names: tuple[str, ...]
    params: float
    macs: float
    reason: str

    def __str__(self) -> str:
        shown = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        return (
            f"{self.kind} x {len(self.names)} ({shown}), {self.params:.1%} of the parameters and {self.macs:.1%} of "
            f"the MACs, stays as it is: {self.reason}"
        )


@dataclass(frozen=True)
class RankPlan:
    """A plan for every layer of a network that a decomposition could replace.

    Attributes:
        layers: name of the layer (as in ``model.named_modules()``) -> its plan.
        method: what was asked for, e.g. ``htd``; single layers may differ (a 1x1 convolution is always ``svd``).
        rule: the rank rule that chose the ranks, or the name of the search policy.
        settings: what the rule was told, e.g. ``{"tau": 0.9, "exponent": 1}``.
        untouched: what else the network has, of kinds that are not factored; with ``layers`` every parameter is named.
    """

    layers: Mapping[str, LayerPlan]
    method: str
    rule: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    untouched: tuple[Untouched, ...] = ()

    @property
    def factored(self) -> dict[str, LayerPlan]:
        """The layers that are replaced."""
        return {name: layer for name, layer in self.layers.items() if layer.method is not None}

    @property
    def skipped(self) -> dict[str, str]:
        """The layers that stay dense, with the reason for each."""
        return {name: layer.reason for name, layer in self.layers.items() if layer.method is None}

    def __str__(self) -> str:
        lines = [f"{self.method}/{self.rule}: {len(self.factored)} of {len(self.layers)} layers factored"]
        for name, layer in self.factored.items():
            lines.append(f"{name}: {layer.method} at {'x'.join(map(str, layer.ranks))}")
        lines += [f"{name} stays dense: {reason}" for name, reason in self.skipped.items()]
        return "\n  ".join([*lines, *map(str, self.untouched)])

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
            "untouched": [asdict(kind) | {"names": list(kind.names)} for kind in self.untouched],
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
            untouched = tuple(
                Untouched(
                    str(kind["kind"]),
                    tuple(map(str, kind["names"])),
                    float(kind["params"]),
                    float(kind["macs"]),
                    str(kind["reason"]),
                )
                for kind in values.get("untouched", ())
            )
            settings = dict(values.get("settings", {}))
            return cls(layers, str(values["method"]), str(values["rule"]), settings, untouched)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is not a rank plan: {error!r}") from error


def plan_of(model: nn.Module) -> RankPlan | None:
    """The plan that ``model`` was compressed by; None for a dense network, or one from elsewhere."""
    provenance = get_provenance(model)
    return provenance.plan if provenance is not None and isinstance(provenance.plan, RankPlan) else None
