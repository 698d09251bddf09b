"""What a budget limits, and the check of its fractions."""

from __future__ import annotations

from dataclasses import dataclass

from common.validation import is_number

SIZES = ("params", "macs", "latency")
"""The sizes that a budget may limit."""
SIZE_TOLERANCES = (1e-13, 1e-13, 1e-9)
"""Slack of the limits on `SIZES`, as fractions of the dense network: a fraction of a whole number may be rounded down
in the last digit. Seconds are no whole numbers; the order of their sum matters slightly more."""


@dataclass(frozen=True)
class Limits:
    """Fractions of the dense network to keep, each in (0, 1]. At least one is given; a plan exceeds none.

    Args:
        params: fraction of the parameters.
        macs: fraction of the multiply-accumulates.
        latency: fraction of the time in ``runtime`` on this machine, as predicted from measured times.
        runtime: name of the runtime; only used with ``latency``.

    Raises:
        ValueError: no fraction is given, or one is out of range.
    """

    params: float | None = None
    macs: float | None = None
    latency: float | None = None
    runtime: str = "onnxruntime"

    def __post_init__(self) -> None:
        if not self.given:
            raise ValueError("a Budget needs params or macs or latency, the fraction of the dense network to keep")
        for name, value in self.given.items():
            if not (is_number(value) and 0 < value <= 1):
                raise ValueError(f"Budget({name}={value!r}): it must be in (0, 1]")

    def __str__(self) -> str:
        timed = "" if self.latency is None else f", latency={self.latency}, runtime={self.runtime!r}"
        return f"Budget(params={self.params}, macs={self.macs}{timed})"

    @property
    def limits(self) -> tuple[float | None, float | None, float | None]:
        """The fractions in the order of `SIZES`; None for no limit."""
        return self.params, self.macs, self.latency

    @property
    def given(self) -> dict[str, float]:
        """Size -> fraction, for the limited sizes."""
        return {name: value for name, value in zip(SIZES, self.limits, strict=True) if value is not None}

    def allows(self, cost: tuple[int, int], dense: tuple[int, int]) -> bool:
        """Whether a network with the parameters and MACs ``cost`` meets the budget, given those of the dense one."""
        limits = (self.params, self.macs)
        return all(
            share is None or part <= (share + tolerance) * whole
            for share, part, whole, tolerance in zip(limits, cost, dense, SIZE_TOLERANCES[:2], strict=True)
        )
