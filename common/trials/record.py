"""The trial record: one compressed network and everything measured on it.

A log holds the JSON of these models, keys as they are named here. What a part does not know, because another version
wrote it, it keeps.
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import from_json

from common.trials.migration import SCHEMA_VERSION, migrate, without_misfits

Status = Literal["ok", "pruned", "failed"]
STAGES = ("raw", "recalibrated", "finetuned")
"""The stages at which a trial is measured on the validation split, in the order in which they happen."""
READING = {"reading": True}
"""The context in which records are read: there a measure that is infinite is an error."""


def _measure(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, float) and not math.isfinite(value) and info.context is not None:
        raise ValueError("not finite")
    return math.nan if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


Measure = Annotated[float, BeforeValidator(_measure)]
"""A finite number; NaN where it was not measured or not finite, for which JSON has null."""
Metrics = dict[str, dict[str, Measure]]
"""Stage or split -> metric -> value."""
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Part(BaseModel):
    """A part of a trial record. It is written with the keys that it was given, and with no others."""

    model_config = ConfigDict(frozen=True, extra="allow", validate_by_name=True)

    def __getitem__(self, key: str) -> Any:
        """The value under a key of the log's JSON.

        Raises:
            KeyError: the part has no such key.
        """
        if key not in type(self).model_fields and key not in (self.model_extra or {}):
            raise KeyError(key)
        return getattr(self, key)

    def replace(self, **changes: Any) -> Self:
        """A copy in which these fields have other values, which are validated.

        Raises:
            ValidationError: a value is not of its field's type.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate({**given, **changes})

    def to_json(self) -> dict[str, Any]:
        """Plain values with the keys that were given; numbers that are not finite become None."""
        values: dict[str, Any] = _plain(self.model_dump(by_alias=True, exclude_unset=True))
        return values


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: every float that is not finite replaced by None, however deep it lies."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class PlannedLayer(Part):
    """What a plan does to one layer.

    Attributes:
        method: of its decomposition; None where it stays dense.
        ranks: in the order in which the input meets them; empty where it stays dense.
        shift: whether the last factor has a bias of its own where the layer has none.
        dense: why it stays dense.
    """

    method: str | None = None
    ranks: list[int] = Field(default_factory=list)
    shift: bool = False
    dense: str | None = None


class Timing(Part):
    """Time of one forward pass of a batch, and the conditions in which it was taken.

    Attributes:
        median_s, iqr_s: seconds; median and interquartile range.
        speedup: over the dense network, timed in turn; None when there is none to tell, see ``note``.
        baseline_median_s, baseline_iqr_s: seconds of the dense network.
        spread: interquartile range of the rounds' ratios, over their median.
        runtime, threads, batch_size, memory_format: the conditions.
        peak_bytes, baseline_peak_bytes: the most memory that a pass took.
        macs_ratio: dense MACs over compressed ones, as the runtime computes them.
        note: why there is no speedup.
    """

    median_s: float | None = None
    iqr_s: float | None = None
    speedup: float | None = None
    baseline_median_s: float | None = None
    baseline_iqr_s: float | None = None
    spread: float | None = None
    runtime: str = ""
    threads: int | None = None
    batch_size: int | None = None
    memory_format: str = ""
    peak_bytes: int | None = None
    baseline_peak_bytes: int | None = None
    macs_ratio: float | None = None
    note: str = ""


class Baseline(Part):
    """The dense network's figures; NaN or None where they were not measured.

    Attributes:
        params, macs, size_bytes: as in `TrialRecord`; counters of other people return fractions at times.
        latency: of the dense network by itself.
        metrics: ``validation``, and ``test`` once it was read.
    """

    params: int | Measure = math.nan
    macs: int | Measure = math.nan
    size_bytes: int | Measure = math.nan
    latency: Timing | None = None
    metrics: Metrics = Field(default_factory=dict)

    def metric(self, name: str, split: str = "validation") -> float:
        """The metric ``name`` on a split; NaN where it was not measured."""
        return self.metrics.get(split, {}).get(name, math.nan)


class LayerFigures(Part):
    """What became of a factored layer.

    Attributes:
        error: relative, of its output on calibration data, or of its weight where no data was used.
        params, macs: the fractions that were kept.
    """

    error: float = math.nan
    params: float = math.nan
    macs: float = math.nan


class LayerTimes(Part):
    """Where the time of a pass goes, each layer timed by itself.

    Attributes:
        runtime: as a reader should see it.
        before, after: layer -> seconds, in the dense and in the compressed network; ``rest`` is what is no layer.
    """

    runtime: str = ""
    before: dict[str, float] = Field(default_factory=dict)
    after: dict[str, float] = Field(default_factory=dict)


