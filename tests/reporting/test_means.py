"""Means over seeds and trials: how many of them have a value, and which networks are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.reporting.frame import Trials
from common.reporting.tables.comparisons import budgets_table, methods_table, searches_table, sweeps_table
from tests.records import DENSE_MACS, make_baseline, make_record

RAW = "Raw (validation)"


def seeds_of(outcomes: dict[int, list[float]], **changes: Any) -> list[Any]:
    """Make trials of several seeds that end at these accuracies; that of the dense network is 0.95."""
    return [
        make_record(
            **{
                "run": f"{changes.get('rule', 'energy')}-seed{seed}",
                "trial": number,
                "seed": seed,
                "rule": "energy",
                "details": {"sampler": "given", "rule_settings": {"threshold": 0.9}},
                "metrics": {"raw": {"accuracy": accuracy}},
                "status": "ok" if accuracy else "failed",
                **changes,
            }
        )
        for seed, accuracies in outcomes.items()
        for number, accuracy in enumerate(accuracies)
    ]


def every_form(table: Any, folder: Path) -> dict[str, str]:
    """Return the table in each of its output formats."""
    files = {path.suffix: path.read_text() for path in table.write(folder, ("csv", "md", "tex"))}
    return files | {"console": table.console()}


@pytest.mark.parametrize("good", [0, 1, 2, 3])
def test_a_mean_over_some_of_the_seeds_says_so_in_every_form(good: int, tmp_path: Path) -> None:
    outcomes = {seed: [0.5, 0.95 if seed < good else 0.4] for seed in range(3)}
    table = searches_table(Trials.of(seeds_of(outcomes)), 0.99)
    for form, shown in every_form(table, tmp_path).items():
        said = [n for n in range(4) if f"{n} of 3" in shown]
        assert said == [good], form
    (row,) = table.raw.to_dict("records")
    assert (row["Seeds"], row["Accepted Seeds"], row["Params Red. n"]) == (3, f"{good} of 3", good)
    bracket = f" ({good} of 3)" if good in (1, 2) else ""
    assert table.text["Params Red."].tolist() == [f"-87.15%{' ± 0.00%' * (good > 1)}{bracket}" if good else "-"]
    assert any("Brackets" in note for note in table.notes) == bool(bracket)


def test_a_rule_without_an_accepted_trial_is_listed_beside_the_others() -> None:
    records = seeds_of({0: [0.95], 1: [0.95]}) + seeds_of({0: [0.5], 1: [0.4]}, rule="vbmf")
    records += seeds_of({0: [0.0], 1: [0.0]}, rule="fixed")
    text = searches_table(Trials.of(records), 0.99).text.set_index("Rule or sampler")
    assert text["Accepted Seeds"].to_dict() == {"energy": "2 of 2", "fixed": "0 of 2", "vbmf": "0 of 2"}
    assert text["Params Red."].to_dict() == {"energy": "-87.15% ± 0.00%", "fixed": "-", "vbmf": "-"}


def test_a_speedup_that_few_seeds_have_says_so() -> None:
    records = seeds_of({0: [0.95]}) + seeds_of({1: [0.95], 2: [0.95], 3: [0.95]}, latency=None)
    (row,) = searches_table(Trials.of(records), 0.99).text.to_dict("records")
    assert row["Accepted Seeds"] == "4 of 4"
    assert row["Speedup"] == "1.93x (1 of 4)"
    assert row["Params Red."] == "-87.15% ± 0.00%"


def test_a_budget_met_by_only_some_seeds_says_so(tmp_path: Path) -> None:
    small, large = seeds_of({0: [0.93]}), seeds_of({1: [0.94], 2: [0.94]}, params=5_000_000, macs=DENSE_MACS)
    never = seeds_of({0: [0.95], 1: [0.95]}, method="htd", params=11_000_000, macs=DENSE_MACS)
    trials = Trials.of([*small, *large, *never])
    table = budgets_table(trials)
    text = table.text.set_index("Method")
    assert text.loc["Tucker-2", "≤ 20%"] == "93.00% (1 of 3)"
    assert text.loc["Tucker-2", "≤ 50%"] == "93.67% ± 0.58%"
    assert text[["≤ 20%", "≤ 50%", "Seeds"]].to_dict("index")["HTD"] == {"≤ 20%": "-", "≤ 50%": "-", "Seeds": "2"}
    assert table.raw.set_index("Method").loc["Tucker-2", "≤ 20% n"] == 1
    assert all("(1 of 3)" in shown for form, shown in every_form(table, tmp_path).items() if form != ".csv")
    methods = methods_table(trials, 0.99)
    long = methods.text.set_index("Budget")[["Seeds", "Accepted", RAW]].to_dict("index")
    assert long["params ≤ 20%"] == {"Seeds": "1 of 3", "Accepted": "0 of 3", RAW: "93.00% (1 of 3)"}
    assert long["params ≤ 50%"] == {"Seeds": "3", "Accepted": "0 of 3", RAW: "93.67% ± 0.58%"}
    never_said = "resnet18 (cifar10), HTD: no fully measured trial keeps at most 75% of the parameters or MACs."
    assert never_said in methods.notes


def test_stages_that_only_some_trials_reached_say_so() -> None:
    tuned = {"raw": {"accuracy": 0.8}, "recalibrated": {"accuracy": 0.9}, "finetuned": {"accuracy": 0.94}}
    records = seeds_of({0: [0.8], 1: [0.8]}) + seeds_of({2: [0.8]}, metrics=tuned)
    row, _ = methods_table(Trials.of(records), 0.99).text.to_dict("records")
    assert (row["Budget"], row["Method"]) == ("params ≤ 20%", "Tucker-2*")  # two of its networks were not fine-tuned
    assert (row[RAW], row["Fine-tuned (validation)"]) == ("80.00% ± 0.00%", "94.00% (1 of 3)")
    (row,) = sweeps_table(Trials.of(records), 0.99).text.to_dict("records")
    assert (row[RAW], row["Recalibrated (validation)"], row["Trials"]) == ("80.00% ± 0.00%", "90.00% (1 of 3)", "3")


def test_networks_without_fine_tuning_are_marked_beside_fine_tuned_ones() -> None:
    tuned = make_record(metrics={"raw": {"accuracy": 0.8}, "finetuned": {"accuracy": 0.94}})
    raw = make_record(trial=1, method="htd", metrics={"raw": {"accuracy": 0.9}})
    table = budgets_table(Trials.of([tuned, raw]))
    assert table.text.set_index("Method")["≤ 20%"].to_dict() == {"Tucker-2": "94.00%", "HTD": "90.00%*"}
    assert any(note.startswith("*: not fine-tuned") for note in table.notes)
    alone = budgets_table(Trials.of([raw]))
    assert alone.text["≤ 20%"].tolist() == ["90.00%"]
    assert not any(note.startswith("*") for note in alone.notes)


def test_a_setting_whose_trials_failed_is_listed() -> None:
    records = seeds_of({0: [0.95], 1: [0.0], 2: [0.95]})
    (row,) = sweeps_table(Trials.of(records), 0.99).text.to_dict("records")
    assert (row["Trials"], row["Accepted"], row[RAW]) == ("2 of 3", "2 of 3", "95.00% ± 0.00% (2 of 3)")
    (row,) = sweeps_table(Trials.of(seeds_of({0: [0.0], 1: [0.0]})), 0.99).text.to_dict("records")
    assert (row["Trials"], row["Accepted"], row[RAW]) == ("0 of 2", "0 of 2", "-")


def test_dense_networks_with_equal_metrics_count_separately_in_the_mean() -> None:
    bases = [make_baseline(metrics={"validation": {"accuracy": value}}) for value in (0.90, 0.90, 0.96)]
    records = [r for seed, base in enumerate(bases) for r in seeds_of({seed: [0.8]}, baseline=base)]
    assert budgets_table(Trials.of(records)).raw["Dense"].tolist() == [pytest.approx(0.92)]
    shared = seeds_of({0: [0.8], 1: [0.8]})
    assert budgets_table(Trials.of(shared)).text["Dense (validation)"].tolist() == ["95.00%"]
