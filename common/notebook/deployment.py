"""Files to deploy: each network in each precision, with its accuracy on the test split, its size and its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from common.data import DataBundle
from common.deploy import OnnxNetwork, export_onnx
from common.environment import has_int8_products, instruction_set
from common.latency import Latency, measure_files
from common.training import evaluate


def deployment_table(
    networks: Mapping[Any, nn.Module],
    data: DataBundle,
    folder: str | Path,
    precisions: Sequence[str] = ("float32", "int8"),
    rounds: int = 15,
) -> pd.DataFrame:
    """Write every network to an ONNX file in every precision, and compare the files in ONNX Runtime.

    Speedups are relative to the first network's first file, which is timed in turn with all others, one image at a
    time. int8 gets its ranges from the calibration split.

    Args:
        networks: title, or number of a trial -> network. The first is the dense one.
        data: its test split is read.
        folder: where the files are written, as ``<title>-<precision>.onnx``.
        precisions: see :func:`common.deploy.export_onnx`.
        rounds: timings of each file.
    """
    x = data.example()
    rows: list[dict[str, Any]] = []
    files: list[Path] = []
    for title, network in networks.items():
        name = title if isinstance(title, str) else f"trial {title}"
        in_torch = evaluate(network, data.test)[data.metric]
        for precision in precisions:
            batches = data.calibration if precision == "int8" else None
            path = Path(folder) / f"{name.replace(' ', '')}-{precision}.onnx"
            files.append(export_onnx(network, path, x, precision=precision, batches=batches))
            reached = evaluate(OnnxNetwork(files[-1]), data.test)[data.metric]
            rows.append(
                {
                    "Network": name,
                    "Precision": precision,
                    data.metric: reached,
                    "Of PyTorch's": reached - in_torch,
                    "Size (MB)": files[-1].stat().st_size / 1e6,
                }
            )
    times = measure_files(files, x[:1], baseline=files[0], rounds=rounds)
    for row, latency in zip(rows, times, strict=True):
        row |= {"Latency (ms)": latency.median_s * 1e3, "Speedup": latency.speedup}
    for row, latency in zip(rows, times, strict=True):
        row["Note"] = _note(row, latency, rows)
    return pd.DataFrame(rows)


def _note(row: Mapping[str, Any], latency: Latency, rows: Sequence[Mapping[str, Any]]) -> str:
    """Why a file has no speedup, or why int8 is slower than float32 on this machine."""
    beside = [other for other in rows if other["Network"] == row["Network"] and other["Precision"] == "float32"]
    if row["Precision"] == "int8" and beside and row["Latency (ms)"] > beside[0]["Latency (ms)"]:
        why = (
            "the steps between float32 and int8 take longer than the products save"
            if has_int8_products()
            else "this processor has no instruction for products of 8-bit integers (VNNI)"
        )
        return f"slower than float32: {why}; it has {instruction_set()}"
    return latency.note
