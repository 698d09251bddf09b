"""The ONNX files of the chosen networks: what each precision reaches, its size and its time."""

from __future__ import annotations

from typing import Any

import pandas as pd

from common.reporting.facts import number
from common.reporting.frame import Trials
from common.reporting.tables.networks import chosen_networks
from common.reporting.tables.table import Table, as_text, megabytes, milliseconds, percentage, points, times
from common.trials import FileFigures

NAMES = ("Model", "Run", "File of", "Precision", "Instructions")
SHAPES = {"Test": percentage, "Of float32": points, "Size": megabytes, "Time": milliseconds, "Speedup": times}


def files_table(trials: Trials, keep: float) -> Table:
    """The files of the best accepted trials, and of the dense network, in every precision that a notebook wrote."""
    rows: list[dict[str, Any]] = []
    noted: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    for label, _, record in chosen_networks(trials, keep):
        float32 = {file.network: number(file.test) for file in record.details.files if file.precision == "float32"}
        for file in record.details.files:
            key = (record.run, file.network, file.precision)
            if key in seen:
                continue
            seen.add(key)
            place = {"Model": label, "Run": record.run, "File of": file.network, "Precision": file.precision}
            instructions = record.environment.get("instructions") or "unknown"
            rows.append({**place, "Instructions": instructions, **_figures(file, float32.get(file.network))})
            if file.note:
                noted.append(f"{record.run}, {file.network}, {file.precision}: {file.note}.")
    raw = pd.DataFrame(rows, columns=[*NAMES, *SHAPES])
    text = as_text(raw, {**dict.fromkeys(NAMES, str), **SHAPES})
    notes = [
        "Test: the deciding metric on the test split. Of float32: points above the network's float32 file.",
        "Time: the median of one input in ONNX Runtime, all files of a run in turn. Speedup: over the dense network's "
        "first file.",
        *noted,
    ]
    return Table("files", "ONNX files and their precisions", raw, text, notes, {name: name for name in SHAPES})


def _figures(file: FileFigures, float32: float | None) -> dict[str, float]:
    test = number(file.test)
    return {
        "Test": test,
        "Of float32": test - number(float32),
        "Size": number(file.size_bytes),
        "Time": number(file.median_s),
        "Speedup": number(file.speedup),
    }
