"""The trial record: one compressed network and everything measured on it.

A log holds the JSON of these models, with the names of the fields as keys. A part also keeps fields that it does not
know, such as those of another version.
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
STAGES = ("raw", "recalibrated", "refitted", "finetuned")
"""The stages at which a trial is measured on the validation split, in order."""
READING = {"reading": True}
"""The context of validation when a record is read: a measure that is infinite is then an error."""


def _measure(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, float) and not math.isfinite(value) and info.context is not None:
        raise ValueError("not finite")
    return math.nan if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


Measure = Annotated[float, BeforeValidator(_measure)]
"""A finite number; NaN if it was not measured or not finite, which is null in JSON."""
Metrics = dict[str, dict[str, Measure]]
"""Stage or split -> metric -> value."""
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Part(BaseModel):
    """A part of a trial record. Only the keys that it was given are written."""

    model_config = ConfigDict(frozen=True, extra="allow", validate_by_name=True)

    def __getitem__(self, key: str) -> Any:
        """Return the value under a key of the log's JSON.

        Raises:
            KeyError: the part has no such key.
        """
        if key not in type(self).model_fields and key not in (self.model_extra or {}):
            raise KeyError(key)
        return getattr(self, key)

    def replace(self, **changes: Any) -> Self:
        """Return a copy in which these fields have other values. The values are validated.

        Raises:
            ValidationError: a value does not have its field's type.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate({**given, **changes})

    def to_json(self) -> dict[str, Any]:
        """Return plain values with the keys that were given. Numbers that are not finite become None."""
        values: dict[str, Any] = _plain(self.model_dump(by_alias=True, exclude_unset=True))
        return values


def _plain(value: Any) -> Any:
    """Replace every float that is not finite, at any depth, by None, so that JSON can hold ``value``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class PlannedLayer(Part):
    """The plan of one layer.

    Attributes:
        method: method of its decomposition; None if it stays dense.
        ranks: its ranks in order from input to output; empty if it stays dense.
        shift: whether the last factor has a bias although the layer has none.
        dense: why it stays dense.
    """

    method: str | None = None
    ranks: list[int] = Field(default_factory=list)
    shift: bool = False
    dense: str | None = None


class Timing(Part):
    """Time of one forward pass of a batch, and the conditions of the timing.

    Attributes:
        median_s, iqr_s: median and interquartile range, in seconds.
        speedup: speedup over the dense network, timed in turn; None if none can be stated, see ``note``.
        baseline_median_s, baseline_iqr_s: the same of the dense network, in seconds.
        spread: interquartile range of the rounds' ratios, over their median.
        runtime, threads, batch_size, memory_format: the conditions.
        peak_bytes, baseline_peak_bytes: peak memory of a pass.
        macs_ratio: dense MACs over compressed ones; those of merged layers if the runtime merges layers.
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
    """The dense network's figures; NaN or None for those that were not measured.

    Attributes:
        params, macs, size_bytes: as in `TrialRecord`. Counters of other programs may return fractions.
        latency: latency of the dense network.
        metrics: metrics on ``validation``, and on ``test`` once it was read.
        images: split -> number of its images, for ``validation`` and ``test``.
    """

    params: int | Measure = math.nan
    macs: int | Measure = math.nan
    size_bytes: int | Measure = math.nan
    latency: Timing | None = None
    metrics: Metrics = Field(default_factory=dict)
    images: dict[str, Count] = Field(default_factory=dict)

    def metric(self, name: str, split: str = "validation") -> float:
        """Return the metric ``name`` on a split; NaN if it was not measured."""
        return self.metrics.get(split, {}).get(name, math.nan)


