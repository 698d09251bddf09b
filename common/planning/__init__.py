"""From decompositions to a ``RankPlan``: rank rules and costs. Nothing here sees a dataset."""

from common.planning.budget import Budget
from common.planning.plan import LayerPlan, RankPlan
from common.planning.planner import METHODS, RULES, plan_ranks

__all__ = ["METHODS", "RULES", "Budget", "LayerPlan", "RankPlan", "plan_ranks"]
