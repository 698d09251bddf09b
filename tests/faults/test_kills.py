"""SIGKILL at random moments of training, saving, exporting and analysis; full disks; two runs of one name at once.

``FAULT_KILLS=20 pytest tests/faults/test_kills.py`` kills 20 times in each of the four. Searches, and workers on
PostgreSQL, are killed in ``tests/search/test_worker.py``.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pandas as pd
import pytest
import safetensors.torch
import torch

from common.compression import load_compressed, save_compressed
from common.files import check_writable
from common.search.study.attempts import Attempts
from common.search.study.storage import open_study, opened_storage
from common.trials import TrialWriter, read_log
from tests.faults.limits import limited
from tests.faults.victims import (
    SETTINGS,
    WIDTHS,
    analyse,
    keep_analysing,
    keep_exporting,
    keep_saving,
    search_briefly,
    search_on_a_full_disk,
    train_to_the_end,
    write_on_a_full_disk,
)
from tests.networks import same_weights, tiny_cnn
from tests.records import make_record
from tests.search.processes import logged, start

KILLS = int(os.environ.get("FAULT_KILLS", "1"))
EPOCHS = 3 * KILLS + 3


def kill_at_random(
    target: Callable[..., None], arguments: tuple[Any, ...], ready: Callable[[], bool], longest: float, seed: int
) -> None:
    """Start ``target``, and kill it up to ``longest`` seconds after it is ready."""
    process = start(target, *arguments)
    while not ready():
        assert process.is_alive(), "it ended before the kill"
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, longest))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before the kill"


def changes(path: Path) -> Callable[[], bool]:
    """Whether a file was replaced since this call."""

    def inode() -> int:
        return path.stat().st_ino if path.exists() else 0

    before = inode()
    return lambda: inode() != before


def test_a_network_that_is_saved_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    networks = [tiny_cnn(seed, width) for seed, width in enumerate(WIDTHS)]
    for kill in range(KILLS):
        kill_at_random(keep_saving, (str(path),), changes(path), 0.05, kill)
        width = safetensors.torch.load_file(path)["head.weight"].shape[1] // 2
        network = networks[WIDTHS.index(width)]
        assert same_weights(load_compressed(path, network), network)


def test_an_exported_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for kill in range(KILLS):
        kill_at_random(keep_exporting, (str(path),), changes(path), 1.0, kill)
        onnx.checker.check_model(str(path), full_check=True)


def test_a_training_that_is_killed_ends_as_if_it_was_not(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    checkpoint = killed / "t.checkpoint"
    done = 0
    for kill in range(KILLS):
        kill_at_random(train_to_the_end, (str(killed), EPOCHS), changes(checkpoint), 0.03, kill)
        epochs = len(torch.load(checkpoint, weights_only=True)["history"])
        assert epochs > done
        done = epochs
    for folder in (killed, whole):
        process = start(train_to_the_end, str(folder), EPOCHS)
        process.join()
        assert process.exitcode == 0
    model = tiny_cnn()
    results = [load_compressed(folder / "trained.safetensors", model) for folder in (killed, whole)]
    assert same_weights(*results)
    assert not same_weights(results[0], model)


def test_an_analysis_that_is_killed_leaves_the_logs_and_can_be_repeated(tmp_path: Path) -> None:
    logs, out = tmp_path / "logs", tmp_path / "out"
    with TrialWriter(logs, "resnet18-cifar10") as writer:
        for number in range(6):
            writer.write(make_record(trial=number, params=1_000_000 + number))
    before = writer.path.read_bytes()
    document = out / "resnet18-cifar10.json"
    for kill in range(KILLS):
        kill_at_random(keep_analysing, (str(logs), str(out)), changes(document), 0.5, kill)
        assert writer.path.read_bytes() == before
        assert len(json.loads(document.read_bytes())["trials"]) == 6
    process = start(analyse, str(logs), str(out))
    process.join()
    assert process.exitcode == 0
    assert (out / "report.html").read_text().rstrip().endswith("</html>")
    assert len(pd.read_csv(out / "runs.csv")) == 1


def check_whole(folder: Path, most_lost: int = 0) -> None:
    """Check that each trial was judged and is in the log. A trial is lost if two processes end at it."""
    with opened_storage(folder / "r.journal") as opened:
        attempts = Attempts(open_study("r", opened, None), SETTINGS.trials)
    assert sorted({*attempts.judged, *attempts.lost}) == list(range(SETTINGS.trials))
    assert len(attempts.lost) <= most_lost
    assert logged(folder, "r.log") == list(range(SETTINGS.trials))


@pytest.mark.parametrize("grows", [2500] if KILLS < 5 else [40, 300, 1000, 2500])
def test_a_search_on_a_full_disk_stops_and_goes_on_when_there_is_room(grows: int, tmp_path: Path) -> None:
    process = start(search_briefly, str(tmp_path))
    while len(logged(tmp_path, "r.log")) < 2:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    files = [tmp_path / name for name in ("r.log", "r.journal", "r-dense.safetensors")]
    known = {record.trial: record for record in read_log(files[0])[0]}
    full = start(search_on_a_full_disk, str(tmp_path), max(path.stat().st_size for path in files) + grows)
    full.join()
    assert full.exitcode == 1
    later = {record.trial: record for record in read_log(files[0])[0]}
    assert {number: later[number] for number in known} == known  # nothing finished is lost
    process = start(search_briefly, str(tmp_path))
    process.join()
    assert process.exitcode == 0
    check_whole(tmp_path, most_lost=1)


def test_on_a_full_disk_a_network_stays_as_it_was_and_the_error_names_the_file(tmp_path: Path) -> None:
    path = save_compressed(tiny_cnn(1), tmp_path / "w.safetensors")
    before = path.read_bytes()
    kind, said = limited(write_on_a_full_disk, str(tmp_path), extra_bytes=2**32)
    assert (kind, said.count("cannot be written")) == ("", 2), said
    assert re.search(r"w\.safetensors cannot be written: .*t\.checkpoint cannot be written", said)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_of_two_runs_of_one_name_one_wins_and_no_trial_is_lost(tmp_path: Path) -> None:
    both = [start(search_briefly, str(tmp_path)) for _ in range(2)]
    for process in both:
        process.join()
    codes = sorted(process.exitcode or 0 for process in both)
    assert codes in ([0, 1], [1, 1]), "two processes ended one study"
    if codes == [1, 1]:
        search_briefly(str(tmp_path))
    check_whole(tmp_path)
    assert read_log(tmp_path / "r.log")[1] == []


def test_a_log_torn_at_any_byte_of_its_last_record_keeps_the_others_and_goes_on(tmp_path: Path) -> None:
    with TrialWriter(tmp_path, "resnet18-cifar10") as writer:
        writer.write(make_record())
        start_of_last = writer.path.stat().st_size
        writer.write(make_record(trial=1))
    content = writer.path.read_bytes()
    assert len(content) - start_of_last > 1000
    for size in range(start_of_last, len(content) + 1):
        writer.path.write_bytes(content[:size])
        whole = size >= len(content) - 1  # without its newline a record is whole too
        assert [record.trial for record in read_log(writer.path)[0]] == ([0, 1] if whole else [0])
        with TrialWriter(tmp_path, "resnet18-cifar10") as again:
            again.write(make_record(trial=2))
        assert [record.trial for record in read_log(writer.path)[0]] == ([0, 1, 2] if whole else [0, 2])


def test_a_clock_that_jumps_back_changes_no_order(tmp_path: Path) -> None:
    with TrialWriter(tmp_path, "resnet18-cifar10") as writer:
        writer.write(make_record(params=5))
        writer.write(make_record(params=7))
    lines = writer.path.read_text().splitlines(keepends=True)
    lines[0] = f"2099-12-31{lines[0][10:]}"
    lines[2] = f"1971-01-01{lines[2][10:]}"
    writer.path.write_text("".join(lines))
    assert [record.params for record in read_log(writer.path)[0]] == [7]  # the later line counts


def write_as_nobody(folder: Path) -> None:
    if os.getuid() == 0:
        os.setuid(65534)  # root may write anywhere
    check_writable(folder)


def test_a_folder_that_can_only_be_read_is_refused_in_a_sentence() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders cannot be entered by other users
        folder = Path(name)
        folder.chmod(0o555)
        kind, message = limited(write_as_nobody, folder)
        assert (kind, message) == (
            "ValueError",
            f"logs={str(folder)!r}: nothing can be written in this folder: Permission denied",
        )
        folder.chmod(0o755)
