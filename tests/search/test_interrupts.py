from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.storages._heartbeat import HeartbeatThread

from common.search import SearchSettings, search_ranks
from common.search.study.interrupts import Interrupts
from common.trials import read_log
from tests.networks import tiny_cnn, tiny_digits


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_waits_until_it_is_allowed() -> None:
    reached = []

    def run() -> None:
        with Interrupts() as interrupts:
            press_ctrl_c()
            reached.append("held")
            with interrupts.allowed():
                reached.append("not here")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == ["held"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_it_is_allowed_it_comes_at_once() -> None:
    reached = []

    def run() -> None:
        with Interrupts() as interrupts, interrupts.allowed():
            press_ctrl_c()
            reached.append("not here")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not reached


@pytest.mark.parametrize("checked", [False, True])
def test_nothing_is_lost_at_a_check_or_at_the_end(checked: bool) -> None:
    reached = []

    def run() -> None:
        with Interrupts() as interrupts:
            press_ctrl_c()
            reached.append("held")
            if checked:
                interrupts.check()
                reached.append("not here")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == ["held"]


def test_other_threads_are_left_alone() -> None:
    found: list[Any] = []

    def inside() -> None:
        with Interrupts() as interrupts, interrupts.allowed():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_ctrl_c_during_the_start_of_a_heartbeat_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna starts its thread before it enters the block that ends the thread. The signal arrives in between."""
    hearts: list[HeartbeatThread] = []
    start = HeartbeatThread.start

    def start_and_press(self: HeartbeatThread) -> None:
        start(self)
        hearts.append(self)
        if len(hearts) == 2:
            press_ctrl_c()

    monkeypatch.setattr(HeartbeatThread, "start", start_and_press)
    torch.manual_seed(0)
    model, settings = tiny_cnn().eval(), SearchSettings(trials=4, finetune_top=0)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    cut = search_ranks(model, tiny_digits(), settings, logs=tmp_path, run="run", storage=storage)
    assert cut.remaining == 3
    assert len(hearts) == 2
    assert not any(heart._thread is not None and heart._thread.is_alive() for heart in hearts)
    whole = search_ranks(model, tiny_digits(), settings, logs=tmp_path, run="run", storage=storage)
    assert whole.remaining == 0
    assert [record.trial for record in read_log(tmp_path / "run.log")[0]] == [0, 1, 2, 3]
