"""The 95% interval of a share of images, such as an accuracy, by Wilson (1927).

:func:`common.training.paired_difference` has the interval of a difference between two networks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def share_interval(value: float, images: float) -> tuple[float, float] | None:
    """The 95% interval of a share of images, e.g. of an accuracy.

    Args:
        value: the share.
        images: number of images; NaN if unknown.

    Returns:
        Lower and upper limit. None if ``value`` is no whole number of images over ``images``, as a mean Dice is not.
    """
    low, high = share_intervals(np.array([value]), np.array([images]))
    return None if np.isnan(low[0]) else (float(low[0]), float(high[0]))


def share_intervals(values: Floats, images: Floats) -> tuple[Floats, Floats]:
    """The limits of `share_interval` for many values, by Wilson (1927); NaN where there are none."""
    with np.errstate(invalid="ignore"):
        hits = values * images
        known = (images > 0) & (values >= 0) & (values <= 1) & (np.abs(hits - np.round(hits)) <= 1e-6)
    value, number = np.where(known, values, np.nan), np.where(known, images, np.nan)
    z = 1.959964
    centre = (value + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * np.sqrt(value * (1 - value) / number + (z / (2 * number)) ** 2)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def limits_text(low: float, high: float) -> str:
    """The limits of an interval in percent, behind the value: `` [95.7, 98.9]``; empty if there is none."""
    return "" if math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"


def interval_text(value: float, images: float) -> str:
    """The `share_interval` of a value as `limits_text`."""
    return limits_text(*(share_interval(value, images) or (math.nan, math.nan)))
