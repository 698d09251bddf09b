from __future__ import annotations

import math

import pandas as pd
import pytest
from torch import nn

from common.compression import compress
from common.network import profile
from common.notebook.lessons import equal_sizes, memory_table, plans_table, readable, shown_trial
from common.planning import Entropy, Fixed, plan_ranks
from common.trials import TrialRecord
from tests.networks import tiny_cnn, tiny_digits
from tests.records import make_record


def test_the_table_of_plans_states_what_the_networks_have() -> None:
    data, model = tiny_digits(), tiny_cnn(width=32)
    x = data.example()
    plans = [plan_ranks(model, x, "svd", Fixed(4)), plan_ranks(model, x, "arsvd", Entropy(0.4, 2))]
    table = plans_table(model, data, plans)
    for plan, row in zip(plans, table.rows, strict=True):
        dense, small = profile(model, x), profile(compress(model, plan), x)
        assert row[2] == f"{len(plan.factored)} of {len(plan.layers)}"
        assert row[4] == f"{small.params / dense.params - 1:+.1%}"
        assert row[6] == f"{small.macs / dense.macs - 1:+.1%}"
    assert [row[:2] for row in table.rows] == [["SVD", "fixed (ranks=4)"], ["ARSVD", "entropy (tau=0.4, exponent=2)"]]
    assert not plans_table(model, data, []).rows


def trial(number: int, params: int, accuracy: float, name: str = "svd", **details: object) -> TrialRecord:
    return make_record(
        trial=number,
        params=params,
        method=name,
        method_name=name,
        method_title=name.upper(),
        metrics={"raw": {"accuracy": 0.1}, "recalibrated": {"accuracy": accuracy}, "test": {"accuracy": 0.75}},
        baseline={"params": 1000, "macs": 10**9, "images": {"validation": 500, "test": 400}},
        details={"sampler": "given", **details},
    )


def test_the_lesson_holds_one_row_a_method_within_the_budget() -> None:
    records = [
        trial(0, 100, 0.5),  # smaller than the budget allows
        trial(1, 200, 0.6),
        trial(2, 201, 0.9),  # too large
        trial(3, 199, 0.7, "arsvd", rule_settings={"tau": 0.34082, "exponent": 1}),
        trial(4, 198, 0.8, "arsvd", rule_settings={"tau": 0.6, "exponent": 2}),
        trial(5, 150, 0.95, "htd", sampler="adaptive"),
        trial(6, 190, 0.94, "htd", sampler="adaptive"),
        trial(7, 120, math.nan, "htd", sampler="adaptive"),
    ]
    table = equal_sizes(records, 0.2)
    named = {row[0]: row for row in table.rows}
    assert [row[1] for row in table.rows] == ["1", "3 (tau=0.341)", "4 (tau=0.6)", "5"]
    assert list(named) == ["SVD", "ARSVD", "ARSVD, exponent 2", "HTD, searched"]
    assert named["SVD"][2] == "200 (-80.0%)"
    assert named["SVD"][4:8] == ["10.00%", "60.00%", "-", "-"]
    assert named["SVD"][8].startswith("75.00% [70.")  # Wilson's interval for 300 of 400 is 70.5 to 79.0
    assert "at most 20% of the parameters" in table.title
    assert "500 images of validation" in table.notes[0]
    assert table.total[:3] == ["dense", "", "1.00 K"]


def test_without_a_budget_nothing_is_compared() -> None:
    assert str(equal_sizes([trial(0, 100, 0.5)], None)).endswith("compare_at is None")
    assert not equal_sizes([trial(0, 900, 0.5)], 0.2).rows


def test_memory_is_that_of_the_weights() -> None:
    dense = nn.Sequential(tiny_cnn(width=32))
    data = tiny_digits()
    small = compress(dense, plan_ranks(dense, data.example(), "svd", Fixed(2)))
    table = memory_table({"dense": dense, 3: small}, data)
    assert [row[0] for row in table.rows] == ["dense", "trial 3"]
    for network, row in zip((dense, small), table.rows, strict=True):
        convolutions = sum(m.weight.numel() + (0 if m.bias is None else m.bias.numel()) for m in convs(network))
        assert row[1].startswith(f"{4 * convolutions / 1e6:.1f} MB")


def convs(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d) and not list(m.children())]


def test_tables_are_readable() -> None:
    frame = pd.DataFrame(
        {
            "Layer": ["a", "b"],
            "Parameters": [11_181_642, 100],
            "Params Red.": [0.5, math.nan],
            "accuracy": [0.98765, 0.5],
            "Note": ["", ""],
        }
    )
    table = readable(frame, "Layers")
    assert list(table.headings) == ["Layer", "Parameters", "Params Red.", "accuracy"]
    assert table.rows == [["a", "11.18 M", "-50.0%", "98.77%"], ["b", "100", "-", "50.00%"]]
    assert str(readable(frame.iloc[:0], "Files")) == "Files: nothing was asked for"


def test_the_trial_to_show() -> None:
    records = [trial(0, 100, 0.5), trial(1, 200, 0.6)]
    assert shown_trial(records, {"params": records[0]}) is records[0]
    assert shown_trial(records, {}) is records[1]
    with pytest.raises(ValueError, match="no trial was measured"):
        shown_trial([make_record(status="failed", error="x")], {})


def test_the_dense_networks_test_comes_from_a_trial_that_was_tested() -> None:
    untested = trial(1, 100, 0.9, "htd", sampler="adaptive")
    untested = untested.replace(metrics={"recalibrated": {"accuracy": 0.9}})
    tested = trial(0, 200, 0.6)
    dense = {"validation": {"accuracy": 0.95}, "test": {"accuracy": 0.875}}
    tested = tested.replace(baseline=tested.baseline.replace(metrics=dense))
    untested = untested.replace(
        baseline=untested.baseline.replace(metrics={"validation": {"accuracy": 0.95}}, images={})
    )
    table = equal_sizes([untested, tested], 0.2)
    assert table.total[8].startswith("87.50% [")
    assert "400 images of test" in table.notes[0]
    assert equal_sizes([untested], 0.2).total[8] == "-"
