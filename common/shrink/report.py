"""The report of ``python -m common.shrink``: as text, as a picture, and as a page that holds both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from common.calibration.divergence import divergence_title
from common.environment import machine_line
from common.files import replacing
from common.planning import Budget
from common.reporting import figures
from common.reporting.figures.style import render
from common.reporting.html.page import PageTable, Part, page
from common.reporting.intervals import share_interval
from common.reporting.tables.table import percentage, shown, times
from common.shrink.deployment import DIVERGENCE
from common.shrink.loading import Examples
from common.shrink.result import Shrunk

CAPTION = "A shorter bar is a smaller file, or a faster one; a longer bar in the last panel is a better network."
WITHOUT_TARGETS = "A shorter bar is a smaller file, a faster one, or one whose outputs are nearer to the dense ones."


def report_title(network: str, dataset: str, budget: Budget, method: str) -> str:
    """Name the network, the data, the shares to keep and the method."""
    shares = ", ".join(f"{size} {share:.4g}" for size, share in budget.given.items())
    return f"{network} on {dataset}: {shares}, by {method}"


@dataclass(frozen=True)
class Report:
    """What one command made of a network.

    Attributes:
        title: names the network and the data.
        command: the command.
        found: the result of :func:`common.shrink.shrink`.
        files: the table of :func:`common.shrink.deployment.files_table`.
        examples: the data by which the files were judged.
    """

    title: str
    command: str
    found: Shrunk
    files: pd.DataFrame
    examples: Examples

    @property
    def metric(self) -> str:
        """The column that judges the files: the metric of the data, or the divergence."""
        return self.examples.data.metric if self.examples.data else DIVERGENCE

    def lead(self) -> str:
        """Say in one sentence what was gained."""
        before, after = self.found.before, self.found.after
        return (
            f"The small network keeps {after.params / max(1, before.params):.1%} of {before.params:,} parameters and "
            f"{after.macs / max(1, before.macs):.1%} of {before.macs:,} MACs."
        )

    def table(self) -> PageTable:
        """The files as text, one a row."""
        columns = ["File", self.metric, "Size (MB)", "Latency (ms)", "Speedup"]
        rows = [
            [
                f"{row['Network']}, {row['Precision']}",
                shown(row[self.metric], self._judged),
                shown(row["Size (MB)"], "{:.3f}".format),
                shown(row["Latency (ms)"], "{:.3f}".format),
                shown(row["Speedup"], times),
            ]
            for row in self.files.to_dict("records")
        ]
        return PageTable(columns, rows)

    def _judged(self, value: float) -> str:
        """Format a metric with its 95% interval where it has one, or a divergence."""
        if self.examples.data is None:
            return f"{value:.4g}"
        limits = self._interval(value)
        return percentage(value) + (f" ({limits[0]:.2%} to {limits[1]:.2%})" if limits else "")

    def _interval(self, value: float) -> tuple[float, float] | None:
        """The 95% interval of a share of the test images; None of any other value."""
        return share_interval(value, self.examples.data.test_images()) if self.examples.data else None

    def notes(self) -> list[str]:
        """What a reader needs to understand the table."""
        data = self.examples.data
        if data is None:
            judged = (
                "Divergence from the dense network's outputs, on the images that calibrated it: no targets. It is the "
                f"{divergence_title(self.found.measure)}."
            )
        else:
            known = any(self._interval(value) for value in self.files[self.metric])
            interval = ", with its 95% interval (Wilson)" if known else ""
            judged = f"{self.metric.capitalize()} on the {data.test_images():,} images of the test split{interval}."
        timed = (
            f"Latency: the median of one image at a time in ONNX Runtime, all files in turn; {machine_line()}. "
            "Speedup: relative to the first file. That of the first file beside itself shows the noise."
        )
        failed = [f"{row['Network']}, {row['Precision']}: {row['Note']}." for row in self.files.to_dict("records")]
        noted = [line for line, note in zip(failed, self.files["Note"], strict=True) if note]
        return [judged, timed, *noted]

    def picture(self) -> Figure:
        """Size, time and quality of every file."""
        rows = {f"{row['Network']}, {row['Precision']}": row for row in self.files.to_dict("records")}
        scale, unit = (1.0, "") if self.examples.data is None else (100.0, " (%)")
        panels = {
            "Size (MB)": {name: float(row["Size (MB)"]) for name, row in rows.items()},
            "Time of one image (ms)": {name: float(row["Latency (ms)"]) for name, row in rows.items()},
            f"{self.metric.capitalize()}{unit}": {name: scale * float(row[self.metric]) for name, row in rows.items()},
        }
        return figures.bars(panels)

    def summary(self) -> str:
        """The table of the files, for a terminal."""
        table = self.table()
        lines = tabulate(table.rows, table.columns, disable_numparse=True)
        return "\n".join([self.title, self.lead(), "", lines, *self.notes()])

    def text(self) -> str:
        """The whole report for a terminal: the files, the steps, and the ranks of the layers."""
        return "\n\n".join([self.summary(), str(self.found), str(self.found.plan)])

    def html(self) -> str:
        """The whole report as a page."""
        caption = WITHOUT_TARGETS if self.examples.data is None else CAPTION
        parts = [
            Part("Files", self.table(), render(self.picture(), "png"), caption, notes=self.notes()),
            Part("Steps", text=str(self.found)),
            Part("Layers", text=str(self.found.plan)),
            Part("This page", text=self.command),
        ]
        return page(self.title, self.lead(), parts)

    def write(self, folder: Path) -> list[Path]:
        """Write the report as text, as a page and as a picture; return the files.

        Raises:
            OSError: the folder cannot be written.
        """
        contents = {folder / "report.txt": f"{self.text()}\n", folder / "report.html": self.html()}
        for path, content in contents.items():
            with replacing(path) as partial:
                partial.write_text(content, encoding="utf-8")
        return [*contents, *figures.save_figure(self.picture(), folder / "report", ["png"])]
