"""The report of a log from a stranger, in a real browser."""

from __future__ import annotations

from pathlib import Path

from common.reporting.frame import Trials
from common.reporting.html.report import report_page
from common.reporting.tables import all_tables
from common.trials import TrialWriter, read_log
from tests.records import make_record
from tests.reporting.test_report import browse, needs_browser

TRAP = "'\"></td></script><img src=x onerror=\"document.title='trapped'\"><script>document.title='trapped'</script>"


@needs_browser
def test_nothing_that_a_log_says_runs_in_the_report(tmp_path: Path) -> None:
    with TrialWriter(tmp_path, TRAP.replace("/", "|")) as writer:
        for number, status in enumerate(("ok", "ok", "failed")):
            record = make_record(
                run=writer.run,
                trial=number,
                status=status,
                error=TRAP,
                params=1_000_000 + number,
                environment={"processor": TRAP, "command": TRAP, "python": TRAP},
                plan={TRAP: {"method": TRAP, "ranks": [3]}, "b": {"dense": TRAP}},
                details={"study": TRAP, "worker": TRAP, "sampler": TRAP, "rung": TRAP},
                **dict.fromkeys(("model", "dataset", "method", "method_name", "method_title", "rule"), TRAP),
            )
            writer.write(record)
    records, skipped = read_log(writer.path)
    assert (len(records), skipped) == (3, [])
    page = report_page(all_tables(Trials.of(records)), {}, TRAP, TRAP, [f"{writer.path.name}, line 3: {TRAP}"])
    shown, console = browse(page, tmp_path)
    assert console == ""
    assert "<title>trapped" not in shown
    assert "<img" not in shown
    assert shown.count("onerror=") > 5  # as text
    trapped, _ = browse(f"<!DOCTYPE html><title>untouched</title><body>{TRAP}</body>", tmp_path)
    assert "<title>trapped" in trapped  # the trap works where nothing escapes it
