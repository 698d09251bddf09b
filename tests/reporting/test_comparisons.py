"""Compare the tables with figures that are computed here from the logs' JSON without the code of the suite."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from common.reporting.frame import Trials
from common.reporting.runs import Log
from common.reporting.tables import all_tables
from common.reporting.tables.comparisons import budgets_table, methods_table, searches_table, sweeps_table
from common.reporting.tables.networks import latencies_table, layers_table, runs_table
from common.reporting.tables.summary import summary_table
from tests.make_logs import NETWORKS, write_logs
from tests.records import foreign_record, make_baseline, make_record

Raw = dict[str, Any]
ODD = {"rule_settings": [1], "latencies": "x"}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_logs(tmp_path_factory.mktemp("logs"), 40, [NETWORKS[0], NETWORKS[3]])


@pytest.fixture(scope="module")
def trials(logs: list[Path]) -> Trials:
    return Trials.read([Log(path) for path in logs])


@pytest.fixture(scope="module")
def raw(logs: list[Path]) -> list[Raw]:
    """The last version of each trial. In these logs, no two workers share a trial."""
    last: dict[tuple[str, int], Raw] = {}
    for path in logs:
        for line in path.read_text().splitlines():
            if line.startswith("TRIAL "):
                values = json.loads(line[6:])
                last[values["run"], values["trial"]] = values
    return list(last.values())


def method(trial: Raw) -> str:
    names = {"svd": "SVD", "tucker2": "Tucker-2", "htd": "HTD"}
    return "ARSVD" if trial["rule"] == "entropy" else names[str(trial["method"])]


def final(trial: Raw) -> float:
    stages = trial["metrics"]
    reached = [stages[name][trial["metric"]] for name in ("raw", "recalibrated", "finetuned") if name in stages]
    return float(reached[-1]) if reached else math.nan


def kept(trial: Raw) -> float:
    return float(trial["params"] / trial["baseline"]["params"])


def accepted(trial: Raw) -> bool:
    dense = trial["baseline"]["metrics"]["validation"][trial["metric"]]
    return trial["status"] == "ok" and final(trial) >= 0.99 * dense


def name(trial: Raw) -> str:
    return f"{trial['model']} ({trial['dataset']})"


def spread(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def same(found: float, expected: float) -> bool:
    return (math.isnan(found) and math.isnan(expected)) or math.isclose(found, expected, rel_tol=1e-9)


def test_the_summary(trials: Trials, raw: list[Raw]) -> None:
    frame = summary_table(trials).set_index(["Model", "Criterion"])
    for model in {name(trial) for trial in raw}:
        chosen = [trial for trial in raw if name(trial) == model and accepted(trial) and "test" in trial["metrics"]]
        for row, value in (
            ("best params", min(trial["params"] / trial["baseline"]["params"] for trial in chosen)),
            ("best MACs", min(trial["macs"] / trial["baseline"]["macs"] for trial in chosen)),
        ):
            column = "Params Red." if row == "best params" else "MACs Red."
            assert same(frame.loc[(model, row), column], 1 - value)  # type: ignore[arg-type]
        fastest = max(trial["latency"]["speedup"] for trial in chosen)
        assert same(frame.loc[(model, "best speedup"), "Speedup"], fastest)  # type: ignore[arg-type]
        (dense,) = {trial["baseline"]["params"] for trial in chosen}
        assert frame.loc[(model, "baseline"), "Parameters"] == dense


def test_methods_at_equal_budgets(trials: Trials, raw: list[Raw]) -> None:
    table = methods_table(trials, 0.99)
    assert {"SVD", "ARSVD", "Tucker-2", "HTD"} == set(table.raw["Method"])
    assert table.raw["Seeds"].max() == 2
    compared = 0
    for row in table.raw.to_dict("records"):
        what, share = row["Budget"].split()[0], float(row["Budget"].split()[-1].rstrip("%")) / 100
        within = [
            trial
            for trial in raw
            if trial["status"] == "ok"
            and (name(trial), method(trial)) == (row["Model"], row["Method"])
            and (kept(trial) if what == "params" else trial["macs"] / trial["baseline"]["macs"]) <= share
        ]
        best = [
            max((t for t in within if t["seed"] == seed), key=final) for seed in sorted({t["seed"] for t in within})
        ]
        metric = best[0]["metric"]
        dense = best[0]["baseline"]["metrics"]["validation"][metric]
        columns: dict[str, list[float]] = {
            "Params Red.": [1 - kept(trial) for trial in best],
            "MACs Red.": [1 - trial["macs"] / trial["baseline"]["macs"] for trial in best],
            "Raw": [trial["metrics"]["raw"][metric] for trial in best],
            "Recalibrated": [trial["metrics"]["recalibrated"][metric] for trial in best],
            "Regained": [
                (final(trial) - lost) / (dense - lost)
                for trial in best
                if dense - (lost := trial["metrics"]["raw"][metric]) >= 0.01 * dense
            ],
            "Recovery": [final(trial) / dense for trial in best],
            "Test": [trial["metrics"]["test"][metric] for trial in best if "test" in trial["metrics"]],
            "Speedup": [trial["latency"]["speedup"] for trial in best],
        }
        for column, values in columns.items():
            mean, std = spread(values) if values else (math.nan, math.nan)
            assert same(row[column], mean), column
            assert same(row[f"{column} std"], std), column
            compared += 1
        assert row["Accepted"] == sum(map(accepted, best))
        assert row["Metric"] == ("dice" if row["Model"].startswith("unet") else "accuracy")
    assert compared > 400


def test_the_budgets_table_agrees_with_the_methods_table(trials: Trials) -> None:
    table, wide = methods_table(trials, 0.99).raw, budgets_table(trials)
    for row in wide.raw.to_dict("records"):
        rows = table[(table["Model"] == row["Model"]) & (table["Method"] == row["Method"])]
        for long in rows.to_dict("records"):
            if long["Budget"].startswith("params"):
                assert same(row[long["Budget"].removeprefix("params ")] / row["Dense"], long["Recovery"])
    assert "± " in "".join(wide.text.to_numpy().ravel())


def test_the_sweeps(trials: Trials, raw: list[Raw]) -> None:
    table = sweeps_table(trials, 0.99)
    settings = table.raw[(table.raw["Model"] == "resnet18 (cifar10)") & (table.raw["Method"] == "ARSVD")]["Setting"]
    assert list(settings) == [f"tau={0.15 + 0.1 * step:.2f}" for step in range(8)]  # by number, not by letter
    for row in table.raw.to_dict("records"):
        key, _, value = row["Setting"].partition("=")
        wanted = {"params": float(value.split()[1])} if key == "budget" else float(value)
        part = [
            trial
            for trial in raw
            if (name(trial), method(trial), trial["rule"]) == (row["Model"], row["Method"], row["Rule"])
            and trial["details"]["rule_settings"].get(key) == wanted
            and trial["status"] != "failed"
        ]
        assert row["Trials"] == len(part)
        assert same(row["Params Red."], spread([1 - kept(trial) for trial in part])[0])
        assert same(row["Raw std"], spread([trial["metrics"]["raw"][trial["metric"]] for trial in part])[1])
        assert row["Accepted"] == sum(map(accepted, part))


def study(trial: Raw) -> Any:
    return trial["details"].get("study") or trial["run"]


def proposer(trial: Raw) -> Any:
    """The sampler, or the rule of a plan that was given to the search."""
    sampler = trial["details"]["sampler"]
    return trial["rule"] if sampler == "given" else sampler


def test_rules_and_samplers(trials: Trials, raw: list[Raw]) -> None:
    table = searches_table(trials, 0.99).raw
    assert table["Trials"].sum() == len(raw) == len(trials.frame)
    assert list(table["Rule or sampler"].head(4)) == ["adaptive", "budget", "fixed", "tpe"]
    for row in table.to_dict("records"):
        part = [
            trial
            for trial in raw
            if (name(trial), method(trial)) == (row["Model"], row["Method"])
            and proposer(trial) == row["Rule or sampler"]
        ]
        for status in ("pruned", "failed"):
            assert row[status.capitalize()] == sum(trial["status"] == status for trial in part)
        good = [trial for trial in part if accepted(trial)]
        assert row["Accepted"] == len(good)
        searched = {study(t) for t in good if "test" in t["metrics"]}
        best = [t for t in good if "test" in t["metrics"] or study(t) not in searched]
        by_seed = [min(kept(t) for t in best if t["seed"] == seed) for seed in {t["seed"] for t in best}]
        mean, std = spread([1 - value for value in by_seed]) if good else (math.nan, math.nan)
        assert same(row["Params Red."], mean)
        assert same(row["Params Red. std"], std)
        assert same(row["Seconds a Trial"], statistics.median(trial["seconds"] for trial in part))
        assert same(row["Hours"], sum(trial["seconds"] for trial in part) / 3600)


def test_layers_and_latency_of_the_chosen(trials: Trials, raw: list[Raw]) -> None:
    layers = layers_table(trials, 0.99).raw
    by_trial = {(trial["run"], trial["trial"]): trial for trial in raw}
    assert set(zip(layers["Run"], layers["Trial"], strict=True)) <= set(by_trial)
    for (run, number), part in layers.groupby(["Run", "Trial"]):
        trial = by_trial[str(run), int(str(number))]
        plan, figures = trial["plan"], trial["details"]["layers"]
        assert list(part["Layer"]) == list(plan)
        for row in part.to_dict("records"):
            made = plan[row["Layer"]]
            assert row["Ranks"] == " ".join(map(str, made.get("ranks", [])))
            assert row["Dense because"] == made.get("dense", "")
            found = figures.get(row["Layer"], {})
            assert same(row["Error"], found.get("error", math.nan))
            assert same(row["Params Red."], 1 - found.get("params", math.nan))
            assert same(row["MACs Red."], 1 - found.get("macs", math.nan))
    assert any("its factors would have" in text for text in layers["Dense because"])
    latency = latencies_table(trials, 0.99).raw
    assert set(latency["Measured in"]) == {
        "PyTorch eager, 2 threads, batch 1",
        "ONNX Runtime, 2 threads, batch 1",
    }
    for row in latency.to_dict("records"):
        trial = by_trial[row["Run"], row["Trial"]]
        ratio = trial["baseline"]["macs"] / trial["macs"]
        timing = trial["details"]["latencies"][row["Measured in"].startswith("ONNX")]
        assert same(row["Realised"], timing["speedup"] / ratio)


def test_a_time_that_was_too_noisy_is_shown_with_its_reason() -> None:
    noisy = {"runtime": "ONNX Runtime", "median_s": 0.001, "iqr_s": 0.001, "speedup": None, "note": "too noisy"}
    record = make_record(run="one", trial=3, details={"latencies": [make_record().latency, noisy]})
    table = latencies_table(Trials.of([record]), 0.5)
    assert table.raw["Speedup"].isna().tolist() == [False, True]
    assert table.text["Speedup"].tolist()[1] == "-"
    assert table.notes[-1] == "one, trial 3, ONNX Runtime: too noisy."


def test_the_runs_lead_to_their_logs(trials: Trials, logs: list[Path], tmp_path: Path) -> None:
    table = runs_table(trials, tmp_path)
    assert sorted((tmp_path / link).resolve() for link in table.links) == sorted(logs)
    assert table.raw["Trials"].sum() == len(trials.frame)
    assert set(table.raw["Environment"]) == {"Python 3.11.7, torch 2.13.0, Generated, 2 threads"}


def test_workers_are_one_study(trials: Trials) -> None:
    study = trials.frame[trials.frame["study"] == "unet-htd-seed0"]
    assert sorted(study["trial"]) == list(range(20))
    assert set(study["run"]) == {"unet-htd-seed0", "unet-htd-seed0-w2"}


def test_what_was_regained_by_hand() -> None:
    stages = {"raw": {"accuracy": 0.75}, "recalibrated": {"accuracy": 0.85}, "finetuned": {"accuracy": 0.94}}
    hardly = {
        "raw": {"accuracy": 0.949},
        "finetuned": {"accuracy": 0.9},
    }  # lost too little to regain
    records = [make_record(metrics=stages), make_record(trial=1, method="htd", metrics=hardly)]
    table = methods_table(Trials.of(records), 0.99)
    small = table.raw["Budget"] == "params ≤ 20%"
    rows = {row["Method"]: row for row in table.raw[small].to_dict("records")}
    assert rows["Tucker-2"]["Regained"] == pytest.approx((0.94 - 0.75) / (0.95 - 0.75))
    assert math.isnan(rows["HTD"]["Regained"])
    text = table.text[small].set_index("Method")
    assert text.loc["Tucker-2", "Regained"] == "95%"
    assert text.loc["HTD", "Regained"] == "-"


def test_seeds_with_different_dense_networks_are_averaged() -> None:
    other = make_baseline(metrics={"validation": {"accuracy": 0.90}})
    records = [
        make_record(seed=0, metrics={"raw": {"accuracy": 0.93}}),
        make_record(run="two", seed=1, baseline=other, metrics={"raw": {"accuracy": 0.89}}),
    ]
    (row,) = methods_table(Trials.of(records), 0.99).raw.query("Budget == 'params ≤ 20%'").to_dict("records")
    assert (row["Raw"], row["Seeds"]) == (pytest.approx(0.91), 2)
    assert row["Raw std"] == pytest.approx(0.04 / math.sqrt(2))
    assert row["Recovery"] == pytest.approx((0.93 / 0.95 + 0.89 / 0.90) / 2)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [make_record()],
        [make_record(trial=n, status="failed", metrics={}, latency=None, params=0, macs=0) for n in range(3)],
        [make_record(model="never heard of 網", dataset="?", metric="score", metrics={"raw": {"score": 3.5}})],
        [make_record(metrics={"raw": {"accuracy": float("nan")}}), make_record(trial=1, seconds=float("nan"))],
        [make_record(baseline={}, latency=None, plan={})],
        [foreign_record(plan={"a": {"method": "svd"}, "b": {}, "c": "why"}, details=ODD)],
        [foreign_record(git_commit=["a", "b"])],
        [make_record(baseline=make_baseline(params=1e299, macs=2.5))],
    ],
    ids=["none", "one", "failed", "unknown", "nan", "bare", "odd", "commit", "huge"],
)
def test_odd_trials_fill_tables_or_leave_them_out(records: list[Any]) -> None:
    for table in all_tables(Trials.of(records)):
        assert len(table.text) == len(table.raw) > 0
        assert not table.text.isna().to_numpy().any()
        assert "nan" not in " ".join(table.text.to_numpy().ravel())
        assert isinstance(table.raw, pd.DataFrame)
