"""The rows of `tests.reporting.recomputed` as a reader sees them, with headings. Nothing of the suite is used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.reporting.recomputed import NAN, STAGES, Row


def texts(name: str, rows: list[Row]) -> list[list[str]]:
    """The table as a reader sees it, with its headings first."""
    shapes, heads = _shapes(name, rows), []
    first = next(
        row for row in rows if "Validation images" in row or name in ("searches", "latency", "layers", "runs")
    )
    for column in shapes:
        head = column
        if column in {"Validation", "Test", "Dense", *STAGES} and "Validation images" in first:
            split = "test" if column == "Test" else "validation"
            count = f"n={first[f'{split.capitalize()} images']}"
            own = name in ("summary", "trials")  # the column has the metric's name there
            head = rows[0]["Metric"].capitalize() if own else column
            head += f" ({count})" if head == "Test" else f" ({split}, {count})"
            head += " [95%]" if any(not math.isnan(row.get(f"{column} low", NAN)) for row in rows) else ""
        heads.append(head + (f" ({_unit(rows, column)[0]})" if column in ("Parameters", "MACs") else ""))
    return [heads, *([_text(row, column, shape) for column, shape in shapes.items()] for row in rows)]


def _text(row: Row, column: str, shape: Callable[[Any], str]) -> str:
    value = row.get(column, NAN)
    if isinstance(value, float) and math.isnan(value):
        return "-"
    total: Any = row.get("Of Seeds", row.get("Of Trials", NAN))
    if (column == "Accepted" and total >= 0) or (column == "Trials" and value < total):
        return f"{value} of {total}"
    shown, low, std = shape(value), row.get(f"{column} low", NAN), row.get(f"{column} std", NAN)
    if not math.isnan(std):
        shown += f" ± {shape(std).lstrip('-+')}"
    elif not math.isnan(low):
        shown += f" [{100 * low:.1f}, {100 * row[f'{column} high']:.1f}]"
    if f"{column} n" in row and row[f"{column} n"] < row.get("Of Trials", 1):
        shown += f" ({row[f'{column} n']} of {row['Of Trials']})"
    return shown + "*" * bool(row.get("Untuned" if column == "Method" else f"{column} untuned", False))


def _unit(rows: list[Row], column: str) -> tuple[str, float]:
    """The largest unit in which no count of the column is below 0.1."""
    return next((unit, size) for unit, size in (("G", 1e9), ("M", 1e6)) if min(r[column] for r in rows) >= size / 10)


def _change(value: float) -> str:
    return f"{value:+.2%}" if round(value, 4) else "0.00%"


def _in_unit(value: float, size: float) -> str:
    return f"{value / size:,.2f}"


def _milliseconds(value: float) -> str:
    return f"{1000 * value:#.3g} ms"


def _shapes(name: str, rows: list[Row]) -> dict[str, Callable[[Any], str]]:
    """Column -> how its values are shown, in the order of the table."""
    share, ratio = "{:.2%}".format, "{:.2f}x".format
    red: dict[str, Callable[[Any], str]] = {"Params Red.": _change, "MACs Red.": _change}
    stages = {**dict.fromkeys((*STAGES, "Test"), share), "Regained": "{:.0%}".format, "Recovery": share}

    def counts() -> dict[str, Callable[[Any], str]]:
        sizes = {column: _unit(rows, column)[1] for column in ("Parameters", "MACs")}
        return {column: partial(_in_unit, size=size) for column, size in sizes.items()}

    def plain(*names: str) -> dict[str, Callable[[Any], str]]:
        return dict.fromkeys(names, str)

    budgeted = [head for head in rows[0] if re.fullmatch(r"≤ \d+%", head)]
    found: dict[str, dict[str, Callable[[Any], str]]] = {
        "summary": plain("Model", "Criterion")
        | red
        | {
            "Validation": share,
            "Test": share,
            "Speedup": ratio,
            **(counts() if name == "summary" else {}),
            "Comp. Rate": ratio,
        }
        | plain("Method", "Trial"),
        "budgets": plain("Model", "Method", "Metric") | dict.fromkeys(["Dense", *budgeted], share) | {"Seeds": str},
        "methods": plain("Model", "Budget", "Method", "Metric")
        | red
        | stages
        | {"Speedup": ratio}
        | plain("Accepted", "Seeds"),
        "sweeps": plain("Model", "Method", "Rule", "Setting", "Metric")
        | red
        | stages
        | {"Speedup": ratio}
        | plain("Accepted", "Trials"),
        "searches": plain("Model", "Method", "Rule or sampler", "Seeds", "Trials", "Pruned", "Failed", "Accepted")
        | {"Accepted Seeds": str, **red, "Speedup": ratio, "Seconds a Trial": "{:.1f}".format}
        | {"Hours": "{:.2f}".format},
        "latency": plain("Model", "Run", "Trial", "Measured in")
        | dict.fromkeys(("Dense", "Compressed", "Compressed IQR"), _milliseconds)
        | {"Speedup": ratio, "MACs ratio": ratio, "Realised": share},
        "layers": plain("Model", "Run", "Trial", "Best", "Layer", "Method", "Ranks")
        | {"Error": share, **red, "Dense because": str},
        "runs": plain("Run", "Model", "Trials", "Ok", "Pruned", "Failed", "Seeds", "Commit", "Environment"),
        "trials": plain("Trial", "Status", "Accepted", "Method", "Rule", "Setting")
        | red
        | {"Validation": share, "Test": share, "Last stage": str, "Speedup": ratio, "Seconds": "{:.1f}".format},
    }
    return found[name]
