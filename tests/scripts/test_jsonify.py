from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from common.trials import SCHEMA_VERSION, TRIAL_MARK
from tests.records import make_record
from tests.scripts.running import run, strict, workers, write


def test_jsonify_holds_the_latest_version_of_each_trial(workplace: Path) -> None:
    nan = {"metrics": {"raw": {"accuracy": float("nan")}}}
    write(workplace / "logs", "ünet-網", {"trial": 1}, {"trial": 0, **nan}, {"trial": 1, "seconds": 1.5})
    result = run(workplace, "jsonify_logs.py")
    assert result.returncode == 0, result.stderr
    assert "2 trials, 0 lines skipped" in result.stdout
    document = strict(workplace / "logs" / "ünet-網.json")
    assert (document["schema"], document["run"], document["skipped"]) == (SCHEMA_VERSION, "ünet-網", [])
    assert [(trial["trial"], trial["seconds"]) for trial in document["trials"]] == [(0, 41.7), (1, 1.5)]
    assert document["trials"][0]["metrics"]["raw"]["accuracy"] is None
    latest = dict(document["trials"][1])
    assert datetime.fromisoformat(latest.pop("time")) <= datetime.now()
    assert latest == json.loads(make_record(run="ünet-網", trial=1, seconds=1.5).to_line())


def test_jsonify_says_what_was_torn_and_again_gives_the_same_bytes(workplace: Path) -> None:
    log = write(workplace / "logs", "r", {}, {}, {})
    log.write_bytes(log.read_bytes()[:-300])
    write(workplace / "logs", "r", {"trial": 3})
    with log.open("a") as file:
        file.write(f'{TRIAL_MARK}{{"schema": 1}}\n')
    first = run(workplace, "jsonify_logs.py", "logs/r.log", "--out", "json/deep")
    assert first.returncode == 0
    assert "3 trials, 2 lines skipped" in first.stdout
    assert "r.log, line 6: torn" in first.stdout
    assert "r.log, line 9: the field" in first.stdout
    made = workplace / "json" / "deep" / "r.json"
    document = strict(made)
    assert [trial["trial"] for trial in document["trials"]] == [0, 1, 3]
    assert [entry["lines"] for entry in document["skipped"]] == [[6], [9]]
    assert {entry["count"] for entry in document["skipped"]} == {1}
    before = made.read_bytes()
    assert run(workplace, "jsonify_logs.py", "logs", "--out", "json/deep").returncode == 0
    assert made.read_bytes() == before
    assert [path.name for path in made.parent.iterdir()] == ["r.json"]  # no temporary file stays behind
    assert run(workplace, "jsonify_logs.py", "--out", "json/deep", "--strict").returncode == 1


def test_jsonify_takes_a_log_without_a_trial_and_a_name_that_utf8_cannot_hold(workplace: Path) -> None:
    write(workplace / "logs", "none")
    values = json.loads(make_record(run="odd").to_line()) | {"error": "\ud800"}
    (workplace / "logs" / "odd.log").write_text(f"{TRIAL_MARK}{json.dumps(values)}\n")
    assert run(workplace, "jsonify_logs.py").returncode == 0
    assert strict(workplace / "logs" / "none.json")["trials"] == []
    assert strict(workplace / "logs" / "odd.json")["trials"][0]["error"] == "\ud800"


def test_jsonify_refuses_to_overwrite_one_run_by_another(workplace: Path) -> None:
    write(workplace / "a", "r", {})
    write(workplace / "b", "r", {})
    result = run(workplace, "jsonify_logs.py", "a", "b", "--out", "json")
    assert result.returncode == 2
    assert "would both become" in result.stderr
    assert not (workplace / "json").exists()


