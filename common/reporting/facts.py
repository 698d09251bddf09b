"""What a report says of one record: its method's name, its rule's setting, its timings and their conditions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from common.trials import TrialRecord

METHOD_TITLES = {
    "svd": "SVD",
    "arsvd": "ARSVD",
    "spatial_svd": "Spatial SVD",
    "tucker2": "Tucker-2",
    "htd": "HTD",
    "mixed": "Mixed",
}
"""How a picture names the methods; one that is not here goes by its own name."""


def method_title(name: str) -> str:
    """How a picture names a method."""
    return METHOD_TITLES.get(name, name)


def method_order(names: Iterable[str]) -> list[str]:
    """The methods in the order of `METHOD_TITLES`, others behind them by name."""
    known = list(METHOD_TITLES)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def method_name(record: TrialRecord) -> str:
    """The method as a user asks for it: ``arsvd`` is ``svd`` with the entropy rule."""
    return "arsvd" if (record.method, record.rule) == ("svd", "entropy") else record.method


def setting_text(record: TrialRecord) -> str:
    """What the rank rule was told, e.g. ``tau=0.5``; the paper's exponent of 1 goes without saying."""
    settings = record.details.get("rule_settings")
    if not isinstance(settings, dict):
        return ""
    shown = {name: value for name, value in settings.items() if (name, value) != ("exponent", 1)}
    return ", ".join(f"{name}={_plain(value)}" for name, value in shown.items() if value is not None)


def proposer_of(record: TrialRecord) -> str:
    """Who proposed the plan: the sampler of a search, or the rank rule of a plan that was given to it."""
    sampler = str(record.details.get("sampler") or "given")
    return record.rule if sampler == "given" else sampler


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{name} {item}" for name, item in value.items() if item is not None)
    return str(value)


def latencies(record: TrialRecord) -> list[dict[str, Any]]:
    """Every timing of a trial, one for each runtime: ``details["latencies"]`` where there are several.

    Of one that was too noisy to tell how much faster the network is, the speedup is None and its ``note`` says so.
    """
    several = record.details.get("latencies")
    found = several if isinstance(several, list) and several else [record.latency]
    timings = [timing for timing in found if isinstance(timing, dict)]
    return [timing for timing in timings if number(timing.get("speedup")) > 0 or timing.get("note")]


def macs_ratio(record: TrialRecord, timing: dict[str, Any]) -> float:
    """The dense network's MACs over the compressed one's; NaN where it is not known.

    As the runtime of ``timing`` computes them, where it merges layers; else as they are.
    """
    logged = number(timing.get("macs_ratio"))
    return logged if logged > 0 else number(record.baseline.get("macs")) / record.macs if record.macs else math.nan


def conditions(timing: dict[str, Any]) -> str:
    """Under which conditions a time was taken, e.g. ``PyTorch eager, 2 threads, batch 1``."""
    threads, batch = timing.get("threads"), timing.get("batch_size")
    layout = timing.get("memory_format")
    parts = [
        str(timing.get("runtime") or "unknown runtime"),
        f"{threads} thread{'s' if threads != 1 else ''}" if threads else "",
        f"batch {batch}" if batch else "",
        str(layout) if layout and layout != "contiguous" else "",
    ]
    return ", ".join(part for part in parts if part)


def number(value: Any) -> float:
    """``value`` as a finite float, else NaN."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if usable else math.nan


def environment_text(record: TrialRecord) -> str:
    """What a trial ran on, e.g. ``Python 3.11.7, torch 2.13.0, AMD EPYC, 2 threads``."""
    found = record.environment
    parts = [f"{title} {found[name]}" for name, title in (("python", "Python"), ("torch", "torch")) if found.get(name)]
    parts += [str(found[name]) for name in ("processor", "accelerator") if found.get(name)]
    return ", ".join(parts + ([f"{found['threads']} threads"] if found.get("threads") else []))
