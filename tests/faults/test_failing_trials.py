"""A trial that fails says why, and the search goes on; where every trial fails, it stops with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.compression import compress
from common.search import SearchSettings, search_ranks
from common.search.study import runner
from common.search.study.runner import SameFailure
from common.training import evaluate
from common.trials import TrialRecord, read_log
from tests.brevity import time_briefly
from tests.faults.limits import limited
from tests.networks import tiny_cnn, tiny_digits

TRIALS = 4
SETTINGS = SearchSettings(method="svd", trials=TRIALS, climb=1.0, finetune_top=0, keep=0.01, sensitivity_images=16)


def searched(model: nn.Module, folder: Path, **options: Any) -> list[TrialRecord]:
    search_ranks(model, tiny_digits(), SETTINGS, logs=folder, run="r", on_trial=lambda _: None, **options)
    return read_log(folder / "r.log")[0]


def fail_in(monkeypatch: pytest.MonkeyPatch, name: str, original: Any, trials: set[int], fault: Any) -> None:
    """Let the call of ``name`` in these trials, from 0, do ``fault`` instead."""
    calls = iter(range(1000))
    monkeypatch.setattr(name, lambda *a, **k: fault() if next(calls) in trials else original(*a, **k))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_fails_its_trial(
    loss: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The dense network is evaluated first and once more on a part of validation.
    fail_in(monkeypatch, "common.search.objective.evaluate", evaluate, {3}, lambda: {"accuracy": 0.5, "loss": loss})
    records = searched(tiny_cnn(), tmp_path)
    assert [record.status for record in records].count("failed") == 1
    (failed,) = [record for record in records if record.status == "failed"]
    assert failed.error == f"FloatingPointError: the loss on validation is {loss}"
    assert failed.plan


def not_converged() -> None:
    raise RuntimeError("_LinAlgError: linalg.eigh: the algorithm failed to converge")


def test_a_decomposition_that_does_not_converge_fails_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(monkeypatch, "common.search.objective.compress", compress, {1}, not_converged)
    records = searched(tiny_cnn(), tmp_path)
    assert [record.status for record in records] == ["ok", "failed", "ok", "ok"]
    assert "failed to converge" in records[1].error


@pytest.mark.parametrize("kind", ["zero", "singular", "tiny", "huge"])
def test_weights_of_low_rank_or_odd_size_are_searched(kind: str, tmp_path: Path) -> None:
    model = tiny_cnn()
    weight = model.conv.weight.data
    if kind == "zero":
        weight.zero_()
    elif kind == "singular":
        weight.copy_(weight[:1].expand_as(weight).clone())
    else:
        weight.mul_(1e-30 if kind == "tiny" else 1e15)
    assert [record.status for record in searched(model, tmp_path)] == ["ok"] * TRIALS


def search_without_memory(folder: Path) -> str:
    """Search while one trial asks for more memory than there is."""
    time_briefly()
    with pytest.MonkeyPatch.context() as patch:
        fail_in(patch, "common.search.objective.compress", compress, {2}, lambda: torch.ones(2**34))
        return " ".join(f"{record.status} {record.error}" for record in searched(tiny_cnn(), folder))


def test_a_trial_that_runs_out_of_memory_fails_and_the_search_goes_on(tmp_path: Path) -> None:
    kind, found = limited(search_without_memory, tmp_path, extra_bytes=3 * 2**30, seconds=300)
    assert kind == ""
    statuses = [word for word in found.split() if word in ("ok", "failed")]
    assert statuses[:4] == ["ok", "ok", "failed", "ok"], found
    assert "allocate memory" in found


def test_many_failures_for_one_reason_stop_the_search_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MOST_ALIKE", 3)
    calls = iter(range(100))

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"cannot allocate {next(calls)} bytes")

    with monkeypatch.context() as patch:
        patch.setattr("common.search.objective.compress", broken)
        with pytest.raises(
            SameFailure, match=r"^the last 3 trials failed for one reason, RuntimeError: cannot all.*run='r'"
        ):
            searched(tiny_cnn(), tmp_path)
    assert "stopped: the last 3 trials failed" in (tmp_path / "r.log").read_text()
    assert [record.status for record in searched(tiny_cnn(), tmp_path)] == ["failed"] * 3 + ["ok"]


def test_failures_for_several_reasons_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MOST_ALIKE", 2)
    reasons = iter("abcdefgh")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(next(reasons))

    monkeypatch.setattr("common.search.objective.compress", broken)
    assert [record.status for record in searched(tiny_cnn(), tmp_path)] == ["failed"] * TRIALS
