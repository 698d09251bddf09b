"""How far two networks, or the means of several, differ on the same images, and whether it may be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import from_numpy, stack

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
    chosen = METRICS[metric]
    rows = after.rows[chosen.observe], before.rows[chosen.observe]
    if len(rows[0]) != len(rows[1]):
        raise ValueError(f"after has {len(rows[0])} images, before has {len(rows[1])}; they must be the same images")
    images = np.arange(len(rows[0]))

    def difference(drawn: NDArray[np.int64]) -> float:
        first, second = (chosen.summarize(each[from_numpy(drawn)]) for each in rows)
        return math.nan if first is None or second is None else first - second

    value = difference(images)
    if len(images) < 2:
        return Difference(value=value, images=len(images))
    generator = np.random.default_rng(0)
    found = bootstrap(
        (images,), difference, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=generator
    ).confidence_interval
    return Difference(value=value, low=float(found.low), high=float(found.high), images=len(images))


def mean_difference(after: Sequence[Evaluation], before: Sequence[Evaluation], metric: str) -> Difference:
    """The difference between two groups of networks, such as seeds, with its 95% interval.

    What was observed of an image is averaged over a group. :func:`paired_difference` compares the averages.

    Args:
        after: the networks of one group, all on the same images.
        before: those of the other group, on the same images.
        metric: name of the metric.
    """
    observe = METRICS[metric].observe
    means = [stack([each.rows[observe].float() for each in group]).mean(0) for group in (after, before)]
    first, second = (Evaluation({}, {observe: rows}) for rows in means)
    return paired_difference(first, second, metric)
