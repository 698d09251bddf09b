"""Low-rank decompositions of one layer's weight: tensors in, factors out; nothing here knows of data or training.

``DECOMPOSITIONS`` maps a method's name to its class. Each class decomposes a weight once and then answers for every
rank: its factors, the weight they stand for, and the error. Weights have PyTorch's shape ``(O, I/groups, kh, kw)``;
a Linear's ``(O, I)`` counts as a 1x1 kernel.
"""

from common.decomposition.balancing import balance
from common.decomposition.base import Decomposition, Floats, Ranks, RankSelector, RankSteps
from common.decomposition.choice import decompose
from common.decomposition.htd import HTD
from common.decomposition.moments import LayerMoments
from common.decomposition.spatial import SpatialSVD
from common.decomposition.svd import SVD
from common.decomposition.tucker import Tucker2

DECOMPOSITIONS: dict[str, type[Decomposition]] = {cls.method: cls for cls in (SVD, SpatialSVD, Tucker2, HTD)}

__all__ = [
    "DECOMPOSITIONS",
    "HTD",
    "SVD",
    "Decomposition",
    "Floats",
    "LayerMoments",
    "RankSelector",
    "RankSteps",
    "Ranks",
    "SpatialSVD",
    "Tucker2",
    "balance",
    "decompose",
]
