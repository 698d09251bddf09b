"""The report of a log from a stranger, in a real browser."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser

from common.reporting.frame import Trials
from common.reporting.html.report import report_page
from common.reporting.tables import all_tables
from common.trials import TrialWriter, read_log
from tests.records import make_record
from tests.reporting.test_report import browser as browser
from tests.reporting.test_report import needs_browser, visit

TRAP = "'\"></td></script><img src=x onerror=\"document.title='trapped'\"><script>document.title='trapped'</script>"


@needs_browser
def test_nothing_that_a_log_says_runs_in_the_report(browser: Browser, tmp_path: Path) -> None:
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
    trials = Trials.of(records)
    skipped_line = f"{writer.path.name}, line 3: {TRAP}"
    content = report_page(trials, 0.99, all_tables(trials), {}, TRAP, TRAP, [skipped_line])
    (tmp_path / "page.html").write_text(content)
    said: list[str] = []
    page = visit(browser, tmp_path / "page.html", said)
    page.locator("#plot-pareto .points path").first.wait_for()
    for trial in range(3):  # each shows its plan
        page.locator(f"#trial-{trial}").click()
        assert TRAP in page.locator("#plan").inner_text()
    assert page.title() != "trapped"
    assert page.locator("img").count() == 0
    assert page.locator("[onerror]").count() == 0
    page.close()
    assert said == []
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><title>untouched</title><body>{TRAP}</body>")
    page = visit(browser, tmp_path / "page.html", said)
    assert page.title() == "trapped"  # the trap works where nothing escapes it
    page.close()
