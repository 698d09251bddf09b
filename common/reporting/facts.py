"""What a report says of one record: its method's name, its rule's setting, its timings and their conditions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain, count
from typing import Any
from zlib import crc32

from common.trials import Timing, TrialRecord

PLACES = {"svd": 0, "arsvd": 1, "spatial_svd": 4, "tucker2": 2, "htd": 3, "mixed": 5}
"""The methods that are compared most, in the order of a legend, and the place of each among colours and markers: the
first places are the farthest apart. A method that is not here takes one of the other places."""
COLORS_APART = 10
"""How many places differ in their colour."""


def method_name(record: TrialRecord) -> str:
    """The method as a user asks for it."""
    return record.method_name or record.method


def method_title(record: TrialRecord) -> str:
    """The method as a report writes it; its name where the record does not say."""
    return record.method_title or method_name(record)


def method_order(names: Iterable[str]) -> list[str]:
    """The methods in the order of `PLACES`, others behind them by name."""
    known = list(PLACES)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def method_places(names: Iterable[str]) -> dict[str, int]:
    """The place of each method among colours and markers, which no two of them share.

    A method that `PLACES` does not have takes the free colour that its name points to. Of several that point to the
    same one, the later by name takes the next.
    """
    places: dict[str, int] = {}
    spare = COLORS_APART - len(PLACES)
    for name in method_order(names):
        if name in PLACES:
            places[name] = PLACES[name]
            continue
        start = crc32(name.encode(errors="surrogatepass")) % spare
        turned = [len(PLACES) + (start + step) % spare for step in range(spare)]
        places[name] = next(place for place in chain(turned, count(COLORS_APART)) if place not in places.values())
    return places


def setting_text(record: TrialRecord) -> str:
    """What the rank rule was told, e.g. ``tau=0.5``; the paper's exponent of 1 goes without saying."""
    settings = record.details.rule_settings
    shown = {name: value for name, value in settings.items() if (name, value) != ("exponent", 1)}
    return ", ".join(f"{name}={_plain(value)}" for name, value in shown.items() if value is not None)


def proposer_of(record: TrialRecord) -> str:
    """Who proposed the plan: the sampler of a search, or the rank rule of a plan that was given to it."""
    sampler = record.details.sampler or "given"
    return record.rule if sampler == "given" else sampler


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{name} {item}" for name, item in value.items() if item is not None)
    return str(value)


def timings(record: TrialRecord) -> list[Timing]:
    """Every timing of a trial that tells a speedup or why there is none, one for each runtime."""
    found = record.details.latencies or ([record.latency] if record.latency else [])
    return [timing for timing in found if number(timing.speedup) > 0 or timing.note]


def macs_ratio(record: TrialRecord, timing: Timing) -> float:
    """The dense network's MACs over the compressed one's; NaN where it is not known.

    They are counted as the runtime of ``timing`` computes them, where it merges layers; else as they are.
    """
    logged = number(timing.macs_ratio)
    return logged if logged > 0 else record.baseline.macs / record.macs if record.macs else math.nan


def conditions(timing: Timing) -> str:
    """The conditions in which a time was taken, e.g. ``PyTorch eager, 2 threads, batch 1``."""
    parts = [
        timing.runtime or "unknown runtime",
        f"{timing.threads} thread{'s' if timing.threads != 1 else ''}" if timing.threads else "",
        f"batch {timing.batch_size}" if timing.batch_size else "",
        timing.memory_format if timing.memory_format != "contiguous" else "",
    ]
    return ", ".join(part for part in parts if part)


def number(value: float | None) -> float:
    """``value`` as a finite number, else NaN."""
    return float(value) if value is not None and math.isfinite(value) else math.nan


def environment_text(record: TrialRecord) -> str:
    """What a trial ran on, e.g. ``Python 3.11.7, torch 2.13.0, AMD EPYC, 2 threads``."""
    found = record.environment
    parts = [f"{title} {found[name]}" for name, title in (("python", "Python"), ("torch", "torch")) if found.get(name)]
    parts += [str(found[name]) for name in ("processor", "accelerator") if found.get(name)]
    return ", ".join(parts + ([f"{found['threads']} threads"] if found.get("threads") else []))
