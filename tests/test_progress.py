from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from tqdm import tqdm
from tqdm.notebook import tqdm_notebook

from common import progress
from common.progress import Lines, say, track


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "due", 0.0)
    monkeypatch.setattr(Lines, "pause", 2 * progress.FIRST_LINE_S)


def test_in_batch_there_are_fewer_and_fewer_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for name in ("timing", "timing again"):  # 500 seconds each
        bar = track(range(500), name, unit="batch")
        assert isinstance(bar, Lines)
        bar.start_t = bar.last_print_t = now[0]
        monkeypatch.setattr(bar, "_time", lambda: now[0])
        for _ in bar:
            now[0] += 1.0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out
    assert all("of 500 batches, " in line for line in lines)
    done = [int(line.partition(": ")[2].split()[0]) + 500 * line.startswith("timing again") for line in lines]
    assert done == [10, 30, 70, 150, 310, 630]
    assert "\r" not in err


def test_what_is_short_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(5), "short")) == list(range(5))
    assert capsys.readouterr() == ("", "")


def test_other_processes_of_a_training_stay_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert track(range(5), "hidden").disable


def kernel(monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=watched))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_a_notebook_has_a_bar_only_while_a_person_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(progress, "notebook_bar", lambda items, **options: made.append(options))
    kernel(monkeypatch, watched=True)
    track(range(5), "search")
    assert made[0]["desc"] == "search"
    kernel(monkeypatch, watched=False)
    bar = track(range(5), "search")
    assert isinstance(bar, Lines)
    assert getattr(bar.fp, "_wrapped", bar.fp) is sys.stdout
    assert len(made) == 1
    assert issubclass(tqdm_notebook, tqdm)


def test_a_line_passes_the_bars(capsys: pytest.CaptureFixture[str]) -> None:
    bar = track(range(5), "search")
    say("trial 3")
    bar.close()
    assert capsys.readouterr() == ("trial 3\n", "")
