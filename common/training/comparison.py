"""How far two networks, or the means of several, differ on the same images, and whether it may be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import from_numpy

from common.data.tasks import METRICS
from common.training.evaluation import Evaluation
from common.trials import Difference

RESAMPLES = 2000


def paired_difference(after: Evaluation, before: Evaluation, metric: str) -> Difference:
    """The difference of a metric between two networks on the same images, with its 95% interval.

    The interval is the bootstrap's of percentiles (Efron 1979): the images are drawn with replacement, the same ones
    for both networks. So it serves any metric, a mean over images or not, and images that are hard for both networks
    do not widen it.

    Args:
        after: of :func:`common.training.evaluate_images`.
        before: the same of the other network, on the same images in the same order.
        metric: name of the metric.

    Raises:
        ValueError: the metric is unknown, or the numbers of images differ.
    """
    return mean_difference([after], [before], metric)


def mean_difference(after: Sequence[Evaluation], before: Sequence[Evaluation], metric: str) -> Difference:
    """The difference between two groups of networks, such as seeds, with its 95% interval.

    The metric is averaged over the networks of a group. The interval is that of :func:`paired_difference`: the images
    that are drawn are the same for all networks.

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
    found = bootstrap(
        (images,), difference, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=generator
    ).confidence_interval
    return Difference(value=value, low=float(found.low), high=float(found.high), images=count)


def _mean(values: Sequence[float | None]) -> float:
    """The mean; NaN if a value is unknown."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else math.nan
