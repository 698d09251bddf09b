from __future__ import annotations

import math

import pandas as pd
import pytest

from common.reporting.frame import Trials
from common.reporting.intervals import share_interval
from common.reporting.tables import format_summary, summary_table
from common.reporting.tables.summary import COLUMNS, summary, summary_notes
from common.reporting.tables.table import count_unit, in_unit, milliseconds
from tests.records import DENSE_MACS, DENSE_PARAMS, make_baseline, make_record

SMALL = make_record(trial=4)
FAST = make_record(trial=7, params=3_000_000, macs=60_000_000, latency={"speedup": 2.5}, method="htd")


EMPTY = {"Validation": "Accuracy (validation)", "Test": "Accuracy (test)"}
SEEN = {**EMPTY, "Parameters": "Parameters (M)", "MACs": "MACs (M)"}


def rows(frame: pd.DataFrame) -> dict[str, pd.Series]:
    return {row["Criterion"]: row for _, row in frame.iterrows()}


def test_raw_numbers() -> None:
    frame = summary_table([SMALL, FAST])
    assert list(frame["Criterion"]) == ["baseline", "best params", "best MACs", "best speedup"]
    assert list(frame["Trial"])[1:] == [4, 7, 7]
    assert set(frame["Model"]) == {"resnet18 (cifar10)"}
    dense, small, fast = (rows(frame)[name] for name in ("baseline", "best params", "best MACs"))
    assert (dense["Parameters"], dense["MACs"]) == (DENSE_PARAMS, DENSE_MACS)
    assert (dense["Params Red."], dense["MACs Red."], dense["Speedup"], dense["Comp. Rate"]) == (0, 0, 1, 1)
    assert (dense["Validation"], dense["Metric"]) == (0.95, "accuracy")
    assert math.isnan(dense["Test"])
    assert small["Params Red."] == pytest.approx((11_181_642 - 1_437_022) / 11_181_642)
    assert small["MACs Red."] == pytest.approx((555_422_720 - 87_512_064) / 555_422_720)
    assert small["Comp. Rate"] == pytest.approx(11_181_642 / 1_437_022)
    assert (small["Speedup"], small["Validation"]) == (1.93, 0.9471)
    assert (fast["Parameters"], fast["Method"]) == (3_000_000, "HTD")


def test_formatted_row_by_hand() -> None:
    text = format_summary(summary_table([SMALL]))
    assert list(text.columns) == [SEEN.get(name, name) for name in COLUMNS]
    assert rows(text)["best params"].to_list() == [
        "resnet18 (cifar10)",
        "best params",
        "-87.15%",
        "-84.24%",
        "94.71%",
        "-",
        "1.93x",
        "1.44",
        "87.51",
        "7.78x",
        "Tucker-2",
        "4",
    ]
    assert rows(text)["baseline"].to_list()[2:] == [
        "0.00%",
        "0.00%",
        "95.00%",
        "-",
        "1.00x",
        "11.18",
        "555.42",
        "1.00x",
        "dense",
        "-",
    ]


def test_both_splits_are_shown_with_their_images_and_the_interval_on_test() -> None:
    metrics = {"validation": {"accuracy": 0.95}, "test": {"accuracy": 0.943}}
    baseline = make_baseline(metrics=metrics, images={"validation": 500, "test": 1000})
    tested = make_record(trial=1, baseline=baseline, metrics={**SMALL.metrics, "test": {"accuracy": 0.94}})
    unfinished = FAST.replace(run="another-run")
    frame = summary_table([unfinished, tested])  # only the second record's baseline holds a test metric
    assert rows(frame)["baseline"][["Validation", "Test"]].to_list() == [0.95, 0.943]
    text = rows(format_summary(frame))
    validation, test = "Accuracy (validation, n=500) [95%]", "Accuracy (test, n=1000) [95%]"
    assert text["baseline"][[validation, test]].to_list() == ["95.00% [92.7, 96.6]", "94.30% [92.7, 95.6]"]
    assert text["best params"][[validation, test]].to_list() == ["94.71%", "94.00% [92.4, 95.3]"]
    assert text["best speedup"][[validation, test]].to_list() == ["94.71%", "-"]


