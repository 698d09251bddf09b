"""ONNX files of networks, and a table of what each file reaches, its size and its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from common.calibration.divergence import Divergence, divergence_for, mean_divergence, outputs_on
from common.data import DataBundle
from common.deploy import OnnxNetwork, export_onnx
from common.deploy.precision import PRECISIONS
from common.environment import has_int8_products, instruction_set
from common.latency import measure_files
from common.network.batches import inputs_of
from common.network.inputs import to_network
from common.shrink.loading import Examples
from common.training import evaluate

DIVERGENCE = "Divergence"
"""Column of a table without targets: how far the outputs are from the first network's, on the calibration images."""
Judge = Callable[[nn.Module], float]


@dataclass(frozen=True)
class DeployedFile:
    """An ONNX file to be made.

    Attributes:
        title: name of the network in tables.
        network: the network, dense or compressed.
        precision: see :func:`common.deploy.export_onnx`.
        path: destination path.
    """

    title: str
    network: nn.Module
    precision: str
    path: Path


def deployment_table(
    networks: Mapping[Any, nn.Module],
    data: DataBundle,
    prefix: str | Path,
    precisions: Sequence[str] = ("float32", "int8"),
    rounds: int = 15,
) -> pd.DataFrame:
    """Write every network to an ONNX file in every precision, and compare the files, see :func:`files_table`.

    Args:
        networks: title, or number of a trial -> network. The first is the dense one.
        data: its test split is read. int8 gets its ranges from its calibration split.
        prefix: of the files, ``<prefix>-<title>-<precision>.onnx``.
        precisions: see :func:`common.deploy.export_onnx`. Without any, the table is empty.
        rounds: timings of each file.
    """
    files = []
    for key, network in networks.items():
        title = key if isinstance(key, str) else f"trial {key}"
        stem = f"{prefix}-{title.replace(' ', '')}"
        files += [DeployedFile(title, network, each, Path(f"{stem}-{each}.onnx")) for each in precisions]
    return files_table(files, Examples(data.calibration, data), rounds)


def deployed_files(networks: Mapping[str, nn.Module], precisions: Sequence[str], folder: Path) -> list[DeployedFile]:
    """List the files of networks by their titles: ``small.onnx``, and ``small-int8.onnx`` in another precision."""
    return [
        DeployedFile(title, network, each, folder / f"{title}{'' if each == PRECISIONS[0] else f'-{each}'}.onnx")
        for title, network in networks.items()
        for each in precisions
    ]


def files_table(
    files: Sequence[DeployedFile], examples: Examples, rounds: int = 15, divergence: Divergence | None = None
) -> pd.DataFrame:
    """Write ONNX files, and compare them in ONNX Runtime.

    Speedups are relative to the first file, and all files are timed in turn, one image at a time. A file that cannot
    be written gets a note.

    Args:
        files: the files. The first is the dense network's.
        examples: the test split of its data is read. Without data, the table shows the divergence from the first
            network's outputs instead. int8 gets its ranges from the batches.
        rounds: timings of each file.
        divergence: by which files are compared without data; None takes what suits the outputs.
    """
    column, judge = _judge(files, examples, divergence)
    rows: list[dict[str, Any]] = []
    written: dict[int, Path] = {}
    in_torch: dict[int, float] = {}
    x = examples.example()
    for place, file in enumerate(files):
        row: dict[str, Any] = {"Network": file.title, "Precision": file.precision, "Note": ""}
        rows.append(row)
        key = id(file.network)
        in_torch[key] = judge(file.network) if key not in in_torch else in_torch[key]
        batches = examples.batches if file.precision == "int8" else None
        try:
            export_onnx(file.network, file.path, x, precision=file.precision, batches=batches)
        except (RuntimeError, ValueError) as error:  # e.g. weights that float16 does not hold
            row["Note"] = str(error)
            continue
        reached = judge(OnnxNetwork(file.path))
        row |= {column: reached, "Of PyTorch's": reached - in_torch[key], "Size (MB)": file.path.stat().st_size / 1e6}
        written[place] = file.path
    if written:
        paths = [*written.values()]
        times = measure_files(paths, x, baseline=paths[0], rounds=rounds)
        for place, latency in zip(written, times, strict=True):
            speedup = latency.speedup if 0 in written else None
            rows[place] |= {"Latency (ms)": latency.median_s * 1e3, "Speedup": speedup, "Note": latency.note}
        if 0 not in written:
            rows[0]["Note"] += "; so no file has a speedup over it"
    for row in rows:
        row["Note"] = row["Note"] or slower_note(row, rows)
    figures = (column, "Of PyTorch's", "Size (MB)", "Latency (ms)", "Speedup")
    return pd.DataFrame(rows, columns=["Network", "Precision", *figures, "Note"])


def _judge(files: Sequence[DeployedFile], examples: Examples, divergence: Divergence | None) -> tuple[str, Judge]:
    """Return how networks are judged: the name of the column, and the function that measures it."""
    data = examples.data
    if data is not None:
        return data.metric, lambda network: evaluate(network, data.test, data.task)[data.metric]
    inputs = [inputs_of(batch) for batch in examples.batches]
    dense = files[0].network
    wanted = outputs_on(dense, [to_network(batch, dense) for batch in inputs]).cpu()
    compared = divergence or divergence_for(wanted)

    def measure(network: nn.Module) -> float:
        found = outputs_on(network, [to_network(batch, network) for batch in inputs]).cpu()
        return mean_divergence(compared, wanted, found)

    return DIVERGENCE, measure


def slower_note(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Why int8 is slower than float32 on this machine; empty if it is not, or if the times vary too much to tell.

    Args:
        row: a file's ``Network``, ``Precision``, ``Latency (ms)`` and ``Note``.
        rows: the same of all files that took turns with it.
    """
    steady = [other for other in rows if not other["Note"]]
    times = {(other["Network"], other["Precision"]): other.get("Latency (ms)") for other in steady}
    own, whole = row.get("Latency (ms)"), times.get((row["Network"], "float32"))
    if row["Precision"] != "int8" or own is None or whole is None or own <= whole:
        return ""
    why = (
        "the steps between float32 and int8 take longer than the products save"
        if has_int8_products()
        else "this processor has no instruction for products of 8-bit integers (VNNI)"
    )
    return f"slower than float32: {why}; it has {instruction_set()}"
