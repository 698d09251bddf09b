"""What the comparisons of several arms on several dense networks share: means and differences as text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from torch import Tensor

from common.data.tasks import Metric
from common.training import Evaluation, mean_difference


def mean_text(values: Sequence[float]) -> str:
    """The mean of some percentages and, of several, their standard deviation; empty for none."""
    if not values:
        return ""
    return f"{mean(values):.2f}%" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def difference_text(after: Sequence[Tensor], before: Sequence[Tensor], metric: Metric, verdict: bool = False) -> str:
    """The mean difference between two arms, in points, with its 95% interval over the images.

    Of several networks, the standard deviation of their differences follows.

    Args:
        after: what ``metric.observe`` found of each image, for each network of one arm.
        before: the same of the other arm, for the same networks in the same order.
        metric: the metric to compare.
        verdict: whether to add ``better``, ``worse`` or, where the interval holds 0, ``no difference``; of several
            networks, for how many of them the sign is that of the mean.
    """
    first, second = ([Evaluation({}, {metric.observe: rows}) for rows in group] for group in (after, before))
    found = mean_difference(first, second, metric.name)
    text = f"{100 * found.value:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    told = found.verdict if verdict else ""
    if len(after) > 1:
        single = [
            (metric.summarize(a) or 0.0) - (metric.summarize(b) or 0.0) for a, b in zip(after, before, strict=True)
        ]
        text += f" ± {100 * stdev(single):.2f}"
        if told in ("better", "worse"):
            told += f" in {sum(value * found.value > 0 for value in single)} of {len(single)}"
    return f"{text} {told}".rstrip()
