"""How far two networks, or the means of several, differ on the same images, and whether it may be chance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap
from torch import Tensor, from_numpy

from common.data.tasks import METRICS
from common.training.evaluation import Evaluation
from common.trials import Difference

RESAMPLES = 2000
DRAWN = 2**22
"""Images that are drawn at once, over all resamples."""


def paired_difference(after: Evaluation, before: Evaluation, metric: str) -> Difference:
    """The difference of a metric between two networks on the same images, with its 95% interval.

    The interval is the bootstrap's of percentiles (Efron 1979): the images are drawn with replacement, the same ones
    for both networks. So it serves any metric, a mean over images or not, and images that are hard for both networks
    do not widen it. On few images that only one network gets right, it is too narrow. Where each image is right or
    wrong, it is therefore widened to 0 unless the exact test of McNemar (1947) tells the networks apart at 5%.

    Args:
        after: of :func:`common.training.evaluate_images`.
        before: the same of the other network, on the same images in the same order.
        metric: name of the metric.

    Raises:
        ValueError: the metric is unknown, or the numbers of images differ.
    """
    found = mean_difference([after], [before], metric)
    first, second = (each.rows[METRICS[metric].observe] for each in (after, before))
    if first.dtype != torch.bool or first.dim() > 1 or _mcnemar(first, second) < 0.05:
        return found
    return found.replace(low=min(found.low, 0.0), high=max(found.high, 0.0))


def mean_difference(after: Sequence[Evaluation], before: Sequence[Evaluation], metric: str) -> Difference:
    """The difference between two groups of networks, such as seeds, with its 95% interval.

    The metric is averaged over the networks of a group. The images are drawn as for :func:`paired_difference`, the
    same ones for all networks. The interval is that for these networks: that others, of other seeds, might differ
    more, is not in it. Draws in which the metric is not defined, such as the Dice of masks without any, are left out.

    Args:
        after: the networks of one group.
        before: those of the other group, on the same images in the same order.
        metric: name of the metric.

    Raises:
        ValueError: the metric is unknown, or the numbers of images differ.
    """
    chosen = METRICS[metric]
    groups = [[each.rows[chosen.observe] for each in group] for group in (after, before)]
    count = len(groups[0][0])
    if other := next((len(rows) for group in groups for rows in group if len(rows) != count), None):
        raise ValueError(f"after has {count} images, before has {other}; they must be the same images")
    images = np.arange(count)

    def difference(drawn: NDArray[np.int64]) -> float:
        first, second = (_mean([chosen.summarize(rows[from_numpy(drawn)]) for rows in group]) for group in groups)
        return first - second

    value = difference(images)
    if count < 2:
        return Difference(value=value, images=count)
    generator = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # about draws in which the metric is not defined
        drawn = bootstrap(
            (images,),
            difference,
            n_resamples=RESAMPLES,
            batch=max(1, DRAWN // count),
            vectorized=False,
            method="percentile",
            rng=generator,
        ).bootstrap_distribution
    defined = drawn[~np.isnan(drawn)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (math.nan, math.nan)
    return Difference(value=value, low=float(low), high=float(high), images=count)


def _mcnemar(after: Tensor, before: Tensor) -> float:
    """The two-sided p-value of the exact test on the images that only one of two networks gets right, ``(N,)``."""
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _mean(values: Sequence[float | None]) -> float:
    """The mean; NaN if a value is unknown."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else math.nan