@pytest.mark.parametrize(
    ("value", "images", "limits"),
    [(0.5, 10, (0.2366, 0.7634)), (1.0, 20, (0.8389, 1.0)), (0.0, 20, (0.0, 0.1611)), (0.94, 1000, (0.9235, 0.9531))],
)
def test_the_interval_of_a_share_is_wilsons(value: float, images: int, limits: tuple[float, float]) -> None:
    assert share_interval(value, images) == pytest.approx(limits, abs=1e-4)  # as statsmodels' proportion_confint


def test_a_mean_over_images_or_an_unknown_number_of_them_has_no_interval() -> None:
    assert share_interval(0.8123, 100) is None
    assert share_interval(0.5, math.nan) is None
    assert share_interval(math.nan, 10) is None


def test_the_test_metric_never_chooses() -> None:
    tempting = make_record(trial=1, params=1000, metrics={"raw": {"accuracy": 0.1}, "test": {"accuracy": 0.99}})
    assert list(summary_table([SMALL, tempting])["Trial"])[1:] == [4, 4, 4]


def test_the_metric_heads_its_column_or_each_value_names_its_own() -> None:
    baseline = make_baseline(metrics={"validation": {"dice": 0.9}})
    unet = make_record(metric="dice", metrics={"raw": {"dice": 0.899}}, baseline=baseline, model="unet")
    assert list(format_summary(summary_table([unet]))["Dice (validation)"])[:2] == ["90.00%", "89.90%"]
    both = format_summary(summary_table([unet, SMALL]))["Metric (validation)"]
    assert list(both)[:2] == ["90.00% dice", "89.90% dice"]
    assert list(both)[4:6] == ["95.00% accuracy", "94.71% accuracy"]


def test_no_accepted_trial_leaves_the_baseline_and_a_note() -> None:
    weak = make_record(trial=3, metrics={"raw": {"accuracy": 0.76}})
    assert list(summary_table([weak])["Criterion"]) == ["baseline"]
    (note,) = summary_notes([weak])
    assert "resnet18 (cifar10): no accepted trial" in note
    assert "none of 1 kept 99% of the dense accuracy" in note
    assert "trial 3, kept 80.00%" in note
    assert summary_notes([weak], keep=0.8) == []


def test_only_failed_trials() -> None:
    failed = [make_record(trial=n, status="failed", metrics={}, latency=None, error="no") for n in range(3)]
    frame = summary_table(failed)
    assert list(frame["Criterion"]) == ["baseline"]
    assert "none was measured" in summary_notes(failed)[0]


def test_what_was_not_measured_is_missing() -> None:
    frame = summary_table([make_record(latency=None)])
    assert list(frame["Criterion"]) == ["baseline", "best params", "best MACs"]
    assert math.isnan(rows(frame)["best params"]["Speedup"])
    assert rows(format_summary(frame))["best params"]["Speedup"] == "-"
    assert "latency" in summary_notes([make_record(latency=None)])[0]
    empty = format_summary(summary_table([make_record(baseline={})]))
    assert list(empty["Parameters"]) == ["-"]


def test_a_network_that_grew_has_a_plus() -> None:
    grown = make_record(params=2 * DENSE_PARAMS)
    assert rows(format_summary(summary_table([grown])))["best params"]["Params Red."] == "+100.00%"


def test_no_record_gives_an_empty_table() -> None:
    frame = summary_table([])
    assert frame.empty
    assert list(format_summary(frame).columns) == [EMPTY.get(name, name) for name in COLUMNS]


@pytest.mark.parametrize("keep", [-0.1, 1.01, float("nan")])
def test_keep_is_checked(keep: float) -> None:
    with pytest.raises(ValueError, match=r"keep=.*\[0, 1\]"):
        summary_table([SMALL], keep)


