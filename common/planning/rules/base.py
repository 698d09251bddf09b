"""The interface of rank rules: values that choose the ranks of every layer of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
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
from common.validation import Registry, is_whole


@dataclass(frozen=True)
class Network:
    """A network, its input and all facts about its layers that a rule may use.

    Attributes:
        model: the dense network.
        x: one example input ``(N, C, H, W)``.
        method: the method asked for, e.g. ``mixed``.
        methods: the candidate decompositions.
        shapes: the shapes of the layers that could be factored.
        decompositions: the decompositions of these layers.
        operations: the operations of one pass.
        untouched: the other modules with parameters.
        divergences: measured divergence of the network's output at given errors of each layer; None to use the squared
            errors.
        latencies: measured times of the layers, dense and factored; None without a limit on the latency.
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
    """A rank rule. Its subclasses are frozen dataclasses; the fields are the rule's settings."""

    name: ClassVar[str]

    def check_method(self, method: str, decompositions: Sequence[str]) -> None:  # noqa: B027  # most allow all
        """Raise a ValueError if the rule cannot plan by a method.

        Args:
            method: its name.
            decompositions: its candidates for each layer.
        """

    def check_layers(self, names: Iterable[str]) -> None:  # noqa: B027  # most name none
        """Raise a ValueError if the rule names a layer that is not among those that can be factored."""

    @abstractmethod
    def plan(self, network: Network) -> RankPlan:
        """Choose the ranks of every layer of ``network``.

        Raises:
            ValueError: the rule does not fit the network.
        """


@dataclass(frozen=True)
class PerLayerRule(Rule):
    """A rule that considers one layer at a time.

    Args:
        round_to: ranks are raised to a multiple of it, at most to the mode's maximum.
        only_if_smaller: keep a layer dense unless its factors have fewer parameters and no more MACs.

    Raises:
        ValueError: ``round_to`` is below 1.
    """

    round_to: int = field(default=1, kw_only=True)
    only_if_smaller: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_round_to(self.round_to)

    @abstractmethod
    def choose(self, network: Network) -> dict[str, LayerPlan]:
        """Choose a plan for each layer, regardless of its cost."""

    @property
    def settings(self) -> dict[str, Any]:
        """The rule's settings, as plain values for a plan."""
        return {}

    def rounded(self, plan: LayerPlan, name: str, decompositions: Decompositions) -> LayerPlan:
        """Return ``plan`` with its ranks raised to multiples of ``round_to``."""
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
    """Raise a ValueError unless ``round_to`` is a whole number of at least 1."""
    if not (is_whole(round_to) and round_to >= 1):
        raise ValueError(f"round_to={round_to!r}: it must be a whole number of at least 1")


RULES: Registry[type[Rule]] = Registry("rule", lambda rule: rule.name)
"""The rank rules by name."""
