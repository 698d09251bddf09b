"""What a rank rule is: a value that chooses the ranks of every layer of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from common.network.counting import Operations
from common.network.shapes import LayerShape
from common.planning.costs import dense_unless_smaller
from common.planning.decompositions import Decompositions
from common.planning.latencies import Latencies
from common.planning.options import Divergences
from common.planning.plan import LayerPlan, RankPlan, Untouched
from common.validation import Registry


@dataclass(frozen=True)
class Network:
    """A network, what it is fed, and what is known of its layers: all that a rule may look at.

    Attributes:
        model: the dense network.
        x: one example input ``(N, C, H, W)``.
        method: what the caller asked for, e.g. ``mixed``.
        methods: the decompositions that stand to choice.
        shapes: of the layers that could be factored.
        decompositions: of these layers.
        operations: what one pass runs.
        untouched: modules that no decomposition serves.
        divergences: measured divergence of the network's output at errors, layer by layer; None counts squared errors.
        latencies: measured times of what the layers may become; None where no latency is limited.
    """

    model: nn.Module
    x: Tensor
    method: str
    methods: tuple[str, ...]
    shapes: Mapping[str, LayerShape]
    decompositions: Decompositions
    operations: Operations
    untouched: tuple[Untouched, ...]
    divergences: Divergences | None = None
    latencies: Latencies | None = None


class Rule(ABC):
    """A rank rule. Its subclasses are frozen dataclasses whose fields are what the rule is told."""

    name: ClassVar[str]

    @abstractmethod
    def plan(self, network: Network) -> RankPlan:
        """The ranks of every layer of ``network``.

        Raises:
            ValueError: the rule does not fit the network.
        """


@dataclass(frozen=True)
class PerLayerRule(Rule):
    """A rule that looks at one layer at a time.

    Args:
        round_to: ranks are raised to the next multiple of it, or to the mode's maximum.
        only_if_smaller: keep a layer dense where its factors would not have fewer parameters and no more MACs.

    Raises:
        ValueError: ``round_to`` is below 1.
    """

    round_to: int = field(default=1, kw_only=True)
    only_if_smaller: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_round_to(self.round_to)

    @abstractmethod
    def choose(self, network: Network) -> dict[str, LayerPlan]:
        """What becomes of each layer, whatever it costs."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the rule was told, as plain values for a plan."""
        return {}

    def rounded(self, plan: LayerPlan, name: str, decompositions: Decompositions) -> LayerPlan:
        """``plan`` with its ranks raised to multiples of ``round_to``."""
        if plan.method is None or self.round_to == 1:
            return plan
        return replace(plan, ranks=decompositions.get(name, plan.method).round_up(plan.ranks, self.round_to))

    def plan(self, network: Network) -> RankPlan:
        """See :meth:`Rule.plan`."""
        layers = {
            name: self.rounded(plan, name, network.decompositions) for name, plan in self.choose(network).items()
        }
        if self.only_if_smaller:
            layers = {name: dense_unless_smaller(network.shapes[name], plan) for name, plan in layers.items()}
        return RankPlan(layers, network.method, self.name, self.settings, network.untouched)


def check_round_to(round_to: int) -> None:
    """Raise a ValueError unless ``round_to`` is at least 1."""
    if round_to < 1:
        raise ValueError(f"round_to={round_to!r}: it must be at least 1")


RULES: Registry[type[Rule]] = Registry("rule", lambda rule: rule.name)
"""Every rank rule by name."""
