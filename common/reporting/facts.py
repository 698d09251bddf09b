"""What a report says about one record: its method's name, its rule's setting, its timings and their conditions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain, count
from typing import Any
from zlib import crc32

from common.trials import Timing, TrialRecord

PLACES = {"svd": 0, "arsvd": 1, "spatial_svd": 4, "tucker2": 2, "htd": 3, "mixed": 5, "cp": 6}
"""The methods that are compared most, in the order of a legend, with the place of each among colours and markers. The
first places differ most. A method that is not listed here takes one of the other places."""
MARKERS = "osD^vPX*<>"
COLORS = (
    *("#0173b2", "#de8f05", "#029e73", "#1f1f1f", "#56b4e9"),
    *("#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494"),
)
"""Seaborn's ``colorblind`` colours and a black, in an order whose first four are easy to tell apart. (Seaborn's first
four include orange and vermilion, which look alike to readers with red-green blindness.)"""
USUAL = (("exponent", 1), ("round_to", 1))
"""Settings of rank rules that go without saying: the paper's exponent, and ranks that are not rounded."""
COLORS_APART = len(COLORS)
"""Number of places with different colours."""


def method_name(record: TrialRecord) -> str:
    """The method's name as a user passes it."""
    return record.method_name or record.method


def method_title(record: TrialRecord) -> str:
    """The method's title in reports; its name if the record holds no title."""
    return record.title


def method_order(names: Iterable[str]) -> list[str]:
    """The methods in the order of `PLACES`, followed by the others in the order of their names."""
    known = list(PLACES)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def method_places(names: Iterable[str]) -> dict[str, int]:
    """Give each method its own place among colours and markers.

    A method that is not in `PLACES` takes one of the free colours by a hash of its name. If two names have the same
    hash, the one that is later in the alphabet takes the next free colour.
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
    """The settings of the rank rule, e.g. ``tau=0.5``. What is off is left out, and so are `USUAL` settings."""
    settings = record.details.rule_settings.items()
    shown = {name: value for name, value in settings if (name, value) not in USUAL}
    return ", ".join(
        f"{name}={_plain(value)}" for name, value in shown.items() if value is not None and value is not False
    )


def proposer_of(record: TrialRecord) -> str:
    """What proposed the plan: the sampler of a search, or the rank rule if the search was given the plan."""
    sampler = record.details.sampler or "given"
    return record.rule if sampler == "given" else sampler


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{name} {item}" for name, item in value.items() if item is not None)
    return str(value)


def timings(record: TrialRecord) -> list[Timing]:
    """The timings of a trial, one for each runtime, that hold a speedup or the reason why there is none."""
    found = record.details.latencies or ([record.latency] if record.latency else [])
    return [timing for timing in found if number(timing.speedup) > 0 or timing.note]


def macs_ratio(record: TrialRecord, timing: Timing) -> float:
    """The dense network's MACs over the compressed one's; NaN if unknown.

    If the runtime of ``timing`` merges layers, the MACs are those of the merged networks.
    """
    logged = number(timing.macs_ratio)
    return logged if logged > 0 else record.baseline.macs / record.macs if record.macs else math.nan


def conditions(timing: Timing) -> str:
    """The conditions of a timing, e.g. ``PyTorch eager, 2 threads, batch 1``."""
    parts = [
        timing.runtime or "unknown runtime",
        f"{timing.threads} thread{'s' if timing.threads != 1 else ''}" if timing.threads else "",
        f"batch {timing.batch_size}" if timing.batch_size else "",
        timing.memory_format if timing.memory_format != "contiguous" else "",
    ]
    return ", ".join(part for part in parts if part)


def layer_conditions(record: TrialRecord) -> str:
    """The conditions of the layers' times: those of the trial's timing in the same runtime, or the runtime alone."""
    held = record.details.layer_times
    runtime = held.runtime if held else ""
    found = [*record.details.latencies, *([record.latency] if record.latency else [])]
    return next((conditions(timing) for timing in found if timing.runtime == runtime), runtime)


def number(value: float | None) -> float:
    """``value`` as a float; NaN if it is None or not finite."""
    return float(value) if value is not None and math.isfinite(value) else math.nan


def environment_text(record: TrialRecord) -> str:
    """Versions and hardware of a trial, e.g. ``Python 3.11.7, torch 2.13.0, AMD EPYC, 2 threads``."""
    found = record.environment
    parts = [f"{title} {found[name]}" for name, title in (("python", "Python"), ("torch", "torch")) if found.get(name)]
    parts += [str(found[name]) for name in ("processor", "accelerator") if found.get(name)]
    return ", ".join(parts + ([f"{found['threads']} threads"] if found.get("threads") else []))
