"""The trial record: one compressed network and everything measured on it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

SCHEMA_VERSION = 1

Status = Literal["ok", "pruned", "failed"]
STAGES = ("raw", "recalibrated", "finetuned")
"""The stages at which a trial is measured on the validation split, in the order in which they happen."""


@dataclass(frozen=True)
class TrialRecord:
    """One compressed network and everything measured on it.

    Attributes:
        run: name of the run, which is also the name of its log file without ``.log``.
        trial: number within the run, from 0.
        status: ``ok``, ``pruned`` (given up early) or ``failed`` (see ``error``).
        metric: name of the metric that decides, e.g. ``accuracy`` (a fraction in [0, 1]).
        plan: layer name -> ``{"method": ..., "ranks": [...]}`` or ``{"dense": why}``.
        metrics: stage -> metric -> value. ``raw``, ``recalibrated`` and ``finetuned`` are on the validation
            split; ``test`` is there for the networks that were chosen at the end, and only for them.
        params: every parameter of the network.
        macs: multiply-accumulates of one input.
        size_bytes: bytes of the saved file.
        latency: ``median_s``, ``iqr_s``, ``speedup`` over the dense network timed in turn with it, and the
            conditions (``runtime``, ``threads``, ``batch_size``, ``memory_format``); None when not measured.
        seconds: what the trial took.
        baseline: the same figures of the dense network: ``params``, ``macs``, ``size_bytes``, ``latency``,
            ``metrics`` (``validation``, and ``test`` once it was read).
    """

    run: str
    trial: int
    status: Status
    model: str
    dataset: str
    method: str
    rule: str
    metric: str
    plan: dict[str, dict[str, Any]]
    metrics: dict[str, dict[str, float]]
    params: int
    macs: int
    size_bytes: int
    latency: dict[str, Any] | None
    seconds: float
    seed: int
    baseline: dict[str, Any]
    environment: dict[str, Any]
    git_commit: str | None = None
    error: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The record as one line of JSON. Numbers that are not finite become null, which JSON can hold."""
        return json.dumps(_finite(asdict(self)), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrialRecord:
        """The record held by ``values``.

        Raises:
            ValueError: another schema version, a field that is missing, or one of the wrong type.
        """
        if not isinstance(values, dict):
            raise ValueError(f"a trial must be a JSON object, got {type(values).__name__}")
        schema = values.get("schema")
        if schema != SCHEMA_VERSION:
            raise ValueError(f"schema version {schema!r} is unknown; this reader knows version {SCHEMA_VERSION}")
        if missing := _REQUIRED - values.keys():
            raise ValueError(f"the field {min(missing)!r} is missing")
        for name, kind in _KINDS.items():
            if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
                raise ValueError(f"the field {name!r} holds {values[name]!r}, which is not of the right type")
        for name in _COUNTS:
            if not 0 <= values[name] < 2**63:
                raise ValueError(f"the field {name!r} holds {values[name]}, which is no count of 63 bits")
        _check_metrics("metrics", values["metrics"])
        _check_metrics("baseline.metrics", values["baseline"].get("metrics", {}))
        figures = {f"baseline.{name}": values["baseline"].get(name) for name in ("params", "macs", "size_bytes")}
        figures |= {"seed": values["seed"], "seconds": values["seconds"]}
        figures |= {f"latency.{name}": value for name, value in (values["latency"] or {}).items() if name in _SECONDS}
        for name, value in figures.items():
            if not _is_number(value):
                raise ValueError(f"the field {name!r} holds {value!r}, which is no finite number")
        if values["status"] not in _STATUSES:
            raise ValueError(f"the status {values['status']!r} is unknown; it is one of {_STATUSES}")
        seconds = math.nan if values["seconds"] is None else values["seconds"]
        return cls(**{name: value for name, value in values.items() if name in _KNOWN} | {"seconds": seconds})


_OPTIONAL = {"git_commit", "error", "details"}
_KNOWN = {f.name for f in fields(TrialRecord)}
_REQUIRED = _KNOWN - _OPTIONAL
_STATUSES = get_args(Status)
_COUNTS = ("trial", "params", "macs", "size_bytes")
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("run", "status", "model", "dataset", "method", "rule", "metric", "error"), str),
    **dict.fromkeys(("trial", "params", "macs", "size_bytes", "seed"), int),
    **dict.fromkeys(("plan", "metrics", "baseline", "environment", "details"), dict),
    "latency": (dict, type(None)),
    "seconds": (int, float, type(None)),
}
_SECONDS = {"median_s", "iqr_s", "speedup", "baseline_median_s"}


def _is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number, or None, which stands for one that was not finite or not measured."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300)


def _check_metrics(name: str, stages: Any) -> None:
    if not isinstance(stages, dict) or not all(isinstance(metrics, dict) for metrics in stages.values()):
        raise ValueError(f"the field {name!r} holds {stages!r}; it must map stages to metrics")
    for stage, metrics in stages.items():
        for metric, value in metrics.items():
            if not _is_number(value):
                raise ValueError(f"the field {name!r} holds {value!r} for {stage}/{metric}, which is no finite number")


def _finite(value: Any) -> Any:
    """``value`` with every float that is not finite replaced by None, however deep it lies."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def study_of(record: TrialRecord, by_name: bool = False) -> str:
    """The study that a record belongs to: the one it names, else its run.

    Args:
        record: a trial.
        by_name: whether the run ``<name>-w2`` of a record that names no study is a worker of ``<name>``.
    """
    named = record.details.get("study")
    return str(named) if named else re.sub(r"-w\d+$", "", record.run) if by_name else record.run
