"""Statistics of a layer's inputs and outputs on calibration data, as a decomposition needs them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

RIDGE = 1e-6
"""The least ridge on a covariance, as a fraction of its mean variance. It keeps directions exact that the data never
takes."""
FEWEST_HELD_OUT = 8
"""The fewest held-out patches that can tell which of two decompositions is better."""
FEWEST_PATCHES = 32
"""The fewest patches that can describe a layer's data; a layer with fewer channels needs fewer."""


@dataclass(frozen=True)
class LayerMoments:
    """Moments of a layer's inputs and outputs on calibration data, for G groups, in float64. Covariances are centred.

    For the errors at all ranks, the covariance of an input patch is modelled as the product of the covariances of its
    channels, rows and columns; only the product lets every factor keep its shape. The covariance of whole patches
    serves at given ranks.

    Attributes:
        output_covariance: ``(G, O/G, O/G)``.
        patch_mean: ``(G, I/G, kh, kw)``, the mean input at each element of the kernel.
        input_covariance: ``(G, I/G, I/G)``, of the channels; None for a layer without a kernel, whose SVD needs none.
        height_covariance: ``(kh, kh)``, of the rows of a patch, up to a factor; or None.
        width_covariance: ``(kw, kw)``, of the columns of a patch, up to a factor; or None.
        held_out: ``(N, I, kh, kw)``, float32, not centred: input patches at N output positions of images that
            contribute to no other moment. None if there are none; then no error can be measured.
        patch_covariance: ``(G, m, m)``, float32, of whole patches with m = I/G * kh * kw elements, from a sample of
            the patches. None for a layer without a kernel, or one whose patches are too large. Factors at given ranks
            are improved on it.
        patches: estimated number of different patches behind the moments; None if they were not counted.
    """

    output_covariance: Tensor
    patch_mean: Tensor
    input_covariance: Tensor | None = None
    height_covariance: Tensor | None = None
    width_covariance: Tensor | None = None
    held_out: Tensor | None = None
    patch_covariance: Tensor | None = None
    patches: int | None = None

    def to(self, device: torch.device) -> LayerMoments:
        """Copy the moments to ``device``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def needed(self) -> int:
        """The fewest different patches that can describe this layer's data."""
        return min(self.output_covariance.shape[1], math.prod(self.patch_mean.shape[1:]), FEWEST_PATCHES)

    @property
    def too_few(self) -> bool:
        """Whether the patches are too few to learn from, or the held-out patches too few to measure on."""
        if self.patches is None:
            return False
        held_out = 0 if self.held_out is None else len(self.held_out)
        return self.patches < self.needed or held_out < FEWEST_HELD_OUT

    @cached_property
    def shrinkage(self) -> float:
        """Share of the isotropic covariance that is mixed into the sample covariance, from ``RIDGE`` to 1.

        It is that of the oracle approximating shrinkage estimator (Chen, Wiesel, Eldar and Hero 2010). It falls as the
        number of patches grows. It is 1 if the patches tell nothing beyond their mean variance.
        """
        if self.patches is None:
            return RIDGE
        covariance = self.output_covariance if self.input_covariance is None else self.input_covariance
        size = covariance.shape[1]
        squared_trace = float(covariance.diagonal(dim1=1, dim2=2).sum(1).square().mean())
        trace_of_square = float(covariance.square().sum((1, 2)).mean())
        spread = (self.patches + 1 - 2 / size) * (trace_of_square - squared_trace / size)
        share = ((1 - 2 / size) * trace_of_square + squared_trace) / spread if spread > 0 else 1.0
        return min(1.0, max(RIDGE, share))
