"""The columns that reports are made from, and how a record fills a row of them."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
import pandas as pd

from common.reporting.facts import conditions, method_name, proposer_of, setting_text
from common.trials import STAGES, Entry, TrialRecord
from common.trials.best import final_metric, reductions

TEXTS = (
    *("run", "study", "status", "model", "dataset", "method", "rule", "setting", "sampler", "metric", "runtime"),
    "network",
)
COUNTS = ("trial", "params", "macs", "size_bytes", "time", "offset", "size", "file")
NUMBERS = (
    *(*STAGES, "test", "final", "dense", "dense_test", "dense_params", "dense_macs", "dense_size"),
    *("speedup", "median_s", "iqr_s", "seconds", "seed", "spectra"),
)
"""The columns. The stages, ``test``, ``final`` (validation after the last stage) and the dense ones hold the deciding
metric, whichever it is; what was not measured is NaN. ``network`` tells one dense network from another."""


class Columns:
    """The columns while they grow; a text is held once and its number in the column.

    Attributes:
        held: the records that no file leads back to, by row.
    """

    def __init__(self) -> None:
        self.texts = {name: array("i") for name in TEXTS}
        self.codes: dict[str, dict[str, int]] = {name: {} for name in TEXTS}
        self.counts = {name: array("q") for name in COUNTS}
        self.numbers = {name: array("d") for name in NUMBERS}
        self.held: dict[int, TrialRecord] = {}

    def frame(self) -> pd.DataFrame:
        """The table of all rows."""
        texts = {
            name: pd.Categorical.from_codes(
                np.frombuffer(column, dtype=column.typecode), pd.Index(list(self.codes[name]))
            )
            for name, column in self.texts.items()
        }
        numbers = {
            name: np.frombuffer(column, dtype=column.typecode) for name, column in (self.counts | self.numbers).items()
        }
        return pd.DataFrame(texts | numbers)

    def put(self, row: int, entry: Entry, file: int, study: str) -> None:
        """Write a record into ``row``, which is one that is there or the next."""
        record, dense = entry.record, entry.record.baseline
        metrics, stages = dense.get("metrics", {}), record.metrics
        timing = record.latency or {}
        dense_metric = metrics.get("validation", {}).get(record.metric)
        texts = (
            *(record.run, study, record.status, record.model, record.dataset, method_name(record), record.rule),
            *(setting_text(record), proposer_of(record), record.metric),
            *(conditions(timing) if timing else "", repr((dense.get("params"), dense.get("macs"), dense_metric))),
        )
        counts = (
            *(record.trial, record.params, record.macs, record.size_bytes, entry.time),
            *(entry.offset, entry.size, file),
        )
        numbers = (
            *(stages.get(stage, {}).get(record.metric) for stage in (*STAGES, "test")),
            *(final_metric(record), dense_metric, metrics.get("test", {}).get(record.metric)),
            *(dense.get("params"), dense.get("macs"), dense.get("size_bytes")),
            *(reductions(record).get("speedup"), timing.get("median_s"), timing.get("iqr_s")),
            *(record.seconds, record.seed, "spectra" in record.details),
        )
        for (name, column), text in zip(self.texts.items(), texts, strict=True):
            codes = self.codes[name]
            _set(column, row, codes.setdefault(text, len(codes)))
        for column, count in zip(self.counts.values(), counts, strict=True):
            _set(column, row, count)
        for floats, value in zip(self.numbers.values(), numbers, strict=True):
            _set(floats, row, value if value is not None and math.isfinite(value) else math.nan)
        if entry.size:
            self.held.pop(row, None)
        else:
            self.held[row] = record


def _set(column: array[Any], row: int, value: Any) -> None:
    if row == len(column):
        column.append(value)
    else:
        column[row] = value
