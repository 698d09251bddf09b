from __future__ import annotations

import pytest

from common.trials import TrialLines, trial_line
from tests.records import make_record


def test_every_trial_has_one_line_below_the_headings(capsys: pytest.CaptureFixture[str]) -> None:
    lines = TrialLines()
    tuned = make_record(trial=3)
    lines(tuned)
    lines(make_record(trial=14, status="pruned", metrics={}, latency=None))
    what, headings, first, second = capsys.readouterr().out.splitlines()
    assert what.startswith("accuracy: on validation in the stages raw, recalibrated, refitted, finetuned")
    for heading, value in (
        ("trial", "3"),
        ("state", "ok"),
        ("params", "-87.1%"),
        ("tuned", "94.71%"),
        ("speedup", "1.93x"),
    ):
        end = headings.index(heading) + len(heading)
        assert value in (first[:end].split()[-1], first[headings.index(heading) :].split()[0])
    assert len(headings) == len(first) == len(second) <= 110
    assert second.split()[:2] == ["14", "pruned"]


def test_the_line_says_what_a_rule_was_asked_for() -> None:
    def plan(**settings: object) -> str:
        details = {"sampler": "given", "rule_settings": settings}
        return trial_line(
            make_record(method="svd", method_name="arsvd", method_title="ARSVD", rule="entropy", details=details)
        )

    assert "ARSVD, tau=0.341 " in plan(tau=0.34082, exponent=1)
    assert "ARSVD, tau=0.5 exp=2 " in plan(tau=0.5, exponent=2)
    assert "ARSVD, params=0.2 " in plan(params=0.2, macs=None, round_to=1, measured=False)
    assert "HTD, adaptive " in trial_line(make_record(method="htd", method_name="htd", rule="adaptive policy"))


def test_a_failed_trial_says_why_in_its_line() -> None:
    line = trial_line(make_record(trial=3, status="failed", error="no memory"))
    assert line.split()[:2] == ["3", "failed"]
    assert line.endswith(": no memory")
