"""Every table of a report on one run, computed from its log's JSON with plain Python. Nothing of the suite is used.

A row holds the numbers of the CSV file by column. `tests.reporting.recomputed_text` makes of them what a reader sees.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEEP = 0.99
METHODS = ("SVD", "ARSVD", "Tucker-2", "HTD")
BUDGETS = (2, 5, 10, 20, 30, 50, 75)
STAGES = {"Raw": "raw", "Recalibrated": "recalibrated", "Refitted": "refitted", "Fine-tuned": "finetuned"}
NAN = math.nan


def read(log: Path) -> list[Row]:
    """The last version of each trial, by number."""
    lines = [json.loads(line[6:]) for line in log.read_text().splitlines() if line.startswith("TRIAL ")]
    return sorted({line["trial"]: line for line in lines}.values(), key=lambda trial: trial["trial"])


def metric(trial: Row, stage: str) -> float:
    return float(trial["metrics"].get(stage, {}).get(trial["metric"], NAN))


def final(trial: Row) -> float:
    reached = [metric(trial, stage) for stage in STAGES.values() if stage in trial["metrics"]]
    return reached[-1] if reached else NAN


def dense(trial: Row, split: str = "validation") -> float:
    return float(trial["baseline"]["metrics"].get(split, {}).get(trial["metric"], NAN))


def kept(trial: Row, cost: str) -> float:
    return float(trial[cost] / trial["baseline"][cost])


def speedup(trial: Row) -> float:
    return float((trial["latency"] or {}).get("speedup") or NAN)


def accepted(trial: Row) -> bool:
    return trial["status"] == "ok" and final(trial) >= KEEP * dense(trial)


def chosen(trials: Iterable[Row]) -> dict[str, Row]:
    """The best accepted trial by each criterion. Once some were tested, only these count."""
    good = [trial for trial in trials if accepted(trial)]
    good = [trial for trial in good if "test" in trial["metrics"]] or good
    ways: dict[str, Callable[[Row], float]] = {
        "params": lambda trial: -kept(trial, "params"),
        "MACs": lambda trial: -kept(trial, "macs"),
        "speedup": speedup,
    }
    return {name: max(good, key=lambda trial, way=way: (way(trial), final(trial))) for name, way in ways.items()}  # type: ignore[misc]


def wilson(share: float, images: int) -> tuple[float, float]:
    """The 95% interval of a share: the roots of (share - p)^2 = z^2 p (1 - p) / images."""
    z2 = 1.959964**2
    a, b, c = 1 + z2 / images, -(2 * share + z2 / images), share**2
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def of(name: str, values: Iterable[float], images: int = 0) -> Row:
    """The columns of a mean: mean, deviation, number, and the interval if it is one share of images."""
    known = [value for value in values if not math.isnan(value)]
    row = {
        name: statistics.fmean(known) if known else NAN,
        f"{name} std": statistics.stdev(known) if len(known) > 1 else NAN,
        f"{name} n": len(known),
    }
    if images:
        row[f"{name} low"], row[f"{name} high"] = wilson(known[0], images) if len(known) == 1 else (NAN, NAN)
    return row


def images(trial: Row) -> Row:
    counts = trial["baseline"]["images"]
    return {"Validation images": counts["validation"], "Test images": counts["test"]}


def label(trial: Row) -> str:
    return f"{trial['model']} ({trial['dataset']})"


def summary(trials: list[Row]) -> list[Row]:
    best = chosen(trials)
    tested = next(trial for trial in trials if "test" in trial["baseline"]["metrics"])
    whole = tested["baseline"]
    rows: list[tuple[Any, ...]] = [
        ("baseline", None, dense(tested), dense(tested, "test"), whole["params"], whole["macs"])
    ]
    rows += [(f"best {k}", t, final(t), metric(t, "test"), t["params"], t["macs"]) for k, t in best.items()]
    found = []
    for criterion, trial, validation, test, params, macs in rows:
        counts = images(tested)
        low, high = wilson(validation, counts["Validation images"])
        test_low, test_high = wilson(test, counts["Test images"])
        found.append(
            {"Model": label(tested), "Criterion": criterion, "Params Red.": params / whole["params"] - 1}
            | {"MACs Red.": macs / whole["macs"] - 1, "Validation": validation, "Test": test}
            | {"Speedup": speedup(trial) if trial else 1.0, "Parameters": params, "MACs": macs}
            | {"Comp. Rate": whole["params"] / params, "Method": trial["method_title"] if trial else "dense"}
            | {"Trial": trial["trial"] if trial else NAN, "Metric": tested["metric"], **counts, "Runs": 1}
            | {"Validation low": low, "Validation high": high, "Test low": test_low, "Test high": test_high}
            | {"Run": tested["run"]}
        )
    return found


def within(trials: list[Row], cost: str) -> list[tuple[int, dict[str, Row]]]:
    """Budget in percent -> the best network of each method under it; without budgets that add no network."""
    good = [trial for trial in trials if trial["status"] == "ok" and not math.isnan(final(trial))]
    found, below = [], 0.0
    for budget in BUDGETS:
        under = [trial for trial in good if kept(trial, cost) <= budget / 100]
        if any(kept(trial, cost) > below for trial in under):
            named = {name: [trial for trial in under if trial["method_title"] == name] for name in METHODS}
            found.append((budget, {name: max(these, key=final) for name, these in named.items() if these}))
        below = budget / 100
    return found


def untuned(trial: Row, others: Iterable[Row]) -> bool:
    return "finetuned" not in trial["metrics"] and any("finetuned" in other["metrics"] for other in others)


def budgets(trials: list[Row]) -> list[Row]:
    rows = []
    for name in METHODS:
        trial = next(trial for trial in trials if trial["method_title"] == name)
        count = images(trial)["Validation images"]
        row = {"Model": label(trial), "Method": name, "Metric": trial["metric"], "Seeds": 1}
        row |= of("Dense", [dense(trial)], count) | {"Validation images": count}
        row.pop("Dense n")
        for budget, best in within(trials, "params"):
            head = f"≤ {budget}%"
            row |= of(head, [final(best[name])] if name in best else [], count)
            row[f"{head} untuned"] = name in best and untuned(best[name], best.values())
        rows.append(row)
    return rows


def measures(part: list[Row], counts: Row) -> Row:
    """The columns that methods and sweeps share. ``counts`` holds the numbers of images."""
    row = of("Params Red.", [kept(trial, "params") - 1 for trial in part])
    row |= of("MACs Red.", [kept(trial, "macs") - 1 for trial in part])
    regained = []
    for trial in part:
        lost = dense(trial) - metric(trial, "raw")
        regained.append((final(trial) - metric(trial, "raw")) / lost if lost >= 0.01 * dense(trial) else NAN)
    row |= of("Regained", regained) | of("Recovery", [final(trial) / dense(trial) for trial in part])
    row |= of("Speedup", [speedup(trial) for trial in part])
    for head, stage in STAGES.items():
        row |= of(head, [metric(trial, stage) for trial in part], counts["Validation images"])
    row |= of("Test", [metric(trial, "test") for trial in part], counts["Test images"]) | counts
    return row | {"Accepted": sum(map(accepted, part))}


def methods(trials: list[Row]) -> list[Row]:
    return [
        {"Model": label(best[name]), "Budget": f"{what} ≤ {budget}%", "Method": name, "Metric": best[name]["metric"]}
        | measures([best[name]], images(best[name]))
        | {"Seeds": 1, "Of Seeds": 1, "Untuned": untuned(best[name], best.values())}
        for cost, what in (("params", "params"), ("macs", "MACs"))
        for budget, best in within(trials, cost)
        for name in METHODS
        if name in best
    ]


def setting(trial: Row) -> str:
    asked = {k: v for k, v in trial["details"].get("rule_settings", {}).items() if (k, v) != ("exponent", 1)}
    parts = {k: "/".join(f"{n} {x}" for n, x in v.items()) if isinstance(v, dict) else v for k, v in asked.items()}
    return ", ".join(f"{name}={value}" for name, value in parts.items())


def sweeps(trials: list[Row]) -> list[Row]:
    asked = {(t["method_title"], t["rule"], setting(t)) for t in trials if setting(t)}
    ordered = sorted(asked, key=lambda k: (METHODS.index(k[0]), k[1], float(re.findall(r"[\d.]+", k[2])[0])))
    rows = []
    for key in ordered:
        every = [t for t in trials if (t["method_title"], t["rule"], setting(t)) == key]
        part = [t for t in every if t["status"] != "failed"]
        names = dict(zip(("Method", "Rule", "Setting"), key, strict=True))
        row = {"Model": label(every[0]), **names, "Metric": every[0]["metric"], **measures(part, images(every[0]))}
        rows.append(row | {"Trials": len(part), "Of Trials": len(every)})
    return rows


def searches(trials: list[Row]) -> list[Row]:
    def proposer(trial: Row) -> str:
        return str(trial["rule"] if trial["details"]["sampler"] == "given" else trial["details"]["sampler"])

    keys = {(METHODS.index(trial["method_title"]), proposer(trial)) for trial in trials}
    rows = []
    for place, name in sorted(keys):
        part = [t for t in trials if (METHODS.index(t["method_title"]), proposer(t)) == (place, name)]
        good = [trial for trial in part if accepted(trial)]
        count = [trial for trial in good if "test" in trial["metrics"]] or good
        row = {"Model": label(part[0]), "Method": METHODS[place], "Rule or sampler": name, "Seeds": 1}
        row |= {"Trials": len(part), "Accepted": len(good), "Accepted Seeds": f"{int(bool(good))} of 1"}
        row |= {state.capitalize(): sum(t["status"] == state for t in part) for state in ("pruned", "failed")}
        row |= of("Params Red.", [min(kept(t, "params") for t in count) - 1] if count else [])
        row |= of("MACs Red.", [min(kept(t, "macs") for t in count) - 1] if count else [])
        row |= of("Speedup", [max(map(speedup, count))] if count else [])
        seconds = [trial["seconds"] for trial in part]
        rows.append(row | {"Seconds a Trial": statistics.median(seconds), "Hours": sum(seconds) / 3600})
    return rows


def networks(trials: list[Row]) -> list[tuple[str, Row]]:
    """The chosen trials, each once, with the criteria by which it is the best."""
    best = chosen(trials)
    numbers = dict.fromkeys(trial["trial"] for trial in best.values())
    by = {number: [name for name, trial in best.items() if trial["trial"] == number] for number in numbers}
    return [(", ".join(names), next(t for t in trials if t["trial"] == number)) for number, names in by.items()]


def conditions(timing: Row) -> str:
    threads = timing["threads"]
    return f"{timing['runtime']}, {threads} thread{'s' * (threads > 1)}, batch {timing['batch_size']}"


def latency(trials: list[Row]) -> list[Row]:
    return [
        {"Model": label(trial), "Run": trial["run"], "Trial": trial["trial"], "Measured in": conditions(timing)}
        | {"Dense": timing["baseline_median_s"], "Compressed": timing["median_s"], "Compressed IQR": timing["iqr_s"]}
        | {"Speedup": timing["speedup"], "MACs ratio": 1 / kept(trial, "macs")}
        | {"Realised": timing["speedup"] * kept(trial, "macs")}
        for _, trial in networks(trials)
        for timing in trial["details"]["latencies"]
    ]


def layers(trials: list[Row]) -> list[Row]:
    titles = {"svd": "SVD", "tucker2": "Tucker-2", "htd": "HTD", None: "dense"}
    rows = []
    for best, trial in networks(trials):
        for layer, made in trial["plan"].items():
            held = trial["details"]["layers"].get(layer, {})
            rows.append(
                {"Model": label(trial), "Run": trial["run"], "Trial": trial["trial"], "Best": best, "Layer": layer}
                | {"Method": titles[made.get("method")], "Ranks": " ".join(map(str, made.get("ranks", [])))}
                | {"Error": held.get("error", NAN), "Params Red.": held.get("params", NAN) - 1}
                | {"MACs Red.": held.get("macs", NAN) - 1, "Dense because": made.get("dense", "")}
            )
    return rows


def runs(trials: list[Row]) -> list[Row]:
    first, env = trials[0], trials[0]["environment"]
    states = {state.capitalize(): sum(t["status"] == state for t in trials) for state in ("ok", "pruned", "failed")}
    where = f"Python {env['python']}, torch {env['torch']}, {env['processor']}, {env['threads']} threads"
    row = {"Run": first["run"], "Model": label(first), "Trials": len(trials), **states, "Seeds": str(first["seed"])}
    return [row | {"Commit": first["git_commit"], "Environment": where}]


def every_trial(trials: list[Row]) -> list[Row]:
    rows = []
    for trial in trials:
        there = [head for head, stage in STAGES.items() if stage in trial["metrics"]]
        counts, whole = images(trial), trial["status"] != "failed"
        row = {"Model": label(trial), "Run": trial["run"], "Trial": trial["trial"], "Seed": str(trial["seed"])}
        row |= {"Status": trial["status"], "Accepted": "yes" if accepted(trial) else "no"}
        row |= {"Method": trial["method_title"], "Rule": trial["rule"], "Setting": setting(trial)}
        sampler = trial["details"]["sampler"]
        row |= {"Rule or sampler": trial["rule"] if sampler == "given" else sampler, "Metric": trial["metric"]}
        row |= {f"{name} Red.": kept(trial, name.lower()) - 1 if whole else NAN for name in ("Params", "MACs")}
        row |= {"Parameters": trial["params"], "MACs": trial["macs"], "Size (bytes)": trial["size_bytes"]}
        row |= {head: metric(trial, stage) for head, stage in STAGES.items()}
        row["Last stage"] = there[-1].lower() if there else ""
        for name, value in (("Validation", final(trial)), ("Test", metric(trial, "test"))):
            low, high = (NAN, NAN) if math.isnan(value) else wilson(value, counts[f"{name} images"])
            row |= {name: value, f"{name} low": low, f"{name} high": high}
        timing = trial["latency"] or {}
        row |= {"Dense, validation": dense(trial), "Dense, test": dense(trial, "test"), "Speedup": speedup(trial)}
        row |= {"Median (s)": timing.get("median_s", NAN), "IQR (s)": timing.get("iqr_s", NAN), **counts}
        rows.append(row | {"Measured in": conditions(timing) if timing else "", "Seconds": trial["seconds"]})
    return rows


TABLES: dict[str, Callable[[list[Row]], list[Row]]] = {
    **{"summary": summary, "budgets": budgets, "methods": methods, "searches": searches, "sweeps": sweeps},
    **{"latency": latency, "layers": layers, "runs": runs, "trials": every_trial},
}
