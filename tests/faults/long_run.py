"""A search of thousands of trials in one process, and a study of tens of thousands that is opened again.

``python -m tests.faults.long_run --trials 2000`` searches, and states how memory and file handles grow with a trial.
``python -m tests.faults.long_run --open 20000`` makes such a study's journal, opens it and runs a few more trials.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import nn

from common.search import SearchSettings, search_ranks
from common.search.study.attempts import Attempts
from common.search.study.storage import journal_path, open_study, opened_storage
from common.trials import TrialRecord
from tests.brevity import time_briefly
from tests.networks import tiny_cnn, tiny_digits

SETTINGS = SearchSettings(method="svd", finetune_top=0, keep=0.01, sensitivity_images=16)
RUN = "long"


class Seen(NamedTuple):
    """The state of the process after a trial."""

    seconds: float
    memory: int
    handles: int
    threads: int
    networks: int


def search(logs: Path, trials: int, stop: int | None = None, count_networks: bool = False) -> list[Seen]:
    """Search ``trials`` trials, or continue to; stop after ``stop`` of them. Return the state after each trial."""
    process, seen, start = psutil.Process(), list[Seen](), time.perf_counter()

    def look(_: TrialRecord) -> None:
        networks = count_layers() if count_networks and len(seen) % 15 == 10 else 0
        memory = process.memory_info().rss
        seen.append(Seen(time.perf_counter() - start, memory, process.num_fds(), process.num_threads(), networks))
        if len(seen) == stop:
            raise KeyboardInterrupt

    settings = dataclasses.replace(SETTINGS, trials=trials)
    search_ranks(tiny_cnn(), tiny_digits(), settings, logs=logs, run=RUN, on_trial=look)
    return seen


def count_layers() -> int:
    """How many convolutions are alive in this process."""
    gc.collect()
    return sum(issubclass(type(each), nn.Conv2d) for each in gc.get_objects())


def slope(values: list[int]) -> float:
    """Growth per trial over the second half, by least squares."""
    half = values[len(values) // 2 :]
    return float(np.polyfit(range(len(half)), half, 1)[0])


def grow_journal(path: Path, trials: int) -> None:
    """Repeat the entries of a journal's last finished trial until there are ``trials``; what follows it is dropped."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines = lines[: 1 + max(number for number, line in enumerate(lines) if b'"datetime_complete"' in line)]
    path.write_bytes(b"".join(lines))
    entries = [json.loads(line) for line in lines]
    begun = [entry for entry in entries if entry["op_code"] == 4]
    last = len(begun) - 1
    rest = [entry for entry in entries if entry.get("trial_id") == last]
    with path.open("a") as file:
        for number in range(len(begun), trials):
            for entry in (begun[last], *({**each, "trial_id": number} for each in rest)):
                file.write(json.dumps(entry, separators=(",", ":")) + "\n")


def opened_memory(path: Path) -> int:
    """Bytes that an opened study takes in this process."""
    before = psutil.Process().memory_info().rss
    with opened_storage(path) as storage:
        study = open_study(RUN, storage, None)
        assert Attempts(study, 10**6).judged
        return psutil.Process().memory_info().rss - before


def seconds_of(call: Callable[[], object]) -> str:
    """The time of a call, and the processor's time, which other work on the machine does not lengthen as much."""
    start, processor = time.perf_counter(), time.process_time()
    call()
    return f"{time.perf_counter() - start:.1f} s ({time.process_time() - processor:.1f} s of one processor)"


def run_long(logs: Path, trials: int) -> None:
    seen = search(logs, trials)
    print(f"{len(seen)} trials in {seen[-1].seconds:.0f} s; memory {seen[-1].memory / 2**20:.0f} MiB at the end")
    print(f"memory grows by {slope([each.memory for each in seen]) / 1024:.1f} KiB a trial")
    print(f"file handles {seen[10].handles} -> {seen[-1].handles}, threads {seen[10].threads} -> {seen[-1].threads}")
    with multiprocessing.get_context("spawn").Pool(1) as afresh:
        study = afresh.apply(opened_memory, (journal_path(logs, RUN),))
    print(f"the study, opened in a new process, takes {study / 1024 / trials:.1f} KiB a trial in memory")


def open_large(logs: Path, trials: int) -> None:
    search(logs, 16, stop=12)
    path = journal_path(logs, RUN)
    grow_journal(path, trials)
    print(f"{trials} trials, journal of {path.stat().st_size / 2**20:.0f} MiB")
    print(f"opened in {seconds_of(lambda: opened_memory(path))}")
    seen = search(logs, trials + 20, stop=20)
    print(f"the same call had run the next trial after {seen[0].seconds:.1f} s")
    print(f"then {(seen[-1].seconds - seen[0].seconds) / (len(seen) - 1):.2f} s a trial")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--open", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    time_briefly()
    for run, trials in ((run_long, options.trials), (open_large, options.open)):
        if trials:
            with tempfile.TemporaryDirectory() as folder:
                run(Path(folder), trials)


if __name__ == "__main__":
    main()
