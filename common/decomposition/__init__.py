"""Low-rank decompositions of one layer's weight: tensors in, factors out; nothing here knows of data or training.

``DECOMPOSITIONS`` maps a method's name to its class: one file a method, which registers itself. A class decomposes a
weight once and then answers for every rank: its factors, the weight they stand for, and the error. Weights have
PyTorch's shape ``(O, I/groups, kh, kw)``; a Linear's ``(O, I)`` counts as a 1x1 kernel.
"""

from common.decomposition.balancing import balance
from common.decomposition.base import (
    DECOMPOSITIONS,
    Decomposition,
    Floats,
    Ranks,
    RankSelector,
    RankSteps,
    serving_method,
)
from common.decomposition.choice import decompose
from common.decomposition.moments import LayerMoments

# Messages list the methods in this order, and the first of equally good ones is taken.
# isort: off
from common.decomposition.svd import SVD
from common.decomposition.spatial import SpatialSVD
from common.decomposition.tucker import Tucker2
from common.decomposition.htd import HTD
# isort: on

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
    "serving_method",
]