@pytest.mark.parametrize(
    ("values", "unit", "texts"),
    [
        ((1_437_022, 138_357_544), "M", ("1.44", "138.36")),
        ((310_000_000, 1_500_000_000), "G", ("0.31", "1.50")),
        ((61_706, 99_999_999), "K", ("61.71", "100,000.00")),
        ((12, 1_234_567), "", ("12", "1,234,567")),
        ((0, 2_000), "K", ("0.00", "2.00")),
        ((), "", ()),
    ],
)
def test_a_column_of_counts_has_one_unit(values: tuple[int, ...], unit: str, texts: tuple[str, ...]) -> None:
    found, size = count_unit(values)
    assert (found, tuple(in_unit(value, size) for value in values)) == (unit, texts)


def test_runs_of_one_dense_network_share_a_block_whatever_its_latency() -> None:
    slower = make_baseline(latency={"median_s": 0.04, "iqr_s": 0.001})
    frame = summary_table([make_record(run="one"), make_record(run="two", baseline=slower, params=1000)])
    assert len(frame) == 4
    assert list(format_summary(frame)["Trial"])[1:] == ["0 of two", "0 of one", "0 of one"]


def test_runs_of_different_dense_networks_stand_apart() -> None:
    other = make_baseline(metrics={"validation": {"accuracy": 0.90}})
    frame = summary_table([make_record(run="one"), make_record(run="two", baseline=other)])
    assert list(dict.fromkeys(frame["Model"])) == ["resnet18 (cifar10), run one", "resnet18 (cifar10), run two"]
    assert list(frame[frame["Criterion"] == "baseline"]["Validation"]) == [0.95, 0.90]


def test_at_zero_every_measured_trial_is_accepted() -> None:
    weak = make_record(trial=3, metrics={"raw": {"accuracy": 0.1}})
    nothing = make_record(trial=4, params=10, metrics={"raw": {"accuracy": float("inf")}})
    assert list(summary_table([weak, nothing], 0.0)["Trial"])[1:] == [3, 3, 3]
    table = summary(Trials.of([weak, nothing]), 0.0)
    assert "Every measured trial is accepted." in table.notes


def test_a_narrow_terminal_omits_columns_and_names_them() -> None:
    table = summary(Trials.of([SMALL]), 0.99)
    assert "too narrow" not in table.console()
    narrow = table.console(120)
    assert max(map(len, narrow.splitlines())) <= 120
    assert (
        narrow.splitlines()[-1]
        == "(too narrow for: Comp. Rate, Parameters (M), MACs (M), Method, Accuracy (validation))"
    )
    assert "Parameters" not in narrow.splitlines()[0]


def test_a_repeated_first_cell_is_blank_on_the_console_and_whole_in_files() -> None:
    table = summary(Trials.of([SMALL]), 0.99)
    assert table.console().count("resnet18 (cifar10)") == 1
    assert table.markdown().count("resnet18 (cifar10)") == 4


def test_numbers_stand_on_the_right() -> None:
    other = make_record(model="unet", params=20)
    table = summary(Trials.of([SMALL, other]), 0.99)
    lines = table.console().splitlines()
    heads = lines[0].index("Params Red.") + len("Params Red.")
    assert lines[2][:heads].endswith(" 0.00%")
    assert lines[3][:heads].endswith("-87.15%")
    assert r"\begin{tabular}{llrrrrrrrrll}" in table.latex()
    rows = table.latex().splitlines()
    assert [rows[n + 1].split("&")[0].strip() for n, line in enumerate(rows) if line == r"\addlinespace"] == [
        "unet (cifar10)"
    ]


def test_a_missing_latency_of_tested_networks_is_noted() -> None:
    tested = {**SMALL.metrics, "test": {"accuracy": 0.94}}
    records = [SMALL, make_record(trial=5, metrics=tested, latency=None)]
    assert list(summary_table(records)["Trial"])[1:] == [5, 5]
    (note,) = summary_notes(records)
    assert note.endswith("no speedup; the latency of the accepted trials that were tested was not measured.")