class Difference(Part):
    """The difference of the deciding metric from the dense network's on the same images of the test split.

    Attributes:
        value: the difference, e.g. -0.01 for one point less accuracy.
        low, high: its 95% interval, paired by images; NaN if unknown.
        images: number of images.
    """

    value: Measure = math.nan
    low: Measure = math.nan
    high: Measure = math.nan
    images: Count = 0

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``no difference`` if the interval holds 0, or nothing if it is unknown."""
        if math.isnan(self.low) or math.isnan(self.high):
            return ""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference"


class LayerFigures(Part):
    """Figures of a factored layer.

    Attributes:
        error: relative error of its output on calibration data, or of its weight if no data was used; as the trial
            was measured, before the network was refitted or fine-tuned.
        params, macs: the fractions that were kept.
        dense_params, dense_macs: parameters and MACs of the dense layer.
        full: the greatest ranks that it can have; empty if unknown.
    """

    error: float = math.nan
    params: float = math.nan
    macs: float = math.nan
    dense_params: float = math.nan
    dense_macs: float = math.nan
    full: list[int] = Field(default_factory=list)


class LayerTimes(Part):
    """The times of the layers in a pass, each layer timed in isolation.

    Attributes:
        runtime: title of the runtime.
        before, after: layer -> seconds in the dense and in the compressed network; ``rest`` for all other operations.
    """

    runtime: str = ""
    before: dict[str, float] = Field(default_factory=dict)
    after: dict[str, float] = Field(default_factory=dict)


class FileFigures(Part):
    """Figures of an ONNX file of a chosen network, or of the dense one beside it.

    Attributes:
        network: ``dense``, or ``trial`` and its number.
        precision: ``float32``, ``float16`` or ``int8``.
        test: the deciding metric on the test split, in ONNX Runtime.
        size_bytes: bytes of the file.
        median_s: median time of one input in ONNX Runtime, in seconds. All files take turns.
        speedup: over the dense network's first file; None if none can be stated.
        note: why there is no file or no speedup, or why int8 is slower than float32.
    """

    network: str = ""
    precision: str = ""
    test: Measure = math.nan
    size_bytes: int | None = None
    median_s: float | None = None
    speedup: float | None = None
    note: str = ""


class Details(Part):
    """How a trial was made, and what reports show besides its figures. Each field may be missing.

    Attributes:
        study: name of the study, if several workers share it.
        worker: name of the process that ran the trial.
        optuna_trial: number of the trial in the study.
        run_again: whether the process of an earlier attempt died.
        sampler: sampler that proposed the plan; ``given`` if the search was given the plan of a rank rule.
        rule_settings: settings of the rank rule.
        score, rung: score of the trial, and the last rung that it reached.
        part: metric -> value on a part of validation.
        layers: factored layer -> its figures.
        spectra: layer -> singular values, greatest first; only in the first trial of a search.
        finetuning: history of the fine-tuning, as :func:`common.training.train` returns it.
        weights: file of the network, beside the log.
        latencies: timings of a chosen network, one for each runtime.
        layer_times: layers' times of a chosen network.
        files: ONNX files of a chosen network, with those of the dense one first.
        test_difference: a chosen network's difference from the dense one on test.
        tuned_difference: a fine-tuned network's difference on test from the dense one after the same fine-tuning. A
            dense one that this makes worse stays as it was. None if it was not fine-tuned.
        command: command that started the run, in older logs.
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
    files: list[FileFigures] = Field(default_factory=list)
    test_difference: Difference | None = None
    tuned_difference: Difference | None = None
    command: str = ""


class TrialRecord(Part):
    """One compressed network and everything measured on it.

    Attributes:
        run: name of the run, which is also the name of its log file without ``.log``.
        trial: number within the run, from 0.
        status: ``ok``, ``pruned`` (stopped early) or ``failed`` (see ``error``).
        method: method of the plan.
        method_name: name by which a user selects the method, e.g. ``arsvd`` for ``svd`` with entropy; empty if it is
            ``method``.
        method_title: title in reports, e.g. ``Tucker-2``; empty if it is the name.
        rule: rule or sampler that chose the ranks.
        metric: name of the metric that decides, e.g. ``accuracy`` (a fraction in [0, 1]).
        plan: layer name -> its plan.
        metrics: ``raw``, ``recalibrated``, ``refitted`` and ``finetuned`` are on the validation split. Only networks
            that were chosen at the end have ``test``.
        params: number of all parameters of the network.
        macs: multiply-accumulates of one input.
        size_bytes: bytes of the saved file.
        latency: timing of the network; None if it was not timed.
        seconds: duration of the trial.
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

    @property
    def title(self) -> str:
        """The method's title in reports; its name if the record holds no title."""
        return self.method_title or self.method_name or self.method

    def to_line(self) -> str:
        """Return the record as one line of JSON. Numbers that are not finite become null."""
        every = {name: getattr(self, name) for name in type(self).model_fields}
        return json.dumps(self.model_copy(update=every).to_json(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Any) -> TrialRecord:
        """Read a record that this version of the suite or an earlier one wrote.

        Values that a record can do without, such as details, are left out if their type is wrong, since a log of
        another program may hold anything there.

        Raises:
            ValueError: the schema version is unknown, or a field is missing or has the wrong type.
        """
        values = migrate(values)
        try:
            return cls.model_validate(values, strict=True, context=READING)
        except ValidationError as error:
            return cls.model_validate(without_misfits(values, error), strict=True, context=READING)

    @classmethod
    def from_line(cls, text: bytes) -> TrialRecord:
        """Read a record from its JSON. NaN and infinities become None.

        Raises:
            ValueError: the text is not a valid record.
        """
        finite = b"NaN" not in text and b"Infinity" not in text
        if finite and text.endswith(_CURRENT):
            try:
                return cls.model_validate_json(text, strict=True, context=READING)
            except ValidationError:
                pass  # from_dict names the fault, or leaves it out
        return cls.from_dict(_parsed(text, finite))


def _parsed(text: bytes, finite: bool) -> Any:
    """Parse a line of JSON. Unless it is ``finite``, NaN and infinities become None.

    Raises:
        ValueError: the text is not JSON.
    """
    if finite:
        try:
            return from_json(text)  # twice as fast as the decoder
        except ValueError:
            pass  # torn, or with half a surrogate pair, which the decoder accepts
    try:
        return _DECODER.decode(text.decode())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("torn: the record is not complete") from None


_CURRENT = f'"schema": {SCHEMA_VERSION}}}'.encode()
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and infinities of foreign writers


def study_of(record: TrialRecord, by_name: bool = False) -> str:
    """The study to which a record belongs: the one that it names, or else its run.

    Args:
        record: a trial.
        by_name: whether the run ``<name>-w2`` of a record that names no study is a worker of ``<name>``.
    """
    named = record.details.study
    return named if named else re.sub(r"-w\d+$", "", record.run) if by_name else record.run
