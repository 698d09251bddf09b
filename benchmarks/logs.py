"""Compare the time to read a log of a million trials with that of ``json.loads`` alone on the same lines.

    python -m benchmarks.logs

The log repeats 100 different trials (ResNet18, four methods) with new numbers. Each script reads it in a separate
process. The benchmark prints processor time, lines per second, peak memory and the ratio to ``json.loads``, and
asserts nothing. The log needs 3 GB on disk, and its JSON another 3 GB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from common.trials import TRIAL_MARK, TrialWriter, summary_line
from tests.make_logs import METHODS, NETWORKS, make_trials

ROOT = Path(__file__).resolve().parent.parent
NUMBER = 2**62
"""Placeholder for the number of each trial."""

LOADS = """
import json, sys
with open(sys.argv[1], "rb") as file:
    for line in file:
        if line.startswith(b"TRIAL "):
            json.loads(line[6:])
"""


def write_log(folder: Path, lines: int) -> Path:
    """Write a log of ``lines`` trials. Every hundred trials repeat, with other numbers."""
    records = [
        record.replace(run="large", trial=NUMBER)
        for method in METHODS
        for record in list(make_trials(NETWORKS[0], method, 0, 26))[1:26]
    ]
    halves = [record.to_line().split(f'"trial": {NUMBER}') for record in records]
    with TrialWriter(folder, "large") as writer, writer.path.open("a", encoding="utf-8") as file:
        for number in range(lines):
            before, after = halves[number % len(halves)]
            text = summary_line(records[number % len(records)])
            file.write(f'2026-11-20 12:00:00  {text}\n{TRIAL_MARK}{before}"trial": {number}{after}\n')
    return writer.path


def measure(*command: str | Path) -> tuple[float, float, float]:
    """Run a process; return its elapsed seconds, its processor seconds and its peak memory in MiB.

    Raises:
        RuntimeError: the process failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Write the log, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000, help="trials in the log (default: 1000000)")
    parser.add_argument("--folder", help="parent of the temporary folder (default: the system's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        log = write_log(folder, options.lines)
        size = log.stat().st_size / 1e6
        measured = {
            "json.loads alone": measure("-c", LOADS, log),
            "jsonify_logs.py": measure(ROOT / "jsonify_logs.py", log, "--out", folder / "json"),
            "analyze_results.py": measure(ROOT / "analyze_results.py", log, "--out", folder / "results"),
        }
    alone = measured["json.loads alone"][1]
    rows = [
        [title, f"{clock:.1f}", f"{cpu:.1f}", f"{options.lines / cpu:,.0f}", f"{memory:,.0f}", f"{cpu / alone:.2f}"]
        for title, (clock, cpu, memory) in measured.items()
    ]
    heads = ["", "s", "s of processor", "lines/s", "peak MiB", "of json.loads"]
    print(f"{options.lines:,} trials, {size:,.0f} MB\n")
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
