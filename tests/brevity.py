"""Short timings, in the process of the tests and in those that they start."""

from __future__ import annotations

from common.latency import measuring

ROUND_S = 0.001


def time_briefly() -> None:
    """Time each network for a twentieth of the usual seconds from now on; no test asserts a time."""
    for function in (measuring.measure_latency, measuring.measure_latencies):
        function.__kwdefaults__["round_s"] = ROUND_S
