"""From decompositions to a ``RankPlan``: rank rules and costs. This room never sees a data set or a clock."""

from common.planning.allocation import UnreachableBudget
from common.planning.methods import method_names
from common.planning.plan import LayerPlan, RankPlan, plan_of
from common.planning.planner import plan_ranks
from common.planning.rules import RULES, VBMF, Budget, Energy, Entropy, Fixed, Rule

__all__ = [
    "RULES",
    "VBMF",
    "Budget",
    "Energy",
    "Entropy",
    "Fixed",
    "LayerPlan",
    "RankPlan",
    "Rule",
    "UnreachableBudget",
    "method_names",
    "plan_of",
    "plan_ranks",
]
