"""ONNX files in a notebook: those of a run's networks, whose figures its log keeps, and those that a user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from common.data import DataBundle
from common.deploy import OnnxNetwork
from common.deploy.precision import precision_of
from common.latency import measure_files
from common.shrink import deployment
from common.shrink.deployment import slower_note
from common.training import evaluate
from common.trials import FileFigures, TrialWriter, read_log


def deployment_table(
    networks: Mapping[Any, nn.Module],
    data: DataBundle,
    prefix: str | Path,
    precisions: Sequence[str] = ("float32", "int8"),
    rounds: int = 15,
) -> pd.DataFrame:
    """:func:`common.shrink.deployment.deployment_table`; the log ``<prefix>.log``, if there is one, keeps its figures.

    The trials whose networks have files are logged again, with the files of the first network beside their own.
    """
    table = deployment.deployment_table(networks, data, prefix, precisions, rounds)
    log = Path(f"{prefix}.log")
    if not table.empty and log.exists():
        log_files(log, [_figures(row, data.metric) for row in table.to_dict("records")])
    return table


def log_files(log: Path, files: Sequence[FileFigures]) -> None:
    """Append to a log the trials of which ``files`` has some, each with the files of the first network too."""
    records, _ = read_log(log)
    with TrialWriter(log.parent, log.stem) as writer:
        for record in records:
            own = [file for file in files if file.network == f"trial {record.trial}"]
            if own and record.run == writer.run:
                first = [file for file in files if file.network == files[0].network and file not in own]
                writer.write(record.replace(details=record.details.replace(files=[*first, *own])))


def _figures(row: Mapping[Any, Any], metric: str) -> FileFigures:
    """Return a row of the table as a log keeps it."""
    size, time = _known(row["Size (MB)"]), _known(row["Latency (ms)"])
    return FileFigures(
        network=row["Network"],
        precision=row["Precision"],
        test=row[metric],
        size_bytes=None if size is None else round(1e6 * size),
        median_s=None if time is None else time / 1e3,
        speedup=_known(row["Speedup"]),
        note=row["Note"],
    )


def _known(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def onnx_rows(files: Sequence[Path], data: DataBundle) -> list[dict[str, Any]]:
    """Tabulate ONNX files: the metric on test, the size, and the time of one input, all in turn in ONNX Runtime.

    Speedups are relative to the first of the files.

    Raises:
        ValueError: a file does not run on the data.
    """
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            reached = evaluate(OnnxNetwork(file), data.test, data.task)[data.metric]
        except Exception as error:  # ONNX Runtime's own exceptions have no common class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"models: {file} does not run on {data.name}: {reason}") from None
        precision = precision_of(file)
        network = file.stem.removesuffix(f"-{precision}")  # the files of one network in several precisions
        rows.append({"File": file.name, "Network": network, "Precision": precision, data.metric: reached})
    times = measure_files(files, data.example(), baseline=files[0]) if files else []
    for file, row, latency in zip(files, rows, times, strict=True):
        row |= {"Size (MB)": file.stat().st_size / 1e6, "Latency (ms)": latency.median_s * 1e3}
        row |= {"Speedup": latency.speedup, "Note": latency.note}
    notes = [row["Note"] or slower_note(row, rows) for row in rows]
    return [
        {**{name: value for name, value in row.items() if name != "Network"}, "Note": note}
        for row, note in zip(rows, notes, strict=True)
    ]
