from __future__ import annotations

from pathlib import Path

import pytest

from common.reporting.frame import Trials
from common.reporting.runs import NAMED_LINES, NAMED_REASONS, SkippedLines, find_logs, opened_logs
from common.reporting.workers import Versions
from common.trials import TRIAL_MARK, Skipped, TrialWriter
from tests.records import make_record


def write(folder: Path, run: str, trials: int) -> Path:
    with TrialWriter(folder, run) as writer:
        for number in range(trials):
            writer.write(make_record(run=run, trial=number))
    return writer.path


def read(*paths: Path) -> tuple[Trials, list[str]]:
    logs = opened_logs(find_logs(paths, (".log", ".json")))
    trials = Trials.read(logs)
    return trials, [line for log in logs for line in log.sentences()]


def test_a_log_wins_over_its_json(tmp_path: Path) -> None:
    log = write(tmp_path, "v1.2", 2)
    stale = tmp_path / "v1.2.json"
    stale.write_text("{}")
    for paths in ([tmp_path], [stale], [log, stale], [tmp_path, log]):
        assert find_logs(paths, (".log", ".json")) == [log]


def test_json_is_read_where_there_is_no_log(tmp_path: Path) -> None:
    good, old = make_record(trial=1).to_line(), '{"schema": 7}'
    again = '{"time": "2026-11-20 15:48:53", ' + make_record(trial=1, seconds=1.0).to_line()[1:]
    skipped = '{"log": "a.log", "lines": [9], "count": 3, "reason": "torn"}'
    (tmp_path / "a.json").write_text(f'{{"schema": 1, "trials": [{good}, {old}, {again}], "skipped": [{skipped}]}}')
    trials, sentences = read(tmp_path)
    assert trials.frame[["trial", "seconds", "time"]].to_numpy().tolist() == [[1, 1.0, 20261120154853]]
    assert sentences[0] == "a.log, line 9 and 2 more: torn"
    assert "trials[1]" in sentences[1]
    assert "schema version 7" in sentences[1]


