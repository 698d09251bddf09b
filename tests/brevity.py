"""Short timings, in the process of the tests and in those that they start."""

from __future__ import annotations

from common.latency import cache, measuring

ROUND_S = 0.001


def time_briefly() -> None:
    """Time each network for a twentieth of the usual seconds or less from now on; no test asserts a time."""
    cache.WHOLE_ROUND_S = ROUND_S
    for function in (measuring.measure_latency, measuring.measure_latencies, measuring.measure_files):
        defaults = function.__kwdefaults__
        assert defaults is not None
        defaults["round_s"] = ROUND_S
