"""Records of earlier versions and of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.trials import SCHEMA_VERSION, PlannedLayer, TrialRecord
from tests.records import foreign_record, make_record

FIRST = Path(__file__).with_name("schema1.jsonl")
NAMES = {"svd": ("svd", "SVD"), "htd": ("htd", "HTD")}


@pytest.mark.parametrize("line", FIRST.read_bytes().splitlines(), ids=lambda line: json.loads(line)["rule"])
def test_what_version_1_wrote_is_read_whole(line: bytes) -> None:
    """Lines in the format of version 1 give all their values, and those that version 2 adds."""
    written, record = json.loads(line), TrialRecord.from_line(line)
    again = json.loads(record.to_line())
    added = {name: again.pop(name) for name in ("method_name", "method_title", "schema")}
    assert again | {"schema": 1} == written
    expected = ("arsvd", "ARSVD") if written["rule"] == "entropy" else NAMES[written["method"]]
    assert (added["method_name"], added["method_title"]) == expected
    assert added["schema"] == SCHEMA_VERSION
    assert TrialRecord.from_line(record.to_line().encode()) == record


def test_a_method_that_version_1_did_not_know_goes_by_its_name() -> None:
    values = json.loads(make_record(method="mine").to_line()) | {"schema": 1}
    del values["method_name"], values["method_title"]
    record = TrialRecord.from_dict(values)
    assert (record.method, record.method_name, record.method_title) == ("mine", "mine", "")


def test_unknown_fields_of_a_part_are_kept() -> None:
    details = {"score": 0.5, "added_later": {"a": [1, None]}}
    record = foreign_record(details=details, latency={"median_s": 0.1, "watts": 3.5})
    assert json.loads(record.to_line())["details"] == details
    assert record.latency is not None
    assert record.latency.to_json() == {"median_s": 0.1, "watts": 3.5}
    changed = record.replace(details=record.details.replace(score=0.25))
    assert json.loads(changed.to_line())["details"] == details | {"score": 0.25}


@pytest.mark.parametrize(
    ("details", "left"),
    [
        ({"score": "high", "rung": "full"}, {"rung": "full"}),
        ({"latencies": [{"speedup": 2.0}, 7, {"threads": "x"}]}, {"latencies": [{"speedup": 2.0}, {}]}),
        ({"layer_times": [1, 2]}, {}),
        ({"spectra": {"a": [1.0, None, "x", 0.5]}}, {"spectra": {"a": [1.0, 0.5]}}),
    ],
)
def test_details_that_do_not_fit_are_left_out_and_no_more(details: dict[str, Any], left: dict[str, Any]) -> None:
    record = foreign_record(details=details)
    assert record.details.to_json() == left
    assert record.replace(details={}) == make_record(details={})


def test_a_layer_that_is_no_object_is_dense() -> None:
    plan = foreign_record(plan={"a": "why", "b": {"ranks": 3}, "c": {"method": "svd", "ranks": [3]}}).plan
    assert plan == {"a": PlannedLayer(dense="why"), "b": PlannedLayer(), "c": PlannedLayer(method="svd", ranks=[3])}


@pytest.mark.parametrize("change", [{"latency": {"speedup": "fast"}}, {"baseline": {"params": "many"}}, {"plan": []}])
def test_wrong_values_of_essential_fields_are_refused(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=rf"the field '{name}[\w.]*' holds"):
        foreign_record(**change)
