"""The columns from which reports are made, and how a record becomes a row of them."""

from __future__ import annotations

import math

import pandas as pd

from common.reporting.facts import conditions, method_name, method_title, proposer_of, setting_text
from common.reporting.store import ColumnStore
from common.trials import STAGES, Entry, TrialRecord
from common.trials.best import final_metric

TEXTS = (
    *("run", "study", "status", "model", "dataset", "method", "title", "rule", "setting", "sampler", "metric"),
    *("runtime", "network"),
)
COUNTS = ("trial", "params", "macs", "size_bytes", "time", "offset", "size", "file")
NUMBERS = (
    *(*STAGES, "test", "final", "dense", "dense_test", "dense_params", "dense_macs", "dense_size"),
    *("speedup", "median_s", "iqr_s", "seconds", "seed", "spectra", "images", "test_images"),
)
"""The columns. The stages, ``test``, ``final`` (validation after the last stage), ``dense`` and ``dense_test`` hold
the deciding metric, of ``images`` images of validation and ``test_images`` of test. What was not measured is NaN.
``title`` is the method's. ``network`` names the dense one."""


class Columns:
    """The columns while they grow. Each text is stored once, and a column of texts holds their numbers.

    Attributes:
        held: row -> record, for records that cannot be read again from a file.
    """

    def __init__(self) -> None:
        self.codes: dict[str, dict[str, int]] = {name: {} for name in TEXTS}
        kinds = {**dict.fromkeys(TEXTS, "i"), **dict.fromkeys(COUNTS, "q"), **dict.fromkeys(NUMBERS, "d")}
        self.store = ColumnStore(kinds)
        self.held: dict[int, TrialRecord] = {}

    def frame(self) -> pd.DataFrame:
        """The table of all rows."""
        columns = self.store.arrays()
        texts = {
            name: pd.Categorical.from_codes(columns[name], pd.Index(list(codes))) for name, codes in self.codes.items()
        }
        return pd.DataFrame({**columns, **texts})

    def put(self, row: int, entry: Entry, file: int, study: str) -> None:
        """Write a record into ``row``, which is an existing row or the next one."""
        record, dense = entry.record, entry.record.baseline
        dense_metric, timing = dense.metric(record.metric), record.latency
        texts = (
            *(record.run, study, record.status, record.model, record.dataset, method_name(record)),
            *(method_title(record), record.rule, setting_text(record), proposer_of(record), record.metric),
            *(conditions(timing) if timing else "", repr((dense.params, dense.macs, dense_metric))),
        )
        counts = (
            *(record.trial, record.params, record.macs, record.size_bytes, entry.time),
            *(entry.offset, entry.size, file),
        )
        numbers = (
            *(record.metrics.get(stage, {}).get(record.metric) for stage in (*STAGES, "test")),
            *(final_metric(record), dense_metric, dense.metric(record.metric, "test")),
            *(dense.params, dense.macs, dense.size_bytes),
            *((timing.speedup, timing.median_s, timing.iqr_s) if timing else (None, None, None)),
            *(record.seconds, record.seed, bool(record.details.spectra)),
            *(dense.images.get("validation"), dense.images.get("test")),
        )
        held = (
            *(codes.setdefault(text, len(codes)) for codes, text in zip(self.codes.values(), texts, strict=True)),
            *counts,
            *(value if value is not None and math.isfinite(value) else math.nan for value in numbers),
        )
        self.store.put(row, held)
        if entry.size:
            self.held.pop(row, None)
        else:
            self.held[row] = record