def test_a_smaller_accepted_trial_that_was_not_tested_is_named() -> None:
    tested = make_record(trial=5, metrics={**SMALL.metrics, "test": {"accuracy": 0.94}})
    smaller = make_record(trial=6, params=SMALL.params // 2)
    assert summary_notes([tested]) == []
    (note,) = summary_notes([tested, smaller])
    assert "trial 6 (-93.57% parameters) was accepted but not tested" in note


def test_the_conditions_of_speedups_are_stated() -> None:
    eager = {"speedup": 1.5, "runtime": "PyTorch eager", "threads": 2, "batch_size": 1}
    one = [SMALL, make_record(run="u", model="unet")]
    assert "Speedup: onnxruntime, 1 thread, batch 1." in summary(Trials.of(one), 0.99).notes
    two = [SMALL, make_record(run="u", model="unet", latency=eager)]
    (note,) = [note for note in summary(Trials.of(two), 0.99).notes if note.startswith("Speedup")]
    assert note.endswith("onnxruntime, 1 thread, batch 1; PyTorch eager, 2 threads, batch 1.")
    assert not [n for n in summary(Trials.of([make_record(latency=None)]), 0.99).notes if n.startswith("Speedup")]


def test_a_name_of_two_lines_stays_in_its_row() -> None:
    table = summary(Trials.of([make_record(model="a\nb")]), 0.99)
    rows = len(table.text)
    assert table.latex().count("a b (cifar10)") == 1
    assert len(table.markdown().split("\n- ")[0].strip().splitlines()) == rows + 4  # heading, blank, names, rule
    assert all(line.startswith("%") for line in table.latex().partition("\\begin")[0].splitlines())


def test_milliseconds_have_three_digits() -> None:
    shown = [milliseconds(value) for value in (0.0029, 0.00066, 0.0157, 0.0994, 0.09999, 1.5)]
    assert shown == ["2.90 ms", "0.660 ms", "15.7 ms", "99.4 ms", "100 ms", "1,500 ms"]


def test_latex_takes_a_caption_and_a_label() -> None:
    table = summary(Trials.of([SMALL]), 0.99)
    text = table.latex(r"{title} of \emph{ours}", "tab:{name}")
    assert table.latex() not in text
    heads = [r"\begin{table}", r"\centering", r"\caption{Summary of \emph{ours}}", r"\label{tab:summary}"]
    assert [line for line in text.splitlines() if not line.startswith("%")][:4] == heads
    assert text.endswith("\\end{tabular}\n\\end{table}\n")
    assert r"\begin{table}" not in table.latex()


def test_latex_escapes_names_and_has_booktabs_rules() -> None:
    table = summary(Trials.of([make_record(model="a_b & 50%")]), 0.99)
    text = table.latex()
    assert r"a\_b \& 50\%" in text
    assert r"\toprule" in text
    assert r"\bottomrule" in text
    assert r"$-$87.15\%" in text


def test_the_summary_says_whether_the_difference_on_test_may_be_chance() -> None:
    details = {"test_difference": {"value": -0.002, "low": -0.005, "high": 0.001, "images": 10_000}}
    other = {"test_difference": {"value": -0.02, "low": -0.03, "high": -0.01, "images": 10_000}}
    records = [make_record(details=details), make_record(trial=1, params=900_000, macs=100_000_000, details=other)]
    (note,) = (note for note in summary(Trials.of(records), 0.9).notes if "bootstrap" in note)
    assert "trial 0 -0.20 points, -0.50 to +0.10: no difference" in note
    assert "trial 1 -2.00 points, -3.00 to -1.00: worse" in note
    assert not [note for note in summary(Trials.of([make_record()]), 0.9).notes if "bootstrap" in note]


def test_the_summary_compares_what_was_finetuned_with_the_dense_network_after_the_same() -> None:
    details = {"test_difference": {"value": 0.01, "low": 0.005, "high": 0.015, "images": 10_000}}
    tuned = {"tuned_difference": {"value": -0.001, "low": -0.004, "high": 0.002, "images": 10_000}}
    metrics = {"recalibrated": {"accuracy": 0.98}, "finetuned": {"accuracy": 0.99}}
    for given, told in (
        (details, "trial 0 +1.00 points, +0.50 to +1.50: better (fine-tuned, dense not)"),
        (details | tuned, ": better (dense fine-tuned as well: -0.10 points, -0.40 to +0.20: no difference)"),
    ):
        (note,) = (
            note
            for note in summary(Trials.of([make_record(details=given, metrics=metrics)]), 0.9).notes
            if "bootstrap" in note
        )
        assert told in note
