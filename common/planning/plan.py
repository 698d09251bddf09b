"""``RankPlan``: the method and ranks of every factored layer, and the reason for every dense one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from common.decomposition import Ranks
from common.display import Display, Displayed
from common.network.provenance import get_provenance


@dataclass(frozen=True)
class LayerPlan:
    """The plan for one layer: factored at given ranks, or dense for a reason.

    Attributes:
        method: name of the decomposition; None for a dense layer.
        ranks: the method's ranks; empty for a dense layer.
        reason: why the layer stays dense, see ``common/network/shapes.py``; empty for a factored layer.
        shift: whether the last factor gets a bias, if the layer has none, to keep the output's mean.
    """

    method: str | None = None
    ranks: Ranks = ()
    reason: str = ""
    shift: bool = False


@dataclass(frozen=True)
class Untouched:
    """Modules of one class with parameters that the plan leaves as they are.

    Attributes:
        kind: their class.
        names: their names; a part that never runs counts as one module.
        params: their fraction of the network's parameters, 0 to 1.
        macs: their fraction of the network's multiply-accumulates, 0 to 1.
        reason: why the plan leaves them as they are.
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
class RankPlan(Displayed):
    """A plan for every layer of a network that a decomposition could replace.

    Attributes:
        layers: name of the layer (as in ``model.named_modules()``) -> its plan.
        method: the method asked for, e.g. ``htd``. Layers may differ from it: a 1x1 convolution always takes ``svd``.
        rule: name of the rank rule or search policy that chose the ranks.
        settings: the rule's settings, e.g. ``{"tau": 0.9, "exponent": 1}``.
        untouched: the other modules with parameters. Together with ``layers`` they hold every parameter.
    """

    layers: Mapping[str, LayerPlan]
    method: str
    rule: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    untouched: tuple[Untouched, ...] = ()

    @property
    def factored(self) -> dict[str, LayerPlan]:
        """The layers to replace, with their plans."""
        return {name: layer for name, layer in self.layers.items() if layer.method is not None}

    @property
    def skipped(self) -> dict[str, str]:
        """The layers that stay dense, with the reasons."""
        return {name: layer.reason for name, layer in self.layers.items() if layer.method is None}

    def display(self) -> Display:
        """Which layer is factored at which ranks, and why the others stay dense."""
        settings = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.settings.items()
            if not isinstance(value, Mapping | bool | None) and (name, value) != ("round_to", 1)
        )
        rule = f"{self.rule} ({settings})" if settings else self.rule
        headings = ["layer", "method", "ranks", *(["why dense"] if self.skipped else [])]
        rows = [
            [name, layer.method or "dense", "x".join(map(str, layer.ranks)), layer.reason][: len(headings)]
            for name, layer in self.layers.items()
        ]
        title = f"{self.method} by {rule}: {len(self.factored)} of {len(self.layers)} layers factored"
        return Display(title, headings, rows, notes=[str(kind) for kind in self.untouched])

    def layers_as_json(self) -> dict[str, dict[str, Any]]:
        """Layer -> ``{"method": ..., "ranks": [...]}`` or ``{"dense": reason}``, as a trial record holds them."""
        return {
            name: {"method": layer.method, "ranks": list(layer.ranks), **({"shift": True} if layer.shift else {})}
            if layer.method
            else {"dense": layer.reason}
            for name, layer in self.layers.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Convert the plan to plain values for JSON."""
        return {
            "method": self.method,
            "rule": self.rule,
            "settings": dict(self.settings),
            "layers": self.layers_as_json(),
            "untouched": [asdict(kind) | {"names": list(kind.names)} for kind in self.untouched],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RankPlan:
        """Read a plan that :meth:`to_json` wrote.

        Raises:
            ValueError: a part is missing or has the wrong type.
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
    """The plan behind a compressed network; None for a dense network, or one that this suite did not compress."""
    provenance = get_provenance(model)
    return provenance.plan if provenance is not None and isinstance(provenance.plan, RankPlan) else None
