"""What ``shrink`` makes: the smaller network, its plan, and what each step cost and gained."""

from __future__ import annotations

from dataclasses import dataclass, field

from tabulate import tabulate
from torch import nn

from common.calibration.divergence import Divergence, divergence_title
from common.network import Profile
from common.planning import RankPlan


@dataclass(frozen=True)
class Step:
    """The state of the network after one step.

    Attributes:
        name: of the step.
        seconds: that it took.
        divergence: from the dense network's outputs on held-out calibration images; None before there is a network.
        metrics: metric -> value on the same images; empty without targets.
        kept: whether its result was kept, because it lowered the divergence.
    """

    name: str
    seconds: float
    divergence: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    kept: bool = True


@dataclass(frozen=True)
class Shrunk:
    """What :func:`shrink` made. ``print`` shows what each step cost and gained.

    Attributes:
        model: the smaller network, in the dense network's training mode.
        plan: the plan that it follows.
        steps: the steps, in order.
        before, after: cost of the dense and of the smaller network.
        metrics: metrics of the dense network on the held-out calibration images; empty without targets.
        measure: the function that gives the divergence.
    """

    model: nn.Module
    plan: RankPlan
    steps: tuple[Step, ...]
    before: Profile
    after: Profile
    metrics: dict[str, float]
    measure: Divergence

    @property
    def divergence(self) -> float:
        """That of the smaller network from the dense one's outputs, on the held-out calibration images."""
        return [step.divergence for step in self.steps if step.kept and step.divergence is not None][-1]

    def __str__(self) -> str:
        names = list(self.metrics)
        rows: list[list[object]] = [["dense", None, 0.0, *self.metrics.values()]]
        for step in self.steps:
            name = step.name if step.kept else f"{step.name} (undone: not better)"
            rows.append([name, step.seconds, step.divergence, *(step.metrics.get(each) for each in names)])
        table = tabulate(rows, ["step", "seconds", "divergence", *names], floatfmt=("", ".1f", ".4g", *[".4f"] * 9))
        sizes = [
            f"{title} {after:,} of {before:,} ({after / max(1, before):.1%})"
            for title, before, after in (
                ("parameters", self.before.params, self.after.params),
                ("MACs", self.before.macs, self.after.macs),
                ("bytes", self.before.size_bytes, self.after.size_bytes),
            )
        ]
        return "\n".join([table, f"divergence: {divergence_title(self.measure)}", *sizes])
