"""Low-rank decompositions of one layer's weight: tensors in, factors out. This room knows no data and no training.

``DECOMPOSITIONS`` maps the name of a method to its class. Each method has one file and registers itself. A class
decomposes a weight once; it then gives the factors, the weight that they represent and the error at any ranks. Weights
have PyTorch's shape ``(O, I/groups, kh, kw)``; the weight ``(O, I)`` of a Linear counts as a 1x1 kernel. A kernel of
one axis has width 1; the width of a kernel of three axes is the product of the last two.
"""

from common.decomposition.balancing import balance
from common.decomposition.base import (
    DECOMPOSITIONS,
    Decomposition,
    Floats,
    Ranks,
    RankSelector,
    RankSteps,
    own_axes,
    serving_method,
)
from common.decomposition.choice import decompose
from common.decomposition.moments import LayerMoments

# Messages list the methods in this order. Of equally good methods, the first is taken.
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
    "own_axes",
    "serving_method",
]
