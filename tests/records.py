from __future__ import annotations

import json
from typing import Any

from common.trials import TrialRecord
from common.trials.migration import method_names_1

DENSE_PARAMS, DENSE_MACS, DENSE_BYTES = 11_181_642, 555_422_720, 44_780_042
"""ResNet18 with ten classes on 32x32 inputs: parameters, multiply-accumulates, bytes of the saved file."""


def make_baseline(**changes: Any) -> dict[str, Any]:
    baseline = {
        "params": DENSE_PARAMS,
        "macs": DENSE_MACS,
        "size_bytes": DENSE_BYTES,
        "latency": {"median_s": 0.0292, "iqr_s": 0.0008},
        "metrics": {"validation": {"accuracy": 0.9500}},
    }
    return baseline | changes


def make_record(**changes: Any) -> TrialRecord:
    """A ResNet18 at 7.78 times fewer parameters that kept more than 99% of the dense accuracy."""
    names = method_names_1(changes.get("method", "tucker2"), changes.get("rule", "budget"))
    values: dict[str, Any] = {
        "run": "resnet18-cifar10",
        "trial": 0,
        "status": "ok",
        "model": "resnet18",
        "dataset": "cifar10",
        "method": "tucker2",
        **names,
        "rule": "budget",
        "metric": "accuracy",
        "plan": {
            "layer1.0.conv1": {"method": "tucker2", "ranks": [21, 24]},
            "conv1": {"dense": "factoring does not make it smaller"},
        },
        "metrics": {
            "raw": {"accuracy": 0.8123, "loss": 0.61},
            "recalibrated": {"accuracy": 0.9312, "loss": 0.24},
            "finetuned": {"accuracy": 0.9471, "loss": 0.19},
        },
        "params": 1_437_022,
        "macs": 87_512_064,
        "size_bytes": 5_791_244,
        "latency": {
            "median_s": 0.0151,
            "iqr_s": 0.0004,
            "speedup": 1.93,
            "runtime": "onnxruntime",
            "threads": 1,
            "batch_size": 1,
            "memory_format": "contiguous",
        },
        "seconds": 41.7,
        "seed": 0,
        "baseline": make_baseline(),
        "environment": {"python": "3.11.7", "torch": "2.13.0"},
        "git_commit": "0123456789ab",
    }
    return TrialRecord.model_validate(values | changes)


def foreign_record(**changes: Any) -> TrialRecord:
    """Read the JSON of `make_record` after ``changes``, as another program may have written it."""
    return TrialRecord.from_dict(json.loads(make_record().to_line()) | changes)
