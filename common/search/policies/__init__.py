"""Search policies, one file each; ``POLICIES`` maps a policy's name to it."""

from common.search.policies.base import POLICIES, SearchPolicy, SinglePlan, Start
from common.search.policies.settings import PolicySettings

# Messages list the policies in this order.
# isort: off
from common.search.policies.adaptive import Adaptive
from common.search.policies.static import Static
from common.search.policies.uniform import SameRanks
from common.search.policies.energy import SameEnergy
from common.search.policies.vbmf import ScaledVBMF
from common.search.policies.budget import Allocation
from common.search.policies.random import Random
from common.search.policies.tpe import TPE
from common.search.policies.nsga2 import NSGA2
# isort: on

__all__ = [
    "NSGA2",
    "POLICIES",
    "TPE",
    "Adaptive",
    "Allocation",
    "PolicySettings",
    "Random",
    "SameEnergy",
    "SameRanks",
    "ScaledVBMF",
    "SearchPolicy",
    "SinglePlan",
    "Start",
    "Static",
]
