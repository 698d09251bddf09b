"""Rank rules as values, one file each; ``RULES`` maps a rule's name to its class."""

from common.planning.rules.base import RULES, Network, PerLayerRule, Rule
from common.planning.rules.budget import Budget
from common.planning.rules.energy import Energy
from common.planning.rules.entropy import Entropy
from common.planning.rules.fixed import Fixed
from common.planning.rules.spectrum import SpectrumRule
from common.planning.rules.vbmf import VBMF

__all__ = [
    "RULES",
    "VBMF",
    "Budget",
    "Energy",
    "Entropy",
    "Fixed",
    "Network",
    "PerLayerRule",
    "Rule",
    "SpectrumRule",
]
