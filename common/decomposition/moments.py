"""What a layer sees and puts out on calibration data, as far as a decomposition needs to know."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

RIDGE = 1e-6
"""The least share of a covariance's mean variance that is added to every variance, so that directions the data never
takes stay exact."""
FEWEST_HELD_OUT = 8
"""Held-out patches: fewer cannot tell which of two decompositions is better."""
FEWEST = 32
"""Patches: fewer cannot tell what a layer's data is like, unless it has fewer channels."""


@dataclass(frozen=True)
class LayerMoments:
    """What a layer sees and puts out on calibration data; covariances are centred, all in float64, for G groups.

    The covariance of an input patch is taken as the product of those of its channels, rows and columns: the joint one
    of a 3x3 layer with 512 channels would be 4608 x 4608, and only the product lets every factor keep its shape.

    Attributes:
        output_covariance: ``(G, O/G, O/G)``.
        patch_mean: ``(G, I/G, kh, kw)``, mean of the input that each element of the kernel meets.
        input_covariance: ``(G, I/G, I/G)`` of the channels; None for a layer without a kernel, whose SVD needs none.
        height_covariance: ``(kh, kh)`` of a patch's rows, up to a factor, or None.
        width_covariance: ``(kw, kw)`` of its columns, up to a factor, or None.
        held_out: ``(N, I, kh, kw)``, float32, what the kernel meets at N output positions of images that nothing else
            here was learnt from; not centred. None where there are none: then nothing can be measured.
        patches: how many different patches the moments were learnt from, an estimate; None where nobody counted.
    """

    output_covariance: Tensor
    patch_mean: Tensor
    input_covariance: Tensor | None = None
    height_covariance: Tensor | None = None
    width_covariance: Tensor | None = None
    held_out: Tensor | None = None
    patches: int | None = None

    def to(self, device: torch.device) -> LayerMoments:
        """The same on ``device``."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in held.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def needed(self) -> int:
        """The fewest different patches that tell anything of this layer's data."""
        return min(self.output_covariance.shape[1], math.prod(self.patch_mean.shape[1:]), FEWEST)

    @property
    def too_few(self) -> bool:
        """Whether the patches are too few to learn from, or those held out too few to judge by."""
        if self.patches is None:
            return False
        held_out = 0 if self.held_out is None else len(self.held_out)
        return self.patches < self.needed or held_out < FEWEST_HELD_OUT

    @cached_property
    def shrinkage(self) -> float:
        """The share of the isotropic covariance that is best mixed into the sample's own, at least ``RIDGE``.

        That of the oracle approximating shrinkage estimator (Chen, Wiesel, Eldar and Hero 2010): it falls with the
        number of patches, and is 1 where they tell nothing beyond their mean variance.
        """
        if self.patches is None:
            return RIDGE
        covariance = self.output_covariance if self.input_covariance is None else self.input_covariance
        size = covariance.shape[1]
        trace = float(covariance.diagonal(dim1=1, dim2=2).sum(1).square().mean())  # its square
        square = float(covariance.square().sum((1, 2)).mean())  # the trace of the square
        spread = (self.patches + 1 - 2 / size) * (square - trace / size)
        share = ((1 - 2 / size) * square + trace) / spread if spread > 0 else 1.0
        return min(1.0, max(RIDGE, share))