@pytest.mark.parametrize("text", ["[]", "{", '{"trials": 3}', "null", "\xff", "[" * 100_000])
def test_a_foreign_json_is_named_and_skipped(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    trials, sentences = read(tmp_path)
    assert trials.frame.empty
    assert sentences == ["x.json: not a file of trials made by jsonify_logs.py"]


def test_logs_of_workers_win_over_their_json(tmp_path: Path) -> None:
    logs = [tmp_path / f"s-w{number}.log" for number in (1, 2)]
    for log in logs:
        log.write_text("")
    made = tmp_path / "s.json"
    made.write_text('{"schema": 1, "run": "s", "logs": ["s-w1.log", "s-w2.log"], "skipped": [], "trials": [\n\n]}\n')
    assert find_logs([tmp_path], (".log", ".json")) == logs
    logs[1].unlink()
    assert find_logs([tmp_path], (".log", ".json")) == [logs[0], made]


def test_leaving_out_a_json_in_another_folder_warns(tmp_path: Path) -> None:
    here, there = tmp_path / "a" / "r.json", tmp_path / "b" / "r.log"
    for file in (here, there):
        file.parent.mkdir()
        file.write_text("")
    with pytest.warns(UserWarning, match=r"r\.json is left out in favour of .*r\.log, a log of the same name$"):
        assert find_logs([here.parent, there.parent], (".log", ".json")) == [there]


def test_find_logs_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_logs([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.log file"):
        find_logs([tmp_path])
    (tmp_path / "a.txt").write_text(TRIAL_MARK)
    with pytest.raises(ValueError, match=r"a\.txt"):
        find_logs([tmp_path / "a.txt"])


def test_skipped_lines_are_counted_and_only_the_first_are_kept() -> None:
    skipped = SkippedLines()
    for line in range(1, 1001):
        skipped.append(Skipped(Path("r.log"), line, "torn"))
    assert (len(skipped), skipped.total) == (NAMED_LINES, 1000)
    assert skipped.by_reason() == [{"log": "r.log", "lines": [1, 2, 3, 4, 5], "count": 1000, "reason": "torn"}]
    for line in range(1000):
        skipped.append(Skipped(Path("r.log"), line, f"reason {line}"))
    assert len(skipped.counts) == NAMED_REASONS + 1  # the other reasons are counted together
    assert skipped.total == 2000
    assert skipped.by_reason()[-1]["reason"] == "other reasons"


HOME, OTHER = Path("a.log"), Path("b.log")
RAW, TUNED = {"raw": {"accuracy": 0.8}}, {"raw": {"accuracy": 0.8}, "finetuned": {"accuracy": 0.9}}
STUDY = {"study": "s"}


def test_within_a_run_the_later_record_wins() -> None:
    versions = Versions()
    assert versions.place(make_record(trial=5, metrics=TUNED), HOME) == 0
    assert versions.place(make_record(trial=2), HOME) == 1
    assert versions.place(make_record(trial=5, metrics=RAW), HOME) == 0


def test_runs_of_one_name_in_two_files_are_two_runs() -> None:
    versions = Versions()
    assert [versions.place(make_record(), path) for path in (HOME, OTHER, HOME)] == [0, 1, 0]


def test_studies_of_one_name_in_two_folders_are_two() -> None:
    versions = Versions()
    one, other = make_record(run="s", details=STUDY, seed=0), make_record(run="s", details=STUDY, seed=1)
    assert [versions.place(one, HOME), versions.place(other, OTHER)] == [0, 1]
    assert versions.place(make_record(run="s-w2", details=STUDY, seed=1), Path("w.log")) == 1
    same = Versions()
    assert [same.place(one, path) for path in (HOME, OTHER)] == [0, 1]


@pytest.mark.parametrize("tuned_first", [True, False])
def test_the_version_of_a_trial_with_the_later_stage_wins(tuned_first: bool) -> None:
    versions = Versions()
    first = make_record(run="s", details=STUDY, metrics=TUNED if tuned_first else RAW)
    second = make_record(run="s-w2", details=STUDY, metrics=RAW if tuned_first else TUNED)
    assert versions.place(first, HOME) == 0
    assert versions.place(second, OTHER) == (None if tuned_first else 0)
    assert versions.place(make_record(run="s-w2", trial=1, details=STUDY), OTHER) == 1


def test_workers_with_separate_numbering_lose_no_trial() -> None:
    versions = Versions()
    other = {"conv1": {"method": "svd", "ranks": [3]}}
    assert versions.place(make_record(run="s", details=STUDY), HOME) == 0
    assert versions.place(make_record(run="s-w2", details=STUDY, plan=other), OTHER) == 1
    assert versions.place(make_record(run="s-w2", details=STUDY, plan=other), OTHER) == 1


def test_workers_are_recognised_by_name_only_on_request() -> None:
    records = [(make_record(run="s"), HOME), (make_record(run="s-w2"), OTHER)]
    assert [Versions().place(*pair) for pair in records] == [0, 0]  # each its own
    alone, together = Versions(), Versions(by_name=True)
    assert [alone.place(*pair) for pair in records] == [0, 1]
    assert [together.place(*pair) for pair in records] == [0, 0]


def test_a_json_of_several_logs_adds_only_the_trials_whose_log_is_missing(tmp_path: Path) -> None:
    main, worker = write(tmp_path, "s", 3), write(tmp_path, "s-w2", 2)
    lines = [make_record(run=run, trial=n).to_line() for run, count in (("s", 3), ("s-w2", 2)) for n in range(count)]
    opening = '{"schema": 1, "run": "s", "logs": ["s.log", "s-w2.log"], "skipped": [], "trials": ['
    (tmp_path / "s.json").write_text(f"{opening}\n{','.join(lines)}\n]}}\n")
    assert len(read(tmp_path)[0].frame) == 5
    worker.unlink()
    trials, _ = read(tmp_path)
    assert trials.frame.groupby("run").size().to_dict() == {"s": 3, "s-w2": 2}
    main.unlink()
    assert len(read(tmp_path)[0].frame) == 5


def test_a_log_of_one_name_in_another_folder_takes_no_trial_from_a_json(tmp_path: Path) -> None:
    other = write(tmp_path / "x", "a", 2)
    lines = [make_record(run=run, trial=n).to_line() for run in ("a", "a-w2") for n in range(3)]
    made = tmp_path / "y" / "a.json"
    made.parent.mkdir()
    opening = '{"schema": 1, "run": "a", "logs": ["a.log", "a-w2.log"], "skipped": [], "trials": ['
    made.write_text(f"{opening}\n{','.join(lines)}\n]}}\n")
    with pytest.warns(UserWarning, match="its trials count twice: name only one"):
        assert len(read(other, made)[0].frame) == 8


def test_a_json_in_another_folder_that_repeats_a_log_warns(tmp_path: Path) -> None:
    log = write(tmp_path / "logs", "s", 2)
    made = tmp_path / "json" / "s.json"
    made.parent.mkdir()
    opening = '{"schema": 1, "run": "s", "logs": ["s.log", "s-w2.log"], "skipped": [], "trials": ['
    made.write_text(f"{opening}\n{make_record(run='s', trial=0).to_line()}\n]}}\n")
    with pytest.warns(UserWarning, match=r"json/s\.json was made from a log of the name of .*logs/s\.log"):
        opened_logs([log, made])


@pytest.mark.parametrize("name", ["sub/a.log", "", ".", "..", "a\\u0000.log"])
def test_a_json_that_names_no_log_is_read_all_the_same(tmp_path: Path, name: str) -> None:
    opening = f'{{"schema": 1, "run": "a", "logs": ["{name}"], "skipped": [], "trials": ['
    (tmp_path / "a.json").write_text(f"{opening}\n{make_record(run='a', trial=0).to_line()}\n]}}\n")
    assert len(read(tmp_path)[0].frame) == 1