class Details(Part):
    """How a trial came about, and what reports show beside its figures. Each part may be missing.

    Attributes:
        study: that the trial belongs to, where several workers share one.
        worker: the process that ran it.
        optuna_trial: its number in the study.
        run_again: whether an earlier attempt ended with its process.
        sampler: that proposed the plan; ``given`` where a rank rule made it before the search.
        rule_settings: of the rank rule.
        score, rung: what the trial reached, and the last rung of the ladder that it climbed.
        part: metric -> value on a part of validation.
        layers: factored layer -> its figures.
        spectra: layer -> singular values, greatest first; in the first trial of a search alone.
        finetuning: epochs, as :func:`common.training.train` returns them.
        weights: file of the network, beside the log.
        latencies: of a chosen network, one for each runtime.
        layer_times: of a chosen network.
        command: that started the run, in older logs.
    """

    study: str = ""
    worker: str = ""
    optuna_trial: int | None = None
    run_again: bool = False
    sampler: str = ""
    rule_settings: dict[str, Any] = Field(default_factory=dict)
    score: float | None = None
    rung: str = ""
    part: dict[str, Measure] = Field(default_factory=dict)
    layers: dict[str, LayerFigures] = Field(default_factory=dict)
    spectra: dict[str, list[float]] = Field(default_factory=dict)
    finetuning: list[dict[str, Any]] = Field(default_factory=list)
    weights: str = ""
    latencies: list[Timing] = Field(default_factory=list)
    layer_times: LayerTimes | None = None
    command: str = ""


class TrialRecord(Part):
    """One compressed network and everything measured on it.

    Attributes:
        run: name of the run, which is also the name of its log file without ``.log``.
        trial: number within the run, from 0.
        status: ``ok``, ``pruned`` (given up early) or ``failed`` (see ``error``).
        method: of the plan.
        method_name: as a user asks for it, e.g. ``arsvd`` for ``svd`` by entropy; empty where it is ``method``.
        method_title: as reports write it, e.g. ``Tucker-2``; empty where it is the name.
        rule: that chose the ranks, or the sampler.
        metric: name of the metric that decides, e.g. ``accuracy`` (a fraction in [0, 1]).
        plan: layer name -> what became of it.
        metrics: ``raw``, ``recalibrated`` and ``finetuned`` are on the validation split; ``test`` is there for the
            networks that were chosen at the end, and only for them.
        params: every parameter of the network.
        macs: multiply-accumulates of one input.
        size_bytes: bytes of the saved file.
        latency: None when not measured.
        seconds: what the trial took.
        baseline: the same figures of the dense network.
        environment: versions and machine, see :func:`common.environment.describe_environment`.
    """

    model_config = ConfigDict(extra="ignore")

    run: str
    trial: Count
    status: Status
    model: str
    dataset: str
    method: str
    method_name: str = ""
    method_title: str = ""
    rule: str
    metric: str
    plan: dict[str, PlannedLayer]
    metrics: Metrics
    params: Count
    macs: Count
    size_bytes: Count
    latency: Timing | None
    seconds: Measure
    seed: Annotated[int, Field(gt=-(2**64), lt=2**64)]
    baseline: Baseline
    environment: dict[str, Any]
    git_commit: str | None = None
    error: str = ""
    details: Details = Field(default_factory=Details)
    schema_version: Literal[2] = Field(default=SCHEMA_VERSION, alias="schema")

    def to_line(self) -> str:
        """The record as one line of JSON. Numbers that are not finite become null, which JSON can hold."""
        every = {name: getattr(self, name) for name in type(self).model_fields}
        return json.dumps(self.model_copy(update=every).to_json(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Any) -> TrialRecord:
        """The record held by ``values``, as this version of the suite or an earlier one wrote it.

        What only adds to a record, such as its details, is left out where it is not of its type; a log of someone
        else may hold anything there.

        Raises:
            ValueError: an unknown schema version, a field that is missing, or one of the wrong type.
        """
        values = migrate(values)
        try:
            return cls.model_validate(values, strict=True, context=READING)
        except ValidationError as error:
            return cls.model_validate(without_misfits(values, error), strict=True, context=READING)

    @classmethod
    def from_line(cls, text: bytes) -> TrialRecord:
        """The record whose JSON is ``text``; NaN and infinities become None.

        Raises:
            ValueError: the text is no valid record.
        """
        finite = b"NaN" not in text and b"Infinity" not in text
        if finite and text.endswith(_CURRENT):
            try:
                return cls.model_validate_json(text, strict=True, context=READING)
            except ValidationError:
                pass  # the slower way says what is wrong, or leaves it out
        return cls.from_dict(_parsed(text, finite))


def _parsed(text: bytes, finite: bool) -> Any:
    """The values of a line of JSON; where it is not ``finite``, NaN and infinities become None.

    Raises:
        ValueError: the text is no JSON.
    """
    if finite:
        try:
            return from_json(text)  # twice as fast as the decoder
        except ValueError:
            pass  # torn, or with half a surrogate pair, which the decoder takes
    try:
        return _DECODER.decode(text.decode())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("torn: the record is not whole") from None


_CURRENT = f'"schema": {SCHEMA_VERSION}}}'.encode()
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and infinities of foreign writers


def study_of(record: TrialRecord, by_name: bool = False) -> str:
    """The study that a record belongs to: the one it names, else its run.

    Args:
        record: a trial.
        by_name: whether the run ``<name>-w2`` of a record that names no study is a worker of ``<name>``.
    """
    named = record.details.study
    return named if named else re.sub(r"-w\d+$", "", record.run) if by_name else record.run
