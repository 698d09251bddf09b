from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from common.reporting.facts import (
    COLORS_APART,
    PLACES,
    conditions,
    macs_ratio,
    method_name,
    method_order,
    method_places,
    method_title,
    setting_text,
    timings,
)
from common.reporting.frame import Trials, is_accepted
from common.reporting.runs import Log
from common.trials import Timing, TrialRecord, TrialWriter, read_log, study_of
from common.trials.best import choose_best
from common.trials.best import is_accepted as record_is_accepted
from tests.records import foreign_record, make_baseline, make_record


def labels(records: list[TrialRecord], by: str = "label") -> dict[str, list[int]]:
    return {label: rows["trial"].tolist() for label, rows in Trials.of(records).blocks(by)}


def test_a_row_by_hand() -> None:
    record = make_record(trial=7, details={"rule_settings": {"tau": 0.5, "exponent": 1}, "sampler": "TPE"}, seed=3)
    (row,) = Trials.of([record]).frame.to_dict("records")
    expected = {
        "run": "resnet18-cifar10",
        "study": "resnet18-cifar10",
        "trial": 7,
        "method": "tucker2",
        "rule": "budget",
        "setting": "tau=0.5",
        "sampler": "TPE",
        "metric": "accuracy",
        "runtime": "onnxruntime, 1 thread, batch 1",
        "raw": 0.8123,
        "recalibrated": 0.9312,
        "finetuned": 0.9471,
        "final": 0.9471,
        "dense": 0.95,
        "speedup": 1.93,
        "seed": 3.0,
        "seconds": 41.7,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["params_kept"] == pytest.approx(1_437_022 / 11_181_642)
    assert row["macs_kept"] == pytest.approx(87_512_064 / 555_422_720)
    assert row["size_kept"] == pytest.approx(5_791_244 / 44_780_042)
    assert row["metric_kept"] == pytest.approx(0.9471 / 0.95)


def test_blocks_by_model_and_dataset() -> None:
    kinds = [("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")]
    records = [make_record(model=m, dataset=d, trial=n) for n, (m, d) in enumerate(kinds)]
    assert labels(records) == {"a (x)": [0, 3], "b (x)": [1], "a (y)": [2]}


def test_different_dense_networks_stand_apart_but_seeds_are_averaged() -> None:
    other = make_baseline(metrics={"validation": {"accuracy": 0.90}})
    two = [make_record(run="one"), make_record(run="two", trial=1, baseline=other)]
    apart = {"resnet18 (cifar10), run one": [0], "resnet18 (cifar10), run two": [1]}
    assert labels(two) == labels(two, "group") == apart
    seeds = [make_record(run="one", seed=1), make_record(run="two", trial=1, baseline=other, seed=2)]
    assert labels(seeds) == apart
    assert labels(seeds, "group") == {"resnet18 (cifar10)": [0, 1]}
    metric = {"metric": "dice", "metrics": {"raw": {"dice": 0.9}}, "seed": 2}
    for change in ({"baseline": make_baseline(params=10**6)}, {"baseline": make_baseline(macs=10**6)}, metric):
        records = [seeds[0], make_record(run="two", trial=1, **{"seed": 2, **change})]
        assert labels(records, "group") == apart  # networks that differ in more than the seed are not averaged
    workers = [make_record(run=run, trial=n, details={"study": "s"}) for n, run in enumerate(("s", "s-w2"))]
    assert labels([*workers, two[1]])["resnet18 (cifar10), run s"] == [0, 1]


def random_records(chance: random.Random) -> list[TrialRecord]:
    """Make records with few distinct values, so that there are ties. Some runs are finished, others not."""

    def stages() -> dict[str, dict[str, Any]]:
        found = {"raw": {"accuracy": chance.choice([0.5, 0.94, 0.945, 0.95, None])}}
        return found | ({"test": {"accuracy": 0.9}} if chance.random() < 0.2 else {})

    return [
        make_record(
            run=chance.choice("ab"),
            trial=number,
            status=chance.choice(["ok", "ok", "ok", "pruned", "failed"]),
            metrics=stages(),
            params=chance.choice([1, 2, 3]) * 10**6,
            macs=chance.choice([1, 2, 3]) * 10**7,
            latency=chance.choice([None, {"speedup": chance.choice([1.0, 2.0, float("nan")])}]),
        )
        for number in range(chance.randrange(12))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_best_are_those_that_a_search_would_choose(seed: int) -> None:
    records = random_records(random.Random(seed))
    trials = Trials.of(records)
    for keep in (0.0, 0.99):
        assert trials.best(trials.frame, keep) == choose_best(records, keep)
        accepted = trials.frame.index[is_accepted(trials.frame, keep)].tolist()
        assert accepted == [place for place, record in enumerate(records) if record_is_accepted(record, keep)]


def test_whole_records_are_read_again_from_the_log(tmp_path: Path) -> None:
    with TrialWriter(tmp_path, "ünet") as writer:
        for number in (3, 1, 2):
            writer.write(make_record(run="ünet", trial=number, model="網"))
        writer.write(make_record(run="ünet", trial=1, model="網", seconds=5.0))
    trials = Trials.read([Log(writer.path)])
    assert [trials.record(row) for row in (1, 2, 0)] == read_log(writer.path)[0]
    assert trials.frame["seconds"].tolist() == [41.7, 5.0, 41.7]
    assert not trials._held  # no whole record stays in memory
    writer.path.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="has changed since it was read"):
        trials.record(0)


def test_a_run_of_the_same_name_in_another_folder_is_kept_apart(tmp_path: Path) -> None:
    paths = []
    for folder, accuracy in (("a", 0.95), ("b", 0.94)):
        with TrialWriter(tmp_path / folder, "r") as writer:
            writer.write(make_record(run="r", baseline=make_baseline(metrics={"validation": {"accuracy": accuracy}})))
        paths.append(writer.path)
    trials = Trials.read([Log(path) for path in paths])
    assert trials.frame["run"].tolist() == ["r", f"r ({tmp_path / 'b'})"]
    assert trials.record(1).run == f"r ({tmp_path / 'b'})"
    assert len(dict(trials.blocks())) == 2


def test_studies_of_one_name_are_told_apart_by_folder_when_their_networks_differ(tmp_path: Path) -> None:
    """The two workers in ``b`` are one study. The worker in the third folder belongs to the study with its network."""
    paths: list[Path] = []
    for folder, run, dense in (("a", "s", 0.96), ("b", "s", 0.8), ("b", "s-w2", 0.8), ("c", "s-w3", 0.96)):
        baseline = make_baseline(metrics={"validation": {"accuracy": dense}})
        stages = {"raw": {"accuracy": dense}} | ({"test": {"accuracy": 0.9}} if folder == "a" else {})
        record = make_record(run=run, trial=len(paths), details={"study": "s"}, metrics=stages, baseline=baseline)
        with TrialWriter(tmp_path / folder, run) as writer:
            writer.write(record)
        paths.append(writer.path)
    trials = Trials.read([Log(path) for path in paths])
    other = f"s ({tmp_path / 'b'})"
    assert trials.frame["study"].tolist() == ["s", other, other, "s"]
    assert [study_of(trials.record(row)) for row in range(4)] == ["s", other, other, "s"]
    blocks = {label: rows["trial"].tolist() for label, rows in trials.blocks()}
    assert blocks == {"resnet18 (cifar10), run s": [0, 3], f"resnet18 (cifar10), run {other}": [1, 2]}
    assert set(trials.best(trials.frame[trials.frame["study"] == other], 0.99)) == {"params", "macs", "speedup"}


def test_only_and_since() -> None:
    trials = Trials.of([make_record(trial=0), make_record(trial=1, method="svd", rule="entropy")])
    assert trials.only(method=["arsvd"], model=None).frame["trial"].tolist() == [1]
    assert trials.since(1).frame.empty  # the time of their lines is unknown


def test_facts() -> None:
    own = make_record(method="zeta", method_name="my_zeta", method_title="My ζ")
    assert (method_name(own), method_title(own)) == ("my_zeta", "My ζ")
    assert method_name(own.replace(method_name="")) == "zeta"
    assert method_title(own.replace(method_title="")) == "my_zeta"
    assert method_order({"zeta", "htd", "alpha", "svd"}) == ["svd", "htd", "alpha", "zeta"]
    assert setting_text(make_record(details={"rule_settings": {"budget": {"params": 0.5, "macs": None}}})) == (
        "budget=params 0.5"
    )
    assert setting_text(make_record(details={"rule_settings": {"tau": 0.5, "exponent": 2}})) == "tau=0.5, exponent=2"
    usual = {"tau": 0, "exponent": 1, "round_to": 1, "measured": False}
    assert setting_text(make_record(details={"rule_settings": usual})) == "tau=0"
    assert setting_text(foreign_record(details={"rule_settings": 3})) == ""
    noisy = {"speedup": None, "note": "too noisy"}
    several = [{"speedup": 2.0, "runtime": "a"}, noisy, {"speedup": None}, 7, {"speedup": float("inf")}]
    found = timings(foreign_record(details={"latencies": several}))
    assert [timing.to_json() for timing in found] == several[:2]
    record = make_record(macs=50, baseline=make_baseline(macs=200))
    assert [macs_ratio(record, timing) for timing in (Timing(), Timing(macs_ratio=5.0))] == [4.0, 5.0]
    assert timings(make_record(latency=None)) == []
    assert timings(make_record())[0].speedup == 1.93
    timing = Timing(runtime="eager", threads=2, batch_size=8, memory_format="channels_last")
    assert conditions(timing) == "eager, 2 threads, batch 8, channels_last"
    assert conditions(Timing()) == "unknown runtime"


def test_places_of_methods() -> None:
    """Each method has its own place. An unknown method never takes the place of a known one."""
    known = method_places(PLACES)
    assert known == PLACES
    assert sorted(PLACES.values()) == list(range(len(PLACES)))
    alone = method_places(["mine"])["mine"]
    assert len(PLACES) <= alone < COLORS_APART
    assert method_places([*reversed(PLACES), "mine"]) == known | {"mine": alone}
    many = method_places([*PLACES, *(f"m{n}" for n in range(20))])
    assert len(set(many.values())) == len(many)
    assert many == method_places(reversed(many))