def test_ctrl_c_ends_the_conversion_with_a_sentence(workplace: Path) -> None:
    write(workplace / "logs", "run", {})
    code = """
import sys
import jsonify_logs

def stop(*_):
    raise KeyboardInterrupt

jsonify_logs.write_atomically = stop
sys.exit(jsonify_logs.main([]))
"""
    stopped = run(workplace, "-c", code)
    assert (stopped.returncode, stopped.stderr) == (130, "stopped; some files may not have been written\n")


def test_workers_of_a_study_become_one_file(workplace: Path) -> None:
    workers(workplace / "logs", details={"study": "st/udy"})
    shown = run(workplace, "jsonify_logs.py")
    assert shown.returncode == 0, shown.stderr
    assert "2 trials" in shown.stdout
    assert [path.name for path in (workplace / "logs").glob("*.json")] == ["st_udy.json"]
    document = strict(workplace / "logs" / "st_udy.json")
    assert sorted(document["logs"]) == ["s-w2.log", "s.log"]
    assert [(trial["trial"], trial["run"]) for trial in document["trials"]] == [(0, "s-w2"), (1, "s-w2")]
    assert "finetuned" in document["trials"][0]["metrics"]
    assert run(workplace, "analyze_results.py", "--format", "csv").stdout.startswith("2 trials of 1 model")


def test_a_log_without_a_trial_belongs_to_its_study(workplace: Path) -> None:
    workers(workplace / "logs", details={"study": "main"})
    (workplace / "logs" / "main.log").write_text("2026-11-21 10:00:00  begun\n")
    assert run(workplace, "jsonify_logs.py").returncode == 0
    assert strict(workplace / "logs" / "main.json")["logs"] == ["main.log", "s-w2.log", "s.log"]


def test_studies_of_one_name_in_two_folders_become_two_files(workplace: Path) -> None:
    for folder, seed in (("a", 0), ("b", 1)):
        write(workplace / folder, "r", {"details": {"study": "r"}, "seed": seed})
    assert run(workplace, "jsonify_logs.py", "a", "b").returncode == 0
    assert [strict(workplace / f / "r.json")["trials"][0]["seed"] for f in "ab"] == [0, 1]
    assert run(workplace, "analyze_results.py", "a", "b", "--format", "csv").stdout.startswith("2 trials of 1 model")
    assert "would both become" in run(workplace, "jsonify_logs.py", "a", "b", "--out", "json").stderr


def test_workers_that_name_no_study_are_merged_by_name_only_on_request(workplace: Path) -> None:
    workers(workplace / "logs")
    assert run(workplace, "jsonify_logs.py", "--format", "jsonl").returncode == 0
    assert {path.name for path in (workplace / "logs").glob("*.jsonl")} == {"s.jsonl", "s-w2.jsonl"}
    assert run(workplace, "jsonify_logs.py", "--by-name").returncode == 0
    lines = (workplace / "logs" / "s-w2.jsonl").read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [0, 1]
    assert [trial["trial"] for trial in strict(workplace / "logs" / "s.json")["trials"]] == [0, 1]
    for options, number in (((), 3), (("--by-name",), 2)):
        shown = run(workplace, "analyze_results.py", "logs/s.log", "logs/s-w2.log", "--format", "csv", *options)
        assert shown.stdout.startswith(f"{number} trials")


def test_jsonify_needs_little_memory_for_each_trial(workplace: Path) -> None:
    log = write(workplace / "logs", "r", {})
    mark, record = TRIAL_MARK, make_record(run="r", trial=2**62).to_line()
    log.write_text("".join(f"{mark}{record.replace(str(2**62), str(n), 1)}\n" for n in range(20_000)))
    code = """
import resource
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import jsonify_logs
before = peak()
jsonify_logs.main(["logs/r.log"])
print(peak() - before)
"""
    shown = run(workplace, "-c", code)
    assert "20,000 trials" in shown.stdout
    assert log.stat().st_size > 19e6
    assert int(shown.stdout.split()[-1]) * 1024 < 8e6  # 400 bytes for each trial; in the log it has nearly 1000
